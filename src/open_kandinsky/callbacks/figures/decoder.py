"""Where along the noise a decoder's loss lies: at small t it is detail, at large t composition."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from open_kandinsky.metrics.health.bins import BinnedMean


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
