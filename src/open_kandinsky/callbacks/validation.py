"""Callbacks that validate at a training's end, and that compute validation figures beside a stage's own.

For MoVQ: the codebook's usage and LPIPS. For a prior: how sampled embeddings lie to the true ones. For a decoder: the
loss by timestep, and a Frechet distance of drawn pictures.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn

from open_kandinsky.callbacks.preview import Drawings, to_image, to_uint8
from open_kandinsky.core.errors import UserError
from open_kandinsky.diffusion.denoise import clamp, denoiser, guide
from open_kandinsky.diffusion.samplers import PerImageNoise, named
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.metrics.health import (
    BinnedMean,
    CodeUsage,
    FeatureTable,
    cosine,
    cosine_of_others,
    norm_ratio,
    retrieval,
    std_ratios,
)


class ValidateAtEnd(Callback):
    """Validates after a training's last step, whatever the validation's interval.

    So every run that has a validation set ends with figures, and with a preview if previews are on. Lightning validates
    before it stops early: here it is told to stop early at the very step at which it would stop anyway.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        last_step = 0 < trainer.max_steps <= trainer.global_step
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if last_step or (last_epoch and progress.is_last_batch):
            cast(Any, trainer).should_stop = True


class Codes(Callback):
    """Logs the share of codes that the validation set uses, and their perplexity."""

    def __init__(self) -> None:
        self.usage: CodeUsage | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        codebook = cast(Any, pl_module.network).codebook
        if self.usage is None:
            self.usage = CodeUsage(codes=codebook.embedding.num_embeddings).to(batch["pixels"].device)
        with trainer.precision_plugin.forward_context():
            self.usage.update(codebook.nearest(outputs["z"]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.usage is not None:
            figures = {f"val/{name}": value for name, value in self.usage.compute().items()}
            pl_module.log_dict(figures, sync_dist=True)
            self.usage = None


class Perceptual(Callback):
    """Logs val/lpips of reconstructions; `distance` takes two batches of pictures in [-1, 1]."""

    def __init__(self, *, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.distance: Any = distance

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        pixels = batch["pixels"]
        figure = self.distance.to(pixels.device)(outputs["reconstruction"].float(), pixels).mean()
        pl_module.log("val/lpips", figure, batch_size=len(pixels), sync_dist=True)


class LossByTimestep(Callback):
    """Logs the validation loss of each bin of timesteps: at small t it is of detail, at large t of composition.

    The mean of the bins, weighted by their counts, is val/loss. The stage's `validation_step` must return `losses` and
    `t` of each example.
    """

    def __init__(self, *, bins: int) -> None:
        self.bins = bins
        self.means: BinnedMean | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        if self.means is None:
            T = len(pl_module.alpha_bar)  # type: ignore[arg-type]
            self.means = BinnedMean(bins=self.bins, T=T).to(outputs["losses"].device)
        self.means.update(outputs["losses"], outputs["t"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.means is not None:
            figures = {f"val/loss_t{steps}": mean for steps, mean in self.means.compute().items()}
            pl_module.log_dict(figures, sync_dist=True)
            self.means = None


def seeds_of(keys: Sequence[str]) -> list[int]:
    """A seed for each sample, the same at every validation, in any batch and in any process."""
    return [zlib.crc32(key.encode()) for key in keys]


class PriorFigures(Callback):
    """Samples an image embedding for each caption of the validation set, guided and unguided, and logs its quality.

    The figures compare it with the true embedding, the caption's own, and those of other samples; `limit` bounds |x_0|
    (None: it does not). Each sample's noise depends on its key, and figures are of the gathered set: they are the same
    on any number of processes that share the set evenly. The stage itself logs val/cosine_prior (of the first x_0) and
    val/cosine_text (of the caption's embedding), which a prior that helps exceeds.
    """

    def __init__(
        self, *, sampler: str, steps: int, scale: int | float, limit: int | float | None, retrieval: Sequence[int]
    ) -> None:
        self.sampler, self.steps, self.limit = named(sampler), steps, limit
        self.scale, self.retrieval = scale, list(retrieval)
        self.rows: FeatureTable | None = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        image = batch["image_emb"]
        if self.rows is None:
            columns = ("image", "text", "sampled", "unguided")
            self.rows = FeatureTable(columns=columns, dim=image.shape[1]).to(image.device)
        with trainer.precision_plugin.forward_context():
            unguided = self.sample(pl_module, batch, 1)
            sampled = unguided if self.scale == 1 else self.sample(pl_module, batch, self.scale)
        self.rows.update(image=image, text=batch["text_emb"], sampled=sampled, unguided=unguided)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows is not None:
            pl_module.log_dict(self.figures(self.rows.compute()), sync_dist=True)
            self.rows = None

    def sample(self, stage: Any, batch: Mapping[str, Any], scale: int | float) -> Float[Tensor, "b d"]:
        conditions = {name: batch[name] for name in ("text_tokens", "text_emb", "text_mask")}
        if scale != 1:
            nulls = {name: getattr(stage.null, name).to(x.dtype).expand_as(x) for name, x in conditions.items()}
            conditions = {name: torch.cat([x, nulls[name]]) for name, x in conditions.items()}
        prefix = stage.network.prefix(*conditions.values())
        denoise = denoiser(lambda x_t, t: stage.network(x_t, t, prefix), stage.parameterisation, stage.alpha_bar)
        denoise = denoise if scale == 1 else guide(denoise, scale)
        denoise = denoise if self.limit is None else clamp(denoise, self.limit)
        noise = PerImageNoise(seeds_of(batch["key"]), batch["image_emb"].shape[1:], batch["image_emb"].device)
        return stage.network.standardise.inverse(self.sampler(denoise, next(noise), stage.alpha_bar, self.steps, noise))

    def figures(self, rows: Mapping[str, Float[Tensor, "n d"]]) -> dict[str, float]:
        image, text = rows["image"], rows["text"]
        figures = {
            "val/text_cosine_others": cosine_of_others(text, image),
            "val/sampled_cosine_to_text": cosine(rows["sampled"], text),
            **{f"val/text_retrieval_{k}": retrieval(text, image, k) for k in self.retrieval},
        }
        for name in ("sampled", "unguided"):
            figures |= {f"val/{name}_{figure}": value for figure, value in self.compare(rows[name], image).items()}
        return figures

    def compare(self, drawn: Float[Tensor, "n d"], image: Float[Tensor, "n d"]) -> dict[str, float]:
        ratios = std_ratios(drawn, image)
        return {
            "cosine": cosine(drawn, image),
            "cosine_others": cosine_of_others(drawn, image),
            "norm_ratio": norm_ratio(drawn, image),
            "std_ratio": float(ratios.mean()),
            "std_ratio_least": float(ratios.min()),
            **{f"retrieval_{k}": retrieval(drawn, image, k) for k in self.retrieval},
        }


@runtime_checkable
class PictureFeatures(Protocol):
    """Features of drawn pictures and of a batch's real ones, which the batch may hold already."""

    name: str  # in the log

    def drawn(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def real(self, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]: ...


class CacheClipFeatures:
    """Embeddings by the CLIP that computed the run's cache, in which the real pictures' embeddings are.

    `prepare` is the cache's own preprocessing (data.transforms.ClipPixels).
    """

    name = "own_clip"

    def __init__(self, *, clip: Callable[[], nn.Module], prepare: Callable[[Image.Image], Tensor]) -> None:
        with isolate_rng():  # a network is initialised at random before its weights are loaded
            self.clip: Any = clip()
        self.prepare = prepare

    def drawn(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        clip_pixels = torch.stack([self.prepare(to_image(picture)) for picture in to_uint8(pixels)])
        return self.clip.to(pixels.device).encode_image(clip_pixels.to(pixels.device))

    def real(self, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]:
        return batch["image_emb"]


class FrechetOfDrawings(Callback):
    """Draws the first `count` validation samples from their true embeddings, once in `every` validations.

    Logs val/frechet_<features' name>, whose bias depends on the count, and val/cosine_<name>, the mean cosine of a
    drawn picture's features to the real one's. The weights are the EMA's if there is one. Each sample's noise depends
    on its key, so that the pictures are the same on any number of processes.
    """

    def __init__(self, *, every: int, count: int, draw: Drawings, features: PictureFeatures) -> None:
        if count < 2:
            raise UserError(f"count={count}: a Frechet distance needs two pictures, and means little below a thousand")
        self.every, self.count, self.draw, self.features = every, count, draw, features
        self.validations, self.samples = 0, 0
        self.rows: FeatureTable | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self.validations % self.every == 0 and not trainer.sanity_checking
        self.samples, self.rows = 0 if due else self.count, None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Draw as many in every process, which sharded weights need; those past the first `count` are not counted."""
        b, left = len(batch["key"]), self.count - self.samples
        self.samples += b * trainer.world_size
        if left > 0:
            part = {name: value[:left] for name, value in batch.items()}
            self._add(pl_module, part, trainer, counted=max(0, left - b * trainer.global_rank))

    def _add(self, stage: Any, batch: Mapping[str, Any], trainer: Trainer, *, counted: int) -> None:
        with isolate_rng(), trainer.precision_plugin.forward_context():
            torch.manual_seed(0)  # masks, where the decoder inpaints
            z = stage.network.standardise.inverse(self.draw.sample(stage, batch, seeds_of(batch["key"])))
            drawn = self.features.drawn(self.draw.to_pixels(stage.network, z).float())
        if self.rows is None:
            self.rows = FeatureTable(columns=("drawn", "real"), dim=drawn.shape[1]).to(drawn.device)
        self.rows.update(drawn=drawn[:counted].float(), real=self.features.real(batch)[:counted])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows is not None:
            rows, name = self.rows.compute(), self.features.name
            figures = {
                f"val/frechet_{name}": frechet_distance(rows["real"], rows["drawn"]),
                f"val/cosine_{name}": cosine(rows["drawn"], rows["real"]),
            }
            pl_module.log_dict(figures, sync_dist=True)
            self.rows = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]
