"""What a training step costs, counted and not measured: FLOPs, memory, and GPU hours at an assumed share of the peak.

    python benchmarks/cost.py experiment=kandinsky21/decoder_256 data.path=none       (make memory ARGS="...")
    python benchmarks/cost.py experiment=movq_67m data.urls=none

The stage of any training configuration runs one step on tensors that hold nothing, in the precision of its trainer;
PyTorch's counter adds up matrix products, convolutions and attention, forward and backward. Activations are what
autograd keeps where nothing is recomputed or compiled, and what is left of them with engine=recompute; engine=budget is
anything between. MoVQ's step is one with its codebook and its adversary, and without R1, which has its own steps. Hours
are FLOPs / (peak x 40 %): a derivation. What a run reaches, its own speed/mfu says.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import torch
import torch.nn.functional as F
from hydra.utils import get_class, instantiate
from lightning import LightningModule
from omegaconf import DictConfig, ListConfig
from open_clip.loss import ClipLoss
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VGG, WeightsEnum

from open_kandinsky.config import compose
from open_kandinsky.stages.clip import ClipStage
from open_kandinsky.stages.decoder import DecoderStage
from open_kandinsky.stages.movq import MoVQStage
from open_kandinsky.stages.parallel import GB, MemoryBudget, saved_for_backward, storages

PEAK = {"A100": 312e12, "H100": 989e12}  # dense bf16, FLOP/s, by NVIDIA's data sheets
SHARE = 0.4  # of the peak: an assumption


class Cost(NamedTuple):
    """Of one example, and of what every process holds."""

    flops: int  # forward and backward
    activations: int  # bytes
    inside: int  # bytes of them that are inside of blocks: engine=recompute does not keep these
    weights: int  # numbers that are trained
    frozen: int  # numbers that are not
    copies: int  # bytes: the weights in bf16, which autocast keeps for the backward pass


def counted(stage: LightningModule, cfg: DictConfig) -> Cost:
    """From steps on one and on three examples, which hold nothing."""
    (flops, one), (_, three) = (step(stage, cfg, n) for n in (1, 3))
    activations = (three - one) // 2
    weights = Counter[bool]()
    for parameter in stage.parameters():
        weights[parameter.requires_grad] += parameter.numel()
    return Cost(flops, activations, inside_blocks(stage, cfg), weights[True], weights[False], one - activations)


def inside_blocks(stage: LightningModule, cfg: DictConfig) -> int:
    """Bytes of activations that one more example adds between a block's inputs and its outputs."""
    budget, found = MemoryBudget(gigabytes=math.inf), []  # it counts; what it decides is not asked for
    for unit in stage.network.units():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        budget(unit, 0)
    for n in (1, 3):
        step(stage, cfg, n)
        found.append(sum(cost.inside for cost in budget.costs.values()))
        budget.costs, budget.kept = {}, None
    return (found[1] - found[0]) // 2


def step(stage: LightningModule, cfg: DictConfig, n: int) -> tuple[int, int]:
    """FLOPs, and bytes that autograd keeps beside the weights: the most before any of the step's backward passes."""
    batch, own, kept, idle = empty_batch(cfg, n), storages(stage.parameters()), [], MagicMock()
    with FlopCounterMode(display=False) as flops, saved_for_backward() as sizes, precision(cfg.trainer):

        def backward(loss: Tensor) -> None:
            kept.append(sum(size for name, size in sizes.items() if name not in own))
            loss.backward()
            sizes.clear()

        idle.return_value = (MagicMock(), MagicMock())  # an optimiser each, and a schedule
        asked = dict.fromkeys(("log", "optimizers", "lr_schedulers", "clip_gradients"), idle)
        with patch.multiple(stage, manual_backward=backward, **asked):
            loss = stage.training_step(batch, 0)
            if isinstance(loss, Tensor):
                backward(loss)
    return flops.get_total_flops(), max(kept)


@contextmanager
def precision(trainer: DictConfig) -> Iterator[None]:
    """The trainer's, on a CPU by a GPU's rules where it asks for one: a GPU's autocast has norms in float32."""
    norms = ("group_norm", "layer_norm") if trainer.accelerator != "cpu" else ()
    with ExitStack() as stack:
        if "mixed" in str(trainer.precision):
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))  # float16 has as many bytes
            for name in norms:
                stack.enter_context(patch.object(F, name, in_float32(getattr(F, name))))
        yield


def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: norm(x.float(), *args, **kwargs)


def made(cfg: DictConfig) -> LightningModule:
    """The stage, as far into its training as it gets, with what a run would give it; no weights are fetched."""
    with patch.object(WeightsEnum, "get_state_dict"), patch.object(VGG, "load_state_dict"):
        stage = instantiate(cfg.stage, _convert_="all")
    if isinstance(stage, ClipStage):
        stage.contrast = ClipLoss()
    elif isinstance(stage, MoVQStage):
        stage.update_usage = MagicMock()  # counts of what holds nothing
        stage.adversary_from = stage.adversary_ramp = stage.quantise_from = 0
        for frozen in filter(None, stage.pixel_loss.perceptual):
            frozen.to = MagicMock(return_value=frozen)  # it is there; what holds nothing cannot be moved
    else:
        stage.null.set(**nulls(empty_batch(cfg, 1)))
    return stage


def empty_batch(cfg: DictConfig, n: int) -> dict[str, Any]:
    """Tensors of the shapes that a stage's data have."""
    d = cfg.dims
    decoder = get_class(cfg.stage._target_) is DecoderStage
    text, width = (d.decoder_text, d.decoder_text_width) if decoder else (d.clip, d.clip_text_width)
    shapes = {
        "pixels": (3, d.image_size, d.image_size),
        "clip_pixels": (3, d.clip_size, d.clip_size),
        "z": (d.latent_channels, d.image_size // 8, d.image_size // 8),
        "image_emb": (d.clip,),
        "text_emb": (text,),
        "text_tokens": (d.text_length, width),
    }
    batch: dict[str, Any] = {name: torch.empty(n, *shape) for name, shape in shapes.items()}
    words = {"text_mask": torch.ones(n, d.text_length, dtype=torch.bool), "caption": ["none"] * n}
    return batch | words | {"key": ["none"] * n}


def nulls(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in batch.items() if isinstance(value, Tensor)}


def processes(trainer: DictConfig) -> int | None:
    """None where devices are what a machine happens to have (-1, auto)."""
    devices = trainer.devices
    count = len(devices) if isinstance(devices, ListConfig) else int(devices) if str(devices).isdecimal() else None
    return count and count * trainer.get("num_nodes", 1)


def report(cfg: DictConfig, cost: Cost) -> dict[str, Any]:
    """What a person plans with."""
    batch = cfg.data.batch_size
    state = (5 * cost.weights + 2 * cost.frozen) * 4  # float32; what is frozen has a weight and an average
    return {
        "trained weights": cost.weights,
        "GFLOP an example": round(cost.flops / 1e9, 1),
        "GB of weights, gradients, moments, average": round(state / GB, 2),
        "GB of bf16 copies": round(cost.copies / GB, 2),
        "MB of activations an example": round(cost.activations / 1e6, 1),
        f"GB of activations at batch_size={batch}": round(cost.activations * batch / GB, 1),
        "the same with engine=recompute": round((cost.activations - cost.inside) * batch / GB, 1),
    } | hours(cfg, cost)


def hours(cfg: DictConfig, cost: Cost) -> dict[str, Any]:
    """Nothing where training has no end; of each process where their number is not known."""
    steps, of_all = cfg.trainer.max_steps, processes(cfg.trainer)
    if steps < 0:
        return {}
    of = "" if of_all else " of each process"
    examples = cfg.data.batch_size * steps * (of_all or 1)
    taken = {f"{gpu} hours{of}": examples * cost.flops / (peak * SHARE) / 3600 for gpu, peak in PEAK.items()}
    return {f"examples{of}": examples} | {name: round(value, 1) for name, value in taken.items()}


def main() -> None:
    cfg = compose.compose("train", sys.argv[1:])
    with FakeTensorMode():
        print(json.dumps(report(cfg, counted(made(cfg), cfg)), indent=2))


if __name__ == "__main__":
    main()
