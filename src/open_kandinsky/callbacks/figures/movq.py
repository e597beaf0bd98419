"""Whether an autoencoder's codebook is in use, and how its pictures look to a perceptual distance."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from open_kandinsky.metrics.health.codes import CodeUsage


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
