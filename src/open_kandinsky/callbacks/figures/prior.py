"""What a prior draws, against the truth, against the caption's own embedding, and against what others would get."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from open_kandinsky.callbacks.figures.seeds import seeds
from open_kandinsky.diffusion.denoise import clamp, denoiser
from open_kandinsky.diffusion.guidance import guide
from open_kandinsky.diffusion.noise import PerImageNoise
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.metrics.health.embeddings import cosine, cosine_of_others, norm_ratio, retrieval, std_ratios
from open_kandinsky.metrics.health.rows import Rows

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
        noise = PerImageNoise(seeds(batch["key"]), batch["image_emb"].shape[1:], batch["image_emb"].device)
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
        self.rows: Rows | None = None

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
            self.rows = Rows(columns=columns, dim=image.shape[1]).to(image.device)
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
