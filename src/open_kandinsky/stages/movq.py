"""Stage 1, the autoencoder: MoVQ is trained with a reconstruction loss, against a PatchGAN, by manual optimisation.

Here are the stage, its reconstruction loss, and the statistics and reset of the codebook's codes. The adversarial
weights and penalties are in stages/gan.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from open_kandinsky.core.distributed import broadcast_from_first, gather_rows, mean_over_processes, sum_over_processes
from open_kandinsky.core.errors import UserError
from open_kandinsky.data.batch import ImageBatch
from open_kandinsky.networks.discriminator import hinge
from open_kandinsky.networks.movq import MoVQ, Reconstruction
from open_kandinsky.networks.quantizer import Codebook, perplexity_of
from open_kandinsky.stages.gan import AdversaryWeight, DiscriminatorBatch, adversary_share
from open_kandinsky.stages.optim import MakeOptimizer, MakeSchedule, build_optimizer, freeze_all_but
from open_kandinsky.stages.parallel import Engine


class PixelLoss(nn.Module):
    """Weighted absolute and squared error, absolute error of neighbours' differences, and a perceptual distance."""

    def __init__(self, *, l1: float, l2: float, edges: float, lpips: float, perceptual: nn.Module | None) -> None:
        super().__init__()
        if lpips > 0 and perceptual is None:
            raise UserError(f"lpips={lpips} weighs a distance that is not there: set perceptual, or lpips=0")
        self.l1, self.l2, self.edges, self.lpips = l1, l2, edges, lpips
        self.perceptual: Any = [perceptual]  # in a list: frozen, so out of the state dict

    def forward(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
        d = x - y
        loss = self.l1 * d.abs().mean() + self.l2 * d.square().mean()
        if self.edges > 0:
            loss = loss + self.edges * (d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean())
        if self.lpips > 0:
            loss = loss + self.lpips * self.perceptual[0].to(x.device)(x, y)
        return loss


class Usage(nn.Module):
    """Counts how often each code is used by all processes within a window of `window` steps.

    One batch says little: 16,384 codes are more than the latents of 16 pictures. The counts are a buffer, the same on
    each process: a run that is resumed within a window, by any number of processes, goes on counting.
    """

    counts: Tensor

    def __init__(self, *, codes: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.long))

    def add(self, index: Int[Tensor, "b h w"]) -> None:
        self.counts += sum_over_processes(torch.bincount(index.flatten(), minlength=len(self.counts)))

    def figures(self) -> dict[str, Float[Tensor, ""]]:
        """`code_usage`, the perplexity as a share of the codes, and `codes_used`, the share used at least once."""
        most = self.counts.sum().clamp(min=1, max=len(self.counts))  # fewer latents than codes cannot use them all
        return {"code_usage": perplexity_of(self.counts) / most, "codes_used": (self.counts > 0).sum() / most}


def latents_for_codes(z: Float[Tensor, "b c h w"], codes: int) -> Float[Tensor, "codes c"]:
    """A latent for each code from the batches of all processes, the same on each; repeats where there are fewer."""
    flat = gather_rows(rearrange(z, "b c h w -> (b h w) c"))
    return flat[broadcast_from_first(torch.randint(len(flat), (codes,), device=z.device))]


def restart_unused(codebook: Codebook, counts: Int[Tensor, "codes"], z: Float[Tensor, "b c h w"]) -> None:
    """Codes that were not used once become latents of the batch (random restarts of Jukebox, Dhariwal et al. 2020).

    Adam needs no telling: a code without a gradient for a window has no moments left.
    """
    codebook.restart(counts == 0, latents_for_codes(z, len(counts)))


class MoVQStage(LightningModule):
    """Trains the autoencoder and, from step `adversary_from` on, its adversary, the discriminator, in turn."""

    def __init__(
        self,
        *,
        network: MoVQ,
        trained: Sequence[str],  # parts of the network; the others keep the weights they begin with
        discriminator: nn.Module,
        pixel_loss: PixelLoss,
        adversary_weight: AdversaryWeight,
        adversary_from: int,  # the step at which the adversary enters
        adversary_ramp: int,  # steps after which the autoencoder listens to it with its whole weight
        penalties: Mapping[str, nn.Module],  # of the adversary, by name
        quantise_from: int,  # the step at which the codebook enters
        fill_codebook: bool,  # with latents of that batch; else with the codes that it has
        usage: Usage,
        restart_unused_codes: bool,  # at the end of a window; MoVQGAN leaves such codes where they are
        clip_value: float | None,  # gradients, by value
        optimizer: MakeOptimizer,
        lr_schedule: MakeSchedule,
        adversary_lr_schedule: MakeSchedule,  # its steps are counted from when the adversary enters
        engine: Engine,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.discriminator, self.pixel_loss = network, discriminator, pixel_loss
        self.adversary_weight, self.penalties = adversary_weight, nn.ModuleDict(penalties)
        self.adversary_from, self.adversary_ramp, self.quantise_from = adversary_from, adversary_ramp, quantise_from
        self.fill_codebook = fill_codebook
        self.usage, self.restart_unused_codes, self.clip_value = usage, restart_unused_codes, clip_value
        self.optimizer, self.lr_schedules, self.engine = optimizer, (lr_schedule, adversary_lr_schedule), engine
        freeze_all_but(trained, network)

    def configure_model(self) -> None:
        self.engine.apply(self, self.network, self.discriminator)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        step, pixels, has_adversary = self.global_step, batch["pixels"], self.global_step >= self.adversary_from
        optimizer, disc_optimizer = cast(Any, self.optimizers())
        schedule, disc_schedule = cast(Any, self.lr_schedulers())
        reconstruction = self.reconstruct(pixels, step)
        quality = self.pixel_loss(reconstruction.pixels, pixels)
        loss, figures = quality + reconstruction.codebook_loss, {"reconstruction": quality}
        if has_adversary:
            score = self.discriminator.requires_grad_(False)(reconstruction.pixels).mean()
            weight = self.adversary_weight(quality, -score, reconstruction, self.network.decoder.conv_out)
            weight = weight * adversary_share(step, at=self.adversary_from, ramp=self.adversary_ramp)
            loss = loss - weight * score
            figures["adversary_weight"] = torch.as_tensor(weight, device=self.device)
        self.backward_and_step(optimizer, loss)
        schedule.step()
        if has_adversary:
            self.discriminator.requires_grad_(True)
            figures |= self.discriminator_step(disc_optimizer, pixels, reconstruction.pixels.detach(), step)
            disc_schedule.step()
        self.log_means(figures | {"loss": loss})
        self.update_usage(reconstruction, step)

    def reconstruct(self, pixels: Float[Tensor, "b 3 h w"], step: int) -> Reconstruction:
        """Through the codebook from step `quantise_from` on, which may be filled with that batch's latents first."""
        if step < self.quantise_from:
            return self.network.without_codebook(pixels)
        if self.fill_codebook and step == self.quantise_from > 0:
            with torch.no_grad():
                latents = latents_for_codes(self.network.without_codebook(pixels).z, len(self.usage.counts))
            self.network.codebook.restart(torch.ones_like(self.usage.counts, dtype=torch.bool), latents)
        return self.network(pixels)

    def backward_and_step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.clip_value is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_value, gradient_clip_algorithm="value")
        optimizer.step()

    def discriminator_step(self, optimizer: Any, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the discriminator; returns its hinge loss and penalties, to be logged."""
        batch = DiscriminatorBatch(step, real, self.discriminator(real), self.discriminator(fake))
        loss = hinge(batch.real, batch.fake)
        penalties = {name: penalty(self.discriminator, batch) for name, penalty in self.penalties.items()}
        due = {name: penalty for name, penalty in penalties.items() if penalty is not None}
        total = sum(due.values(), loss)
        self.backward_and_step(optimizer.optimizer, total)  # torch's own, which Lightning does not count as a step
        return {"adversary": loss} | due

    def log_means(self, figures: Mapping[str, Tensor]) -> None:
        """Log means over all processes, gathered in one go."""
        means = mean_over_processes(torch.stack([figure.detach().float() for figure in figures.values()]))
        for name, figure in zip(figures, means, strict=True):
            self.log(f"train/{name}", figure, prog_bar=name in ("loss", "adversary"))

    def update_usage(self, reconstruction: Reconstruction, step: int) -> None:
        """Count the codes in use; at the end of each window log their usage, and reset the dead ones."""
        steps = step + 1 - self.quantise_from
        if steps <= 0:
            return
        self.usage.add(reconstruction.index)
        if steps % self.usage.window == 0:
            self.log_dict({f"train/{name}": figure for name, figure in self.usage.figures().items()})
            if self.restart_unused_codes:
                restart_unused(self.network.codebook, self.usage.counts, reconstruction.z)
            self.usage.counts.zero_()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log L1, PSNR and SSIM; returns latents `z`, and `reconstruction` in [-1, 1].

        val/psnr decodes the latents as they are, which the decoder of stage 3 learns; val/psnr_quantised their nearest
        codes.
        """
        pixels = batch["pixels"]
        z = self.network.encode(pixels)
        reconstruction, quantised = self.network.decode(z).clamp(-1, 1), self.network.through_codebook(z)
        y, *both = (((p.clamp(-1, 1) + 1) / 2).float() for p in (pixels, reconstruction, quantised))
        figures: dict[str, Any] = {"l1": F.l1_loss(both[0], y)}
        for suffix, x in zip(("", "_quantised"), both, strict=True):
            figures[f"psnr{suffix}"] = peak_signal_noise_ratio(x, y, data_range=1.0, dim=(1, 2, 3))  # of each picture
            figures[f"ssim{suffix}"] = structural_similarity_index_measure(x, y, data_range=1.0)
        for name, figure in figures.items():
            self.log(f"val/{name}", figure, prog_bar=name == "psnr", batch_size=len(y), sync_dist=True)
        return {"z": z, "reconstruction": reconstruction}

    def configure_optimizers(self) -> Any:
        modules = (self.network, self.discriminator)
        optimizers = [build_optimizer(module.parameters(), self.optimizer) for module in modules]
        named = zip(("train/lr", "train/lr_adversary"), self.lr_schedules, optimizers, strict=True)
        return optimizers, [{"scheduler": schedule(optimizer), "name": name} for name, schedule, optimizer in named]
