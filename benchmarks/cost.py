"""What a training step costs, counted and not measured: FLOPs, memory, and GPU hours at an assumed share of the peak.

    python benchmarks/cost.py experiment=decoder_21_256 [more overrides]        (make memory ARGS="experiment=...")

The stage of any training configuration runs one step on tensors that hold nothing, under bf16 autocast; PyTorch's
counter adds up matrix products, convolutions and attention, forward and backward. Activations are what autograd keeps.
Hours are FLOPs / (peak x 40 %): a derivation. What a run reaches, its own speed/mfu says.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from open_kandinsky import configuration

PEAK = {"A100": 312e12, "H100": 989e12}  # dense bf16, FLOP/s, by NVIDIA's data sheets
SHARE = 0.4  # of the peak: an assumption
GB = 1e9


class Cost(NamedTuple):
    """Of one example, and of what every process holds."""

    flops: int  # forward and backward
    activations: int  # bytes
    weights: int  # numbers that are trained
    copies: int  # bytes: the weights in bf16, which autocast keeps for the backward pass


def counted(stage: LightningModule, cfg: DictConfig) -> Cost:
    """From steps on one and on three examples, which hold nothing."""
    (flops, one), (_, three) = (step(stage, empty_batch(cfg, n)) for n in (1, 3))
    activations = (three - one) // 2
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    return Cost(flops, activations, trained, one - activations)


def step(stage: LightningModule, batch: dict[str, Any]) -> tuple[int, int]:
    """FLOPs, and bytes that autograd keeps beside the weights."""
    stage.null.set(**nulls(batch))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with FlopCounterMode(display=False) as flops, kept() as sizes, torch.autocast("cpu", torch.bfloat16):
        stage.training_step(batch, 0).backward()
    own = {p.untyped_storage()._cdata for p in stage.parameters()}
    return flops.get_total_flops(), sum(size for name, size in sizes.items() if name not in own)


@contextmanager
def kept() -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps for the backward pass."""
    sizes: dict[int, int] = {}
    held = []  # so that no two storages have one address

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        held.append(storage)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def empty_batch(cfg: DictConfig, n: int) -> dict[str, Any]:
    """Tensors of the shapes that a stage's data have."""
    d = cfg.dims
    decoder = "text_tokens" in cfg.data.fields and "z" in cfg.data.fields
    text, width = (d.decoder_text, d.decoder_text_width) if decoder else (d.clip, d.clip_text_width)
    shapes = {
        "z": (d.latent_channels, d.image_size // 8, d.image_size // 8),
        "image_emb": (d.clip,),
        "text_emb": (text,),
        "text_tokens": (d.text_length, width),
    }
    batch: dict[str, Any] = {name: torch.empty(n, *shape) for name, shape in shapes.items()}
    return batch | {"text_mask": torch.ones(n, d.text_length, dtype=torch.bool), "key": ["none"] * n}


def nulls(batch: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in batch.items() if isinstance(value, Tensor)}


def report(cfg: DictConfig, cost: Cost) -> dict[str, Any]:
    """What a person plans with."""
    batch, steps = cfg.data.batch_size, cfg.trainer.max_steps
    state = cost.weights * 4 * 5  # weights, gradients, two moments, average: float32
    examples = batch * steps * cfg.trainer.devices * cfg.trainer.get("num_nodes", 1)
    hours = {f"{gpu} hours": examples * cost.flops / (peak * SHARE) / 3600 for gpu, peak in PEAK.items()}
    return {
        "trained weights": cost.weights,
        "GFLOP an example": round(cost.flops / 1e9, 1),
        "GB of weights, gradients, moments, average": round(state / GB, 2),
        "GB of bf16 copies": round(cost.copies / GB, 2),
        "MB of activations an example": round(cost.activations / 1e6, 1),
        f"GB of activations at batch_size={batch}": round(cost.activations * batch / GB, 1),
        "examples": examples,
    } | {name: round(value, 1) for name, value in hours.items()}


def main() -> None:
    cfg = configuration.compose("train", sys.argv[1:])
    with FakeTensorMode():
        stage = instantiate(cfg.stage, _convert_="all")
        print(json.dumps(report(cfg, counted(stage, cfg)), indent=2))


if __name__ == "__main__":
    main()
