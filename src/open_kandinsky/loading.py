"""From folders to networks: the one place beside the verbs where a config becomes objects.

A run folder of a stage holds `config.yaml` and `weights.safetensors`; one of the whole system holds four of them,
`clip/`, `movq/`, `prior/` and `decoder/`, and `text/` where the decoder has a text encoder of its own. Both are read
with `load`, and so are folders of diffusers' Kandinsky 2.1 and 2.2 and of the original 2.1 files.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from open_kandinsky.config import CONF
from open_kandinsky.core.errors import UserError
from open_kandinsky.diffusion.samplers import named
from open_kandinsky.networks.condition import ImageCondition
from open_kandinsky.pipeline import Diffusion, Pipeline, Sampling, execution
from open_kandinsky.pipeline.execution import Device, Turns, at_home, one, placed
from open_kandinsky.pipeline.inpainting import MAX_SIDE, MIN_SIDE
from open_kandinsky.weights import build, checkpoint, native, store
from open_kandinsky.weights import source as sources
from open_kandinsky.weights.diffusers import folder as diffusers
from open_kandinsky.weights.kandinsky21 import folder
from open_kandinsky.weights.kandinsky21 import folder as kandinsky21
from open_kandinsky.weights.part import TEXT, Part, Picked, agree, left_out
from open_kandinsky.weights.source import Source

logger = logging.getLogger(__name__)


class Picks(NamedTuple):
    """Which of the weights that a training's checkpoint holds: of MoVQGAN's, and of ours."""

    movqgan: kandinsky21.Pick
    ours: Callable[[Path], Picked]


USUAL = Picks(folder.raw, checkpoint.usual)


def load(
    source: Source,
    *,
    device: Device | Mapping[str, Device] = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    compile: bool = False,
) -> Pipeline:
    """The assembled system, in eval mode, from a folder or a mapping of some of its parts to folders.

    `load({"rest": "runs/quickstart", "prior": "runs/prior_linear"})` takes all parts from one folder but the prior.
    `device` may be a mapping, too; the parts that it does not name are where "" is, or on the CPU, and all results are
    where the decoder is. With `offload` the parts take turns on the one device, where the largest must fit and not the
    sum, and wait in main memory. With `compile` prior, decoder and MoVQ go through torch.compile, a prior on a CPU
    excepted: for many pictures of one size. What is not compiled and on a CPU holds its weights as it multiplies them,
    and cannot be trained; what `trained` gives can. Raises ValueError for a folder that is none, lacks a part, or holds
    parts that do not fit together.
    """
    if compile:
        execution.check(device, offload=offload)
    parts = find(source)
    agree(parts)
    devices = placed(device)
    home = devices["decoder"]
    if offload:
        turns = Turns(one(device))
        made = {part: turns.seat(network(found, dtype)) for part, found in parts.items()}
    else:
        made = {part: network(found, dtype).to(devices[part]) for part, found in parts.items()}
        for part in execution.DRAWING:
            quickened = execution.compiled if compile and execution.pays(part, devices[part]) else execution.packed
            made[part] = quickened(made[part])
        made = {part: each if devices[part] == home else at_home(each, home) for part, each in made.items()}
    diffusions = {part: diffusion(parts[part], part, made[part], home) for part in ("prior", "decoder")}
    return Pipeline(
        movable=not (compile or offload or isinstance(device, Mapping)),
        clip=made["clip"],
        text=text_encoder(parts, made),
        movq=made["movq"],
        size=image_size(parts["decoder"]),
        device=home,
        **diffusions,
    )


def image_size(decoder: Part) -> int:
    """Pixels a side, as it was trained. ValueError for what is none."""
    side = decoder.config["dims"].get("image_size")
    if not isinstance(side, int) or not MIN_SIDE <= side <= MAX_SIDE:
        raise UserError(f"{decoder.folder}: dims.image_size is {side}; sides are {MIN_SIDE} to {MAX_SIDE} pixels")
    return side


def find(source: Source, picks: Picks = USUAL) -> dict[str, Part]:
    """Each part as it lies on disk, the text encoder only where there is one. ValueError where one is missing.

    `picks` says which weights of a training's checkpoint are meant: of MoVQGAN's, and of ours.
    """
    return sources.parts(source, forms(picks))


def part(name: str, source: Source) -> Part:
    """One part of a system, whose others need not be there. ValueError where it is missing."""
    return sources.part(name, source, forms(USUAL))


def forms(picks: Picks) -> list[sources.Find]:
    """The ways in which a part may lie on a disk."""
    return [partial(native.find, pick=picks.ours), diffusers.find, partial(kandinsky21.find, pick=picks.movqgan)]


def locate(source: Source) -> dict[str, Path]:
    """The folder of each part."""
    return {name: part.folder for name, part in find(source).items()}


def fingerprints(source: Source) -> dict[str, str]:
    """Of each part, what its files' contents say it is."""
    return {name: " ".join(store.sha256(file) for file in part.files) for name, part in find(source).items()}


def trained(folder: str | Path, part: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The network of one stage's run folder, as `network` makes it. ValueError where it is of another `part`."""
    found = native.exported(Path(folder))
    held = native.part_of(found.config, found.folder)
    if part not in (None, held):
        raise UserError(f"{folder} holds weights of a {held}, and those of a {part} are wanted")
    return network(found, dtype)


def network(part: Part, dtype: torch.dtype = torch.float32) -> Any:
    """A part's trained network, frozen, in eval mode; buffers, which are statistics, stay float32.

    ValueError for weights of another network, and for such as are no numbers.
    """
    name, where = native.part_of(part.config, part.folder), str(part.folder)
    elements = sum(file.stat().st_size for file in part.files if file.is_file())
    made = build.network(name, part.config["stage"]["network"], elements=elements, where=where)
    state, dropped = part.read(made.state_dict())
    if dropped:
        logger.info("%s: %s", part.folder, left_out(dropped))
    parameters, like = {name for name, _ in made.named_parameters()}, made.state_dict()
    for name in list(state):  # in place, so that no more than one tensor is held twice
        if name in like and state[name].is_floating_point() != like[name].is_floating_point():
            raise UserError(f"{where}: {name!r} is of {state[name].dtype}, and {like[name].dtype} is wanted")
        state[name] = numbers(state[name], dtype if name in parameters else torch.float32, name, part.folder)
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False).eval()


def numbers(x: Tensor, dtype: torch.dtype, name: str, folder: Path) -> Tensor:
    """In that precision, convolutions in channels_last. ValueError for what is no number, or becomes none."""
    if not x.is_floating_point():
        return x
    made = x.to(dtype, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
    if not finite(made):
        cause = f"too great for {dtype}" if finite(x) else "damaged, or of a training that diverged"
        raise UserError(f"{folder}: {name!r} holds what is no number (NaN or infinite): {cause}")
    return made


def finite(x: Tensor) -> bool:
    """In one pass and without a copy, which of the largest tensor would be a part of the peak."""
    return all(bool(end.isfinite()) for end in x.aminmax())


def diffusion(part: Part, name: str, made: Any, device: Device) -> Diffusion:
    """Sampled as its weights say, and where they do not, as Kandinsky 2.1."""
    stage, where = part.config["stage"], str(part.folder)
    if "alpha_bar" not in stage or "parameterisation" not in stage:
        raise UserError(f"{where}: no weights of a {name}, whose config has stage.alpha_bar and parameterisation")
    return Diffusion(
        network=made,
        alpha_bar=build.schedule(stage["alpha_bar"], where).to(device),
        parameterisation=build.parameterisation(stage["parameterisation"], where),
        sampling=sampling(part, name),
    )


def sampling(part: Part, name: str) -> Sampling:
    """A part's own, and what its source leaves open of it as conf/sampling has it. ValueError for what cannot be."""
    found = with_sampling(part, name)["sampling"]
    known = Sampling.__dataclass_fields__.keys()
    if stray := sorted(map(str, found.keys() - known)):
        raise UserError(f"{part.folder}: sampling.{stray[0]} is none of {', '.join(known)}")
    try:
        return Sampling(**found).but(**{key: found[key] for key in found if key != "clamp"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{part.folder}: its sampling cannot be: {error}") from error


def with_sampling(part: Part, name: str) -> dict[str, Any]:
    """A part's whole config: what its source leaves open of sampling is as conf/sampling has it."""
    cfg, published = dict(part.config), CONF / "sampling" / f"{name}.yaml"
    if published.is_file():
        cfg["sampling"] = {**yaml.safe_load(published.read_text()), **(cfg.get("sampling") or {})}
    return cfg


def check_steps(source: Source, options: Mapping[str, Any]) -> None:
    """ValueError for numbers of steps that a part's schedule does not have, before its weights are read."""
    parts = find(source)
    for name, prefix in (("prior", "prior_"), ("decoder", "")):
        found = parts[name]
        own = sampling(found, name).but(**{key: options.get(f"{prefix}{key}") for key in ("steps", "sampler")})
        named(own.sampler).spacing(build.schedule(found.config["stage"]["alpha_bar"], str(found.folder)), own.steps)


def text_encoder(parts: Mapping[str, Part], made: Mapping[str, Any]) -> Any:
    """What the decoder's captions are read by: nothing, an encoder of its own, or CLIP.

    ValueError for CLIP where the decoder reads another's states.
    """
    if isinstance(made["decoder"].condition, ImageCondition):
        return None
    if TEXT in made:
        return made[TEXT]
    width, own = (made["decoder"].condition.text_tokens.in_features, parts["clip"].config["dims"]["clip_text_width"])
    if width != own:
        told = f"the decoder ({parts['decoder'].folder}) reads text states {width} wide, and CLIP's are {own} wide"
        raise UserError(f"{told}: its own text encoder is missing; give its folder as text, {{text: FOLDER, ...}}")
    return made["clip"]
