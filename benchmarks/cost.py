"""What a training step costs, counted and not measured: FLOPs, memory, and GPU hours at an assumed share of the peak.

    python benchmarks/cost.py experiment=kandinsky21/decoder_256 data.path=none       (make memory ARGS="...")

The stage of any training configuration runs one step on tensors that hold nothing, under bf16 autocast; PyTorch's
counter adds up matrix products, convolutions and attention, forward and backward. Activations are what autograd keeps
where nothing is recomputed, and what is left of them with engine=recompute; engine=budget is anything between. Hours
are FLOPs / (peak x 40 %): a derivation. What a run reaches, its own speed/mfu says.
"""

import json
import sys
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from open_kandinsky import configuration
from open_kandinsky.stages.recomputing import GB, Budget, saved, storages

PEAK = {"A100": 312e12, "H100": 989e12}  # dense bf16, FLOP/s, by NVIDIA's data sheets
SHARE = 0.4  # of the peak: an assumption


class Cost(NamedTuple):
    """Of one example, and of what every process holds."""

    flops: int  # forward and backward
    activations: int  # bytes
    inside: int  # bytes of them that are inside of blocks: engine=recompute does not keep these
    weights: int  # numbers that are trained
    copies: int  # bytes: the weights in bf16, which autocast keeps for the backward pass


def counted(stage: LightningModule, cfg: DictConfig) -> Cost:
    """From steps on one and on three examples, which hold nothing."""
    (flops, one), (_, three) = (step(stage, empty_batch(cfg, n)) for n in (1, 3))
    activations = (three - one) // 2
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    return Cost(flops, activations, inside_blocks(stage, cfg), trained, one - activations)


def inside_blocks(stage: LightningModule, cfg: DictConfig) -> int:
    """Bytes of activations that one more example adds between a block's inputs and its outputs."""
    budget, found = Budget(gigabytes=0), []
    for unit in stage.network.units():  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        budget(unit, 0)
    for n in (1, 3):
        with torch.autocast("cpu", torch.bfloat16):
            stage.training_step(empty_batch(cfg, n), 0)
        found.append(sum(cost.inside for cost in budget.costs.values()))
        budget.costs.clear()
    return (found[1] - found[0]) // 2


def step(stage: LightningModule, batch: dict[str, Any]) -> tuple[int, int]:
    """FLOPs, and bytes that autograd keeps beside the weights."""
    stage.null.set(**nulls(batch))  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with FlopCounterMode(display=False) as flops, saved() as sizes, torch.autocast("cpu", torch.bfloat16):
        stage.training_step(batch, 0).backward()
    own = storages(stage.parameters())
    return flops.get_total_flops(), sum(size for name, size in sizes.items() if name not in own)


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
        "the same with engine=recompute": round((cost.activations - cost.inside) * batch / GB, 1),
        "examples": examples,
    } | {name: round(value, 1) for name, value in hours.items()}


def main() -> None:
    cfg = configuration.compose("train", sys.argv[1:])
    with FakeTensorMode():
        stage = instantiate(cfg.stage, _convert_="all")
        print(json.dumps(report(cfg, counted(stage, cfg)), indent=2))


if __name__ == "__main__":
    main()
