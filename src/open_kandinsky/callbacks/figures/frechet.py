"""How far a decoder's pictures lie from the validation set's: a Frechet distance on a fixed small set."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor, nn

from open_kandinsky.callbacks.figures.seeds import seeds
from open_kandinsky.callbacks.preview import Drawings, to_image, to_uint8
from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.frechet import frechet_distance
from open_kandinsky.metrics.health.embeddings import cosine
from open_kandinsky.metrics.health.rows import Rows


@runtime_checkable
class Features(Protocol):
    """Of pictures; `real` may take what the batch holds already. `name` is what they are called in the log."""

    name: str

    def drawn(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def real(self, batch: Mapping[str, Any]) -> Float[Tensor, "b d"]: ...


class OwnClip:
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

    def __init__(self, *, every: int, count: int, draw: Drawings, features: Features) -> None:
        if count < 2:
            raise UserError(f"count={count}: a Frechet distance needs two pictures, and means little below a thousand")
        self.every, self.count, self.draw, self.features = every, count, draw, features
        self.validations, self.seen = 0, 0
        self.rows: Rows | None = None

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
            z = stage.network.standardise.inverse(self.draw.sample(stage, batch, seeds(batch["key"])))
            drawn = self.features.drawn(self.draw.visible(stage.network, z).float())
        if self.rows is None:
            self.rows = Rows(columns=("drawn", "real"), dim=drawn.shape[1]).to(drawn.device)
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
