"""Stage 1, the autoencoder: MoVQ against a PatchGAN, by manual optimisation."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from open_kandinsky.data.batch import ImageBatch
from open_kandinsky.networks.discriminator import hinge
from open_kandinsky.networks.movq import MoVQ, Reconstruction
from open_kandinsky.networks.quantizer import perplexity
from open_kandinsky.stages.optimisation import MakeOptimizer, MakeSchedule


class PixelLoss(nn.Module):
    """Weighted absolute and squared error, absolute error of neighbours' differences, and a perceptual distance."""

    def __init__(self, *, l1: float, l2: float, edges: float, lpips: float, perceptual: nn.Module | None) -> None:
        super().__init__()
        if lpips > 0 and perceptual is None:
            raise ValueError(f"lpips={lpips} weighs a distance that is not there: set perceptual, or lpips=0")
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


class MoVQStage(LightningModule):
    """Autoencoder and adversary in turn. The official recipe has adversary_from 0, quantise_from 0, weight 0.1."""

    def __init__(
        self,
        *,
        network: MoVQ,
        discriminator: nn.Module,
        pixel_loss: PixelLoss,
        adversary_weight: float,
        adversary_from: int,  # the step at which the adversary enters
        quantise_from: int,  # the step at which the codebook enters, filled with latents of that batch
        collapse_below: float,  # a share of codes in use, or an adversary's loss, that is warned of
        clip_value: float | None,  # gradients, by value
        optimizer: MakeOptimizer,
        lr_schedule: MakeSchedule,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.discriminator, self.pixel_loss = network, discriminator, pixel_loss
        self.adversary_weight, self.adversary_from = adversary_weight, adversary_from
        self.quantise_from, self.collapse_below, self.clip_value = quantise_from, collapse_below, clip_value
        self.optimizer, self.lr_schedule = optimizer, lr_schedule

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        pixels = batch["pixels"]
        autoencoder, adversary = cast(Any, self.optimizers())
        made = self.reconstruct(pixels)
        loss = self.pixel_loss(made.pixels, pixels) + made.codebook_loss
        fighting = self.global_step >= self.adversary_from
        if fighting:
            fooled = self.discriminator.requires_grad_(False)(made.pixels)
            loss = loss - self.adversary_weight * fooled.mean()
        self.descend(autoencoder, loss)
        if fighting:
            self.discriminator.requires_grad_(True)
            self.fight(adversary, pixels, made.pixels.detach())
        for schedule in cast(Any, self.lr_schedulers()):
            schedule.step()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.watch_codes(made)

    def reconstruct(self, pixels: Float[Tensor, "b 3 h w"]) -> Reconstruction:
        if self.global_step < self.quantise_from:
            return self.network.without_codebook(pixels)
        if self.global_step == self.quantise_from > 0:
            with torch.no_grad():
                self.network.codebook.fill(self.network.without_codebook(pixels).z)
        return self.network(pixels)

    def descend(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.clip_value is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_value, gradient_clip_algorithm="value")
        optimizer.step()

    def fight(self, optimizer: Any, real: Tensor, fake: Tensor) -> None:
        loss = hinge(self.discriminator(real), self.discriminator(fake))
        self.descend(optimizer.optimizer, loss)  # the bare optimiser: a step is counted once, by the autoencoder's
        self.log("train/adversary", loss.detach(), prog_bar=True)
        if loss < self.collapse_below:
            rank_zero_warn(f"step {self.global_step}: the adversary's loss is {loss:.2g}: it wins, and teaches nothing")

    def watch_codes(self, made: Reconstruction) -> None:
        if self.global_step % 50 != 0:
            return
        codes = self.network.codebook.embedding.num_embeddings
        used = perplexity(made.index, codes) / min(codes, made.index.numel())
        self.log("train/code_usage", used)
        if self.global_step > self.quantise_from and used < self.collapse_below:
            rank_zero_warn(f"step {self.global_step}: codes in use {used:.2%} (perplexity): the codebook collapses")

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        pixels = batch["pixels"]
        x, y = (((p.clamp(-1, 1) + 1) / 2).float() for p in (self.network.decode(self.network.encode(pixels)), pixels))
        figures = {
            "psnr": peak_signal_noise_ratio(x, y, data_range=1.0),
            "ssim": structural_similarity_index_measure(x, y, data_range=1.0),
            "l1": F.l1_loss(x, y),
        }
        for name, figure in figures.items():
            self.log(f"val/{name}", figure, prog_bar=name == "psnr", batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        made = [self.optimizer(m.parameters()) for m in (self.network, self.discriminator)]
        return made, [self.lr_schedule(optimizer) for optimizer in made]
