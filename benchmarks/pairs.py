"""Networks of ours beside diffusers', of the same random weights."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, VQModel
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timing import Effort
from torch import nn

from open_kandinsky.config import compose
from open_kandinsky.diffusion.process import alpha_bar_prev
from open_kandinsky.pipeline.execution import compiled, faster_compiled, packed
from open_kandinsky.weights.diffusers import config, keys
from open_kandinsky.weights.keymap import Rule

Networks = dict[str, Any]  # by part


class Pair(NamedTuple):
    ours: Any
    theirs: Any


def network(*choices: str) -> tuple[Any, dict[str, Any]]:
    """Ours as conf/ describes it, and its description."""
    cfg: Any = compose.compose("train", [*choices, "data.path=none"]).stage.network
    torch.manual_seed(0)
    return instantiate(cfg, _convert_="all").eval(), OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore


def paired(ours: nn.Module, theirs: nn.Module, rules: Sequence[Rule]) -> Pair:
    """No weight is zero, as after a training: a network that begins as its skips would let errors hide."""
    with torch.no_grad():
        for parameter in ours.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.02)
    theirs.load_state_dict(keys.to_diffusers(rules, ours.state_dict()))
    return Pair(ours, theirs.eval())


def of_width(channels: int) -> list[str]:
    """The U-Net of 2.1's shape, at another width."""
    return [f"stage.network.channels={channels}", f"stage.network.emb={4 * channels}"]


def unet(channels: int) -> Pair:
    """The decoder's, of 2.1's shape."""
    ours, cfg = network("stage=decoder", *of_width(channels))
    theirs = UNet2DConditionModel.from_config(config.as_unet(cfg, 32))
    return paired(ours, theirs, keys.unet(levels=4, blocks=3))


def prior(width: int, heads: int) -> Pair:
    """2.1's 20 layers."""
    ours, cfg = network("stage=prior", f"stage.network.width={width}", f"stage.network.heads={heads}")
    theirs = PriorTransformer.from_config(config.as_prior(cfg))
    return paired(ours, theirs, keys.prior(layers=20))


def movq(choice: str) -> Pair:
    ours, cfg = network("stage=movq", "sampling=none", f"network/movq={choice}", "data.padding=false")
    theirs = VQModel.from_config(config.as_movq(cfg, 256))
    rules = keys.movq(levels=4, blocks=cfg["blocks"], attention_levels=cfg["attention_levels"])
    return paired(ours, theirs, rules)


def ways(effort: Effort, networks: Mapping[str, nn.Module], device: str = "cpu") -> Iterator[tuple[str, Networks]]:
    """By part, as `load` has them, and then compiled: that takes minutes and memory, and is not for quick mode."""
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last).requires_grad_(False)
    yield "as it is", {part: packed(copy.deepcopy(network)) for part, network in networks.items()}
    if not effort.quick:
        made = {part: compiled if faster_compiled(part, device) else packed for part in networks}
        yield "compiled", {part: made[part](network) for part, network in networks.items()}


def in_float64(scheduler: Any, alpha_bar: torch.Tensor) -> Any:
    """With our table in place of theirs of float32, whose rounding is no part of what is compared."""
    scheduler.alphas_cumprod, scheduler.alphas = alpha_bar, alpha_bar / alpha_bar_prev(alpha_bar)
    scheduler.betas, scheduler.one = 1 - scheduler.alphas, alpha_bar.new_ones(())
    scheduler.final_alpha_cumprod = alpha_bar[0]
    return scheduler


def greatest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Over the other's greatest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
