"""Previews of a run: pictures of the same few validation samples, drawn again as training goes on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from open_kandinsky.core.draws import ALONE
from open_kandinsky.diffusion.denoise import denoiser, guide
from open_kandinsky.diffusion.samplers import PerImageNoise, named

KEY = "preview"
Draw = Callable[[Any, Mapping[str, Any]], Float[Tensor, "rows b 3 h w"]]  # (stage, batch) -> pixels in [-1, 1]


class Reconstructions:
    """For an autoencoder: a row of originals above a row of reconstructions."""

    def __call__(self, stage: Any, batch: Mapping[str, Any]) -> Float[Tensor, "2 b 3 h w"]:
        pixels = batch["pixels"]
        return torch.stack([pixels, stage.network.decode(stage.network.encode(pixels))])


class Drawings:
    """For a decoder: a row of originals above a row of pictures drawn from their embeddings and captions.

    `movq` loads the network that decodes latents; with None three channels are shown, at three standard deviations.
    """

    def __init__(self, *, movq: Callable[[], nn.Module] | None, sampler: str, steps: int, scale: float) -> None:
        with isolate_rng():  # a network is initialised at random before its weights are loaded
            self.movq = None if movq is None else movq()
        self.sampler, self.steps, self.scale = named(sampler), steps, scale

    def __call__(self, stage: Any, batch: Mapping[str, Any]) -> Float[Tensor, "2 b 3 h w"]:
        drawn = stage.network.standardise.inverse(self.sample(stage, batch, range(len(batch["z"]))))
        return torch.stack([self.to_pixels(stage.network, z) for z in (batch["z"], drawn)])

    def sample(self, stage: Any, batch: Mapping[str, Any], seeds: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """Guided latents, standardised; each sample's noise depends on its seed alone."""
        z = stage.network.standardise(batch["z"])
        extra = torch.cat([stage.input_conditioning(z, ALONE)] * 2)
        conditions = {name: batch[name] for name in stage.network.reads}
        doubled = {name: torch.cat([x, getattr(stage.null, name).expand_as(x)]) for name, x in conditions.items()}
        context = stage.network.context(**doubled)

        def output(x_t: Tensor, t: Tensor) -> Tensor:
            return stage.network(torch.cat([x_t, extra], dim=1), t, context)

        denoise = guide(denoiser(output, stage.parameterisation, stage.alpha_bar), self.scale)
        noise = PerImageNoise(seeds, z.shape[1:], z.device)
        return self.sampler(denoise, next(noise), stage.alpha_bar, self.steps, noise)

    def to_pixels(self, network: Any, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 hp wp"]:
        if self.movq is None:
            return network.standardise(z)[:, :3] / 3
        return self.movq.to(z.device).decode(z)  # pyright: ignore[reportCallIssue]


class Preview(Callback):
    """Draws the first `count` validation samples at the first validation in every `every` steps.

    The pictures go to `folder`/<step>.png and to the run's loggers; captions.txt there names the columns. They are
    drawn before validation ends, by the EMA's weights if there is one. The random state is restored, so that a run with
    previews is the same run.
    """

    def __init__(self, *, every: int, count: int, folder: str, draw: Draw) -> None:
        self.every, self.count, self.folder, self.draw = every, count, Path(folder), draw
        self.batch: dict[str, Any] = {}
        self.drawn = -1  # step // every of the last preview

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self.batch = {name: value[: self.count] for name, value in batch.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = trainer.global_step // self.every
        if trainer.sanity_checking or not self.batch or due == self.drawn:
            return
        self.drawn = due
        with isolate_rng(), trainer.precision_plugin.forward_context():
            torch.manual_seed(0)
            rows = self.draw(pl_module, self.batch)  # in every process, which sharded weights need
        if trainer.is_global_zero:
            self.show(trainer, to_uint8(rows.float()), self.batch["caption"])

    def show(self, trainer: Trainer, rows: UInt8[Tensor, "rows b 3 h w"], captions: Sequence[str]) -> None:
        grid = make_grid(rearrange(rows, "r b c h w -> (r b) c h w"), nrow=rows.shape[1], padding=2, pad_value=255)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
        to_image(grid).save(self.folder / f"{trainer.global_step:08d}.png")
        for logger in trainer.loggers:
            for kind, send in SEND.items():
                if isinstance(logger, kind):
                    send(logger, grid, rows, captions, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.drawn = state_dict["drawn"]


def to_uint8(pixels: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """[-1, 1] to [0, 255], on the CPU."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def to_image(pixels: UInt8[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").contiguous().numpy())


def to_tensorboard(logger: Any, grid: Tensor, rows: Tensor, captions: Sequence[str], step: int) -> None:
    logger.experiment.add_image(KEY, grid, step)
    logger.experiment.add_text(f"{KEY}/captions", "\n\n".join(captions), step)


def to_wandb(logger: Any, grid: Tensor, rows: Tensor, captions: Sequence[str], step: int) -> None:
    """Log the grid, with a slider over steps, and a Table with a row for each caption."""
    import wandb

    columns = zip(*[[wandb.Image(to_image(picture)) for picture in row] for row in rows], strict=True)
    data = [[caption, *pictures] for caption, pictures in zip(captions, columns, strict=True)]
    logger.log_image(f"{KEY}/grid", [to_image(grid)], step=step)
    logger.log_table(f"{KEY}/table", columns=["caption", "given", "made"], data=data, step=step)


SEND = {TensorBoardLogger: to_tensorboard, WandbLogger: to_wandb}
