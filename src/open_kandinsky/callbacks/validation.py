"""A validation at the end of a training, whatever its interval."""

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer


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
