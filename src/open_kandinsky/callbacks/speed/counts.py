"""What the data counts while it is read: samples seen, samples skipped and why."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from lightning import Callback, LightningModule, Trainer

from open_kandinsky.callbacks.phases import logs_now


@runtime_checkable
class Counted(Protocol):
    """Data that counts. `counts`: this process's so far, under the same names in every process."""

    def counts(self) -> Mapping[str, int]: ...


class Counts(Callback):
    """Logs data/<name> as often as the loss, summed over processes, where the run's data counts."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        data: object = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Counted) and logs_now(trainer) and (mine := data.counts()):
            numbers = torch.tensor([float(mine[name]) for name in sorted(mine)], device=pl_module.device)
            total = trainer.strategy.reduce(numbers, reduce_op="sum").tolist()  # type: ignore[union-attr]
            pl_module.log_dict({f"data/{name}": n for name, n in zip(sorted(mine), total, strict=True)})
