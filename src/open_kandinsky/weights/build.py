"""What may be built of a config that comes with weights: networks, schedules and parameterisations of a closed list.

Somebody else may have written the config. So nothing is imported by a name that it gives, values are plain, and a
network is first built without memory, which ends as soon as it is larger than the files that are to fill it.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """The part of a system that a stage's config is of, by its network; None where it is of none."""
    target = config["stage"]["network"].get("_target_")
    return next((part for part, targets in PARTS.items() if target in targets), None)


def network(part: str, node: Any, *, elements: int, where: str) -> nn.Module:
    """A part's network whose parameters hold no memory; buffers are made.

    ValueError where it would have more than `elements` numbers, the size of the files that are to fill it.
    """
    targets = PARTS[part]
    with torch.device("meta"), limited(elements, where):
        made(node, targets, where)
    with parameters_on_meta():
        return made(node, targets, where)


def schedule(node: Any, where: str) -> Tensor:
    """alpha_bar of each timestep."""
    T = node.get("T") if isinstance(node, Mapping) else None
    if T is not None and (not isinstance(T, int) or not 1 <= T <= LONGEST):
        raise UserError(f"{where}: stage.alpha_bar.T is {T}; a schedule has 1 to {LONGEST:,} timesteps")
    return made(node, SCHEDULES, where)


def parameterisation(node: Any, where: str) -> Any:
    return made(node, PARAMETERISATIONS, where)


def made(node: Any, targets: tuple[str, ...], where: str) -> Any:
    """The object that a node describes. ValueError for one that is not listed, and for arguments that do not fit."""
    target = node.get("_target_") if isinstance(node, Mapping) else node
    if target not in targets:
        known = ", ".join(name.rpartition(".")[2] for name in targets)
        raise UserError(f"{where}: refused to build {target!r}; here it may be {known}")
    given = {name: value for name, value in node.items() if name != "_target_"}
    make = resolve_name(str(target))
    arguments = {name: argument(name, value, where) for name, value in given.items()}
    try:
        inspect.signature(make).bind(**arguments)
        return make(**arguments)
    except TooLarge:
        raise
    except Exception as error:  # of numbers that cannot be, constructors make nearly anything
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{where}: its config does not make a {target.rpartition('.')[2]}: {told}") from error


def argument(name: str, value: Any, where: str) -> Any:
    if name in NESTED:
        return made(value, NESTED[name], where)
    if name in SIZES and isinstance(value, Mapping):
        if stray := sorted(map(str, value.keys() - SIZES[name])):
            raise UserError(f"{where}: {name}.{stray[0]} is none of {', '.join(sorted(SIZES[name]))}")
        return {key: plain(f"{name}.{key}", each, where) for key, each in value.items()}
    return plain(name, value, where)


def plain(name: str, value: Any, where: str) -> Any:
    """A number, a truth value, nothing, or a list of these; one of TEXTS is a text."""
    if isinstance(value, list):
        return [plain(name, one, where) for one in value]
    is_number = isinstance(value, int | float) and abs(value) < 1e12 and isfinite(value)
    if not (value is None or is_number or (name in TEXTS and isinstance(value, str))):
        raise UserError(f"{where}: {name} is {str(value)[:100]!r}, and no plain number")
    return value


class TooLarge(UserError):
    """A network that is larger than the files that are to fill it."""


@contextmanager
def limited(elements: int, where: str) -> Iterator[None]:
    """TooLarge as soon as modules that are made meanwhile have more parameters, or more numbers in them."""
    left = {"elements": elements, "tensors": TENSORS}

    def counted(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        left["elements"] -= 0 if parameter is None else parameter.numel()
        left["tensors"] -= 1
        if min(left.values()) < 0:
            raise TooLarge(f"{where}: its config asks for a network larger than its weights, {elements:,} bytes")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are made meanwhile hold no memory for parameters, which somebody else fills; buffers are made."""

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()
