"""Noise that belongs to a sample: the same at every validation, in any batch and in any process.

A validation at the end of a training, whatever its interval.

Whether an autoencoder's codebook is in use, and how its pictures look to a perceptual distance.

Where along the noise a decoder's loss lies: at small t it is detail, at large t composition.

What a prior draws, against the truth, against the caption's own embedding, and against what others would get.

How far a decoder's pictures lie from the validation set's: a Frechet distance on a fixed small set.
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


def picture_seeds(keys: Sequence[str]) -> list[int]:
    return [zlib.crc32(key.encode()) for key in keys]


class ValidateAtEnd(Callback):
    """Runs the validation after a training's last step, where its interval alone would not.

    So every run that has a validation set ends with figures, and with a preview where previews are on. Lightning
    validates before it stops early, and so it is asked to stop at the step at which it would stop anyway.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        last_step = 0 < trainer.max_steps <= trainer.global_step
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if last_step or (last_epoch and progress.is_last_batch):
            cast(Any, trainer).should_stop = True


class Codes(Callback):
    """Logs the share of codes that the whole validation set uses, and their perplexity."""

    def __init__(self) -> None:
        self.usage: CodeUsage | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        network: Any = pl_module.network
        codebook = network.codebook
        if self.usage is None:
            self.usage = CodeUsage(codes=codebook.embedding.num_embeddings).to(batch["pixels"].device)
        with trainer.precision_plugin.forward_context():
            self.usage.update(codebook.nearest(outputs["z"]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.usage is not None:
            figures = self.usage.compute()
            pl_module.log_dict({f"val/{name}": value for name, value in figures.items()}, sync_dist=True)
            self.usage = None


class Perceptual(Callback):
    """Logs val/lpips of reconstructions, by a distance of pictures in [-1, 1]."""

    def __init__(self, *, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.distance: Any = distance

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        pixels = batch["pixels"]
        figure = self.distance.to(pixels.device)(outputs["made"].float(), pixels).mean()
        pl_module.log("val/lpips", figure, batch_size=len(pixels), sync_dist=True)


class LossByTimestep(Callback):
    """Logs the validation loss of each bin of timesteps, over all processes. Weighted by counts they are val/loss.

    Takes what the stage's `validation_step` returns: `losses` and `t`, one each an example.
    """

    def __init__(self, *, bins: int) -> None:
        self.bins = bins
        self.means: BinnedMean | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.means is None:
            T = len(pl_module.alpha_bar)  # type: ignore[arg-type]
            self.means = BinnedMean(bins=self.bins, T=T).to(outputs["losses"].device)
        self.means.update(outputs["losses"], outputs["t"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.means is not None:
            found = self.means.compute()
            pl_module.log_dict({f"val/loss_t{steps}": mean for steps, mean in found.items()}, sync_dist=True)
            self.means = None


CONDITIONS = ("text_tokens", "text_emb", "text_mask")


class EmbeddingSampler:
    """Draws a batch's image embeddings; `scale` guides them, `limit` bounds |x_0| (None: not)."""

    def __init__(self, *, sampler: str, steps: int, limit: int | float | None) -> None:
        self.sampler, self.steps, self.limit = named(sampler), steps, limit

    def unguided(self, stage: Any, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]:
        return self.walk(stage, batch, self.denoise(stage, [batch[name] for name in CONDITIONS]))

    def guided(self, stage: Any, batch: Mapping[str, Any], scale: int | float) -> Float[Tensor, "b d"]:
        given = {name: batch[name] for name in CONDITIONS}
        doubled = [torch.cat([x, getattr(stage.null, name).to(x.dtype).expand_as(x)]) for name, x in given.items()]
        return self.walk(stage, batch, guide(self.denoise(stage, doubled), scale))

    def denoise(self, stage: Any, conditions: Sequence[Tensor]) -> Any:
        prefix = stage.network.prefix(*conditions)
        return denoiser(lambda x_t, t: stage.network(x_t, t, prefix), stage.parameterisation, stage.alpha_bar)

    def walk(self, stage: Any, batch: Mapping[str, Any], denoise: Any) -> Float[Tensor, "b d"]:
        denoise = denoise if self.limit is None else clamp(denoise, self.limit)
        noise = PerImageNoise(picture_seeds(batch["key"]), batch["image_emb"].shape[1:], batch["image_emb"].device)
        return stage.network.standardise.inverse(self.sampler(denoise, next(noise), stage.alpha_bar, self.steps, noise))


class PriorFigures(Callback):
    """Samples every embedding of the validation set, guided and unguided, and logs how it lies to the true ones.

    Each is drawn from noise of its own, whatever the batch or the process, and the gathered set gives the figures:
    they are the same on any number of processes that share the set evenly. They stand beside the stage's own
    val/cosine_prior (the first guess) and val/cosine_text (the caption's embedding): a prior that helps is above that.
    """

    def __init__(
        self, *, sampler: str, steps: int, scale: int | float, limit: int | float | None, retrieval: Sequence[int]
    ) -> None:
        self.draw = EmbeddingSampler(sampler=sampler, steps=steps, limit=limit)
        self.scale, self.retrieval = scale, list(retrieval)
        self.rows: FeatureTable | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        image = batch["image_emb"]
        if self.rows is None:
            columns = ("image", "text", "sampled", "unguided")
            self.rows = FeatureTable(columns=columns, dim=image.shape[1]).to(image.device)
        with trainer.precision_plugin.forward_context():
            unguided = self.draw.unguided(pl_module, batch)
            sampled = unguided if self.scale == 1 else self.draw.guided(pl_module, batch, self.scale)
        self.rows.update(image=image, text=batch["text_emb"], sampled=sampled, unguided=unguided)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows is not None:
            pl_module.log_dict(self.figures(self.rows.compute()), sync_dist=True)
            self.rows = None

    def figures(self, rows: Mapping[str, Float[Tensor, "n d"]]) -> dict[str, float]:
        image, text = rows["image"], rows["text"]
        found = {
            "val/text_cosine_others": cosine_of_others(text, image),
            "val/sampled_cosine_to_text": cosine(rows["sampled"], text),
            **{f"val/text_retrieval_{k}": retrieval(text, image, k) for k in self.retrieval},
        }
        for name in ("sampled", "unguided"):
            found |= {f"val/{name}_{figure}": value for figure, value in self.against(rows[name], image).items()}
        return found

    def against(self, drawn: Float[Tensor, "n d"], image: Float[Tensor, "n d"]) -> dict[str, float]:
        spread = std_ratios(drawn, image)
        return {
            "cosine": cosine(drawn, image),
            "cosine_others": cosine_of_others(drawn, image),
            "norm_ratio": norm_ratio(drawn, image),
            "std_ratio": float(spread.mean()),
            "std_ratio_least": float(spread.min()),
            **{f"retrieval_{k}": retrieval(drawn, image, k) for k in self.retrieval},
        }


@runtime_checkable
class PictureFeatures(Protocol):
    """Of pictures; `real` may take what the batch holds already. `name` is what they are called in the log."""

    name: str

    def drawn(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def real(self, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]: ...


class CacheClipFeatures:
    """Embeddings by the CLIP that made the run's cache: nothing to fetch, and the real ones are in the batch.

    `prepare` is how the cache's pictures entered it (data.transforms.ClipPixels).
    """

    name = "own_clip"

    def __init__(self, *, clip: Callable[[], nn.Module], prepare: Callable[[Image.Image], Tensor]) -> None:
        with isolate_rng():  # a network is made at random before its weights are read
            self.clip: Any = clip()
        self.prepare = prepare

    def drawn(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        clip_pixels = torch.stack([self.prepare(to_image(picture)) for picture in to_uint8(pixels)])
        return self.clip.to(pixels.device).encode_image(clip_pixels.to(pixels.device))

    def real(self, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]:
        return batch["image_emb"]


class FrechetOfDrawings(Callback):
    """Draws the first `count` validation samples from their true embeddings, once in `every` validations.

    Each from noise of its own, the same every time, with the averaged weights where there are any: the same pictures
    on any number of processes. Logs val/frechet_<features' name>, whose bias depends on the count, and
    val/cosine_<name>, the mean cosine of a drawn picture's features to the real one's.
    """

    def __init__(self, *, every: int, count: int, draw: Drawings, features: PictureFeatures) -> None:
        if count < 2:
            raise UserError(f"count={count}: a Frechet distance needs two pictures, and means little below a thousand")
        self.every, self.count, self.draw, self.features = every, count, draw, features
        self.validations, self.seen = 0, 0
        self.rows: FeatureTable | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = self.validations % self.every == 0 and not trainer.sanity_checking
        self.seen, self.rows = 0 if due else self.count, None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Every process draws as many, for sharded weights need all of them; of the last ones some are not counted."""
        b, left = len(batch["key"]), self.count - self.seen
        self.seen += b * trainer.world_size
        if left > 0:
            part = {name: value[:left] for name, value in batch.items()}
            self._add(pl_module, part, trainer, counted=max(0, left - b * trainer.global_rank))

    def _add(self, stage: Any, batch: Mapping[str, Any], trainer: Trainer, *, counted: int) -> None:
        with isolate_rng(), trainer.precision_plugin.forward_context():
            torch.manual_seed(0)  # masks, where the decoder inpaints
            z = stage.network.standardise.inverse(self.draw.sample(stage, batch, picture_seeds(batch["key"])))
            drawn = self.features.drawn(self.draw.visible(stage.network, z).float())
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
