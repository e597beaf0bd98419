"""Builds what a config that comes with weights describes: networks, schedules, parameterisations of a closed list.

Somebody else may have written the config. So only classes listed here are built, from plain values, and a network is
first built without memory, which is given up as soon as it is larger than its files of weights.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import isfinite
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from open_kandinsky.core.errors import UserError

NETWORKS, DIFFUSION = "open_kandinsky.networks", "open_kandinsky.diffusion"
# Part of a system -> what its network may be. A network of your own is named here, too.
PARTS = {
    "clip": (f"{NETWORKS}.clip.Clip",),
    "movq": (f"{NETWORKS}.movq.MoVQ",),
    "prior": tuple(
        f"{NETWORKS}.prior.{name}" for name in ("DiffusionPrior", "LinearPrior", "ResidualPrior", "NoPrior")
    ),
    "decoder": (f"{NETWORKS}.unet.UNet",),
    "text": (f"{NETWORKS}.text.MultilingualClip",),
}
CONDITIONS = tuple(f"{NETWORKS}.condition.{name}" for name in ("TextImageCondition", "ImageCondition"))
SCHEDULES = tuple(f"{DIFFUSION}.schedule.{name}" for name in ("linear", "cosine"))
MEANS = tuple(f"{DIFFUSION}.parameterisation.{name}" for name in ("X0", "Eps", "V"))
PARAMETERISATIONS = (*MEANS, *(f"{DIFFUSION}.parameterisation.{name}" for name in ("LearnedRange", "UnusedRange")))
NESTED = {"condition": CONDITIONS, "mean": MEANS}  # arguments that are objects themselves
TOWER = {"layers", "width", "mlp_ratio", "ls_init_value"}
# Arguments that are mappings, and what may be in them: others of open_clip's and transformers' name code and files.
SIZES = {
    "vision": TOWER | {"image_size", "patch_size", "head_width", "patch_dropout"},
    "text": TOWER | {"context_length", "vocab_size", "heads"},
    "transformer": {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "hidden_act"),
    },
}
TEXTS = {"tokenizer", "transformer.hidden_act"}  # arguments that are texts and no numbers
LONGEST = 100_000  # timesteps of a schedule
TENSORS = 20_000  # parameters of a network; Kandinsky's largest has 1,135


def part_of(config: Mapping[str, Any]) -> str | None:
    """The part of a system that a stage's config describes, by its network; None for another network."""
    target = config["stage"]["network"].get("_target_")
    return next((part for part, targets in PARTS.items() if target in targets), None)


def network(part: str, node: Any, *, elements: int, where: str) -> nn.Module:
    """A part's network with parameters on the meta device and real buffers.

    ValueError where it would have more than `elements` numbers, the size in bytes of its files of weights.
    """
    with torch.device("meta"), limited(elements, where):
        build(node, PARTS[part], where)
    with parameters_on_meta():
        return build(node, PARTS[part], where)


def schedule(node: Any, where: str) -> Tensor:
    """The table of alpha_bar that a config describes."""
    T = node.get("T") if isinstance(node, Mapping) else None
    if T is not None and (not isinstance(T, int) or not 1 <= T <= LONGEST):
        raise UserError(f"{where}: stage.alpha_bar.T is {T}; a schedule has 1 to {LONGEST:,} timesteps")
    return build(node, SCHEDULES, where)


def parameterisation(node: Any, where: str) -> Any:
    return build(node, PARAMETERISATIONS, where)


def build(node: Any, targets: tuple[str, ...], where: str) -> Any:
    """The object that a config node describes. ValueError for a class that is not listed, and for wrong arguments."""
    target = node.get("_target_") if isinstance(node, Mapping) else node
    if target not in targets:
        names = ", ".join(name.rpartition(".")[2] for name in targets)
        raise UserError(f"{where}: refused to build {target!r}; here it may be {names}")
    constructor = resolve_name(str(target))
    arguments = {name: argument(name, value, where) for name, value in node.items() if name != "_target_"}
    try:
        inspect.signature(constructor).bind(**arguments)
        return constructor(**arguments)
    except TooLarge:
        raise
    except Exception as error:  # for impossible numbers constructors raise nearly anything
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: its config does not make a {target.rpartition('.')[2]}: {text}") from error


def argument(name: str, value: Any, where: str) -> Any:
    """A constructor's argument: an object of NESTED, a mapping of SIZES, or a plain value."""
    if name in NESTED:
        return build(value, NESTED[name], where)
    if name in SIZES and isinstance(value, Mapping):
        if stray := sorted(map(str, value.keys() - SIZES[name])):
            raise UserError(f"{where}: {name}.{stray[0]} is none of {', '.join(sorted(SIZES[name]))}")
        return {key: plain(f"{name}.{key}", each, where) for key, each in value.items()}
    return plain(name, value, where)


def plain(name: str, value: Any, where: str) -> Any:
    """The value. ValueError unless it is a number, a truth value, None, or a list of these; TEXTS may be strings."""
    if isinstance(value, list):
        return [plain(name, one, where) for one in value]
    is_number = isinstance(value, int | float) and abs(value) < 1e12 and isfinite(value)
    if not (value is None or is_number or (name in TEXTS and isinstance(value, str))):
        raise UserError(f"{where}: {name} is {str(value)[:100]!r}, and no plain number")
    return value


class TooLarge(UserError):
    """A network with more numbers than its files of weights have bytes."""


ParameterHook = Callable[[nn.Module, str, nn.Parameter | None], Any]


@contextmanager
def parameter_hook(hook: ParameterHook) -> Iterator[None]:
    """Call `hook` with every parameter that a module registers within the block."""
    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def limited(elements: int, where: str) -> AbstractContextManager[None]:
    """TooLarge as soon as the modules built within the block have too many parameters, or numbers in them."""
    left = {"elements": elements, "tensors": TENSORS}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        left["elements"] -= 0 if parameter is None else parameter.numel()
        left["tensors"] -= 1
        if min(left.values()) < 0:
            raise TooLarge(f"{where}: its config asks for a network larger than its weights, {elements:,} bytes")

    return parameter_hook(count)


def parameters_on_meta() -> AbstractContextManager[None]:
    """Modules built within the block have parameters without memory, to be loaded later; buffers are real."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)

    return parameter_hook(emptied)
