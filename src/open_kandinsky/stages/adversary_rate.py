"""An adversary's learning rate, whose steps are counted from when it enters."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from open_kandinsky.stages.optimisation import MakeSchedule


def in_step(optimizer: Optimizer, *, schedule: MakeSchedule, at: int) -> LRScheduler:
    """The rate of `schedule` from its step `at` on: the autoencoder's own, for an adversary that enters then.

    For schedules that fall to the end of the run. One that only rises is given to the adversary as it is.
    """
    made = schedule(optimizer)
    assert isinstance(made, LambdaLR), "ours all are"
    factor = made.lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: factor(step + at))
