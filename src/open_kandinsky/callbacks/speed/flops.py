"""The floating-point operations of one training step, counted while it runs."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class StepFlops(TorchDispatchMode):
    """Counts matrix products, convolutions and attention (2 operations a multiply-add) while it is entered.

    Nothing is computed for it: it looks on at a step of the training. A compiled network runs that step uncompiled,
    and is compiled afterwards. By torch's own formulas, but not by its FlopCounterMode, which takes some operations
    apart: a step under it rounds differently, and a resumed run would not be the uninterrupted one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total, self.forward, self.backward = 0, 0, 0

    def __enter__(self) -> "StepFlops":
        # Who is asked to compile while somebody looks on (torch before 2.15) runs uncompiled ever after.
        self.uncompiled = torch.compiler.set_stance("force_eager")
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.uncompiled.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out

    def forward_ended(self) -> None:
        self.forward += self._new()

    def backward_ended(self) -> None:
        self.backward += self._new()

    def models(self) -> int:
        """The model's own so far: a backward pass is at most twice the forward pass; more is recomputed activations.

        What is computed twice to save memory is not counted (Chowdhery et al. 2022, appendix B: MFU, and not HFU).
        """
        self.forward_ended()
        return self.forward + min(self.backward, 2 * self.forward)

    def _new(self) -> int:
        return self.total - self.forward - self.backward
