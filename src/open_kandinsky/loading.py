"""From weights on disk to networks and pipelines: the one module below the commands where a config becomes objects.

A run folder of a stage holds `config.yaml` and `weights.safetensors`; one of the whole system holds four of them,
`clip/`, `movq/`, `prior/` and `decoder/`, and `text/` where the decoder has a text encoder of its own. `load` reads
both, and also folders of diffusers' Kandinsky 2.1 and 2.2 and of the original 2.1 files.
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
from open_kandinsky.pipeline.execution import Device
from open_kandinsky.pipeline.options import MAX_SIDE, MIN_SIDE
from open_kandinsky.weights import build, checkpoint, native, store
from open_kandinsky.weights import source as sources
from open_kandinsky.weights.diffusers import folder as diffusers
from open_kandinsky.weights.kandinsky21 import folder as kandinsky21
from open_kandinsky.weights.part import TEXT, Part, Picked, agree, left_out
from open_kandinsky.weights.source import Source

logger = logging.getLogger(__name__)


class Picks(NamedTuple):
    """Which weights to take from a training's checkpoint: one of MoVQGAN's, one of ours."""

    movqgan: kandinsky21.Pick
    ours: Callable[[Path], Picked]


USUAL = Picks(kandinsky21.raw, checkpoint.usual)


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

    - device: may be a mapping from parts, too; parts without a device are on that of "rest", or on the CPU. All results
      are on the decoder's device
    - offload: the parts take turns on one device, which must have room for the largest only, and wait in main memory
    - compile: prior (not on a CPU), decoder and MoVQ go through torch.compile: for many pictures of one size

    Uncompiled CPU weights are prepacked for oneDNN: inference only; `trained` gives a network that can be trained.
    Raises ValueError for a folder without weights, a missing part, and parts that do not fit together.
    """
    if compile:
        execution.check_compile(device, offload=offload)
    parts = find(source)
    agree(parts)
    devices = execution.part_devices(device)
    home = devices["decoder"]
    if offload:
        offloading = execution.ModelOffload(device)
        networks = {name: offloading.add(network(part, dtype)) for name, part in parts.items()}
    else:
        networks = {name: network(part, dtype).to(devices[name]) for name, part in parts.items()}
        for name in execution.COMPILED_PARTS:
            is_compiled = compile and execution.faster_compiled(name, devices[name])
            networks[name] = (execution.compiled if is_compiled else execution.packed)(networks[name])
        for name in networks:
            if devices[name] != home:
                networks[name] = execution.with_transfers(networks[name], home)
    return Pipeline(
        movable=not (compile or offload or isinstance(device, Mapping)),
        clip=networks["clip"],
        text=text_encoder(parts, networks),
        prior=diffusion(parts["prior"], "prior", networks["prior"], home),
        decoder=diffusion(parts["decoder"], "decoder", networks["decoder"], home),
        movq=networks["movq"],
        size=image_size(parts["decoder"]),
        device=home,
    )


def image_size(decoder: Part) -> int:
    """The side of the pictures that the decoder was trained on, in pixels. ValueError for a number that cannot be."""
    side = decoder.config["dims"].get("image_size")
    if not isinstance(side, int) or not MIN_SIDE <= side <= MAX_SIDE:
        raise UserError(f"{decoder.folder}: dims.image_size is {side}; sides are {MIN_SIDE} to {MAX_SIDE} pixels")
    return side


def find(source: Source, picks: Picks = USUAL) -> dict[str, Part]:
    """Each part as it lies on disk, the text encoder only where there is one. ValueError where a part is missing."""
    return sources.parts(source, forms(picks))


def part(name: str, source: Source) -> Part:
    """One part of a system, whose others need not be there. ValueError where it is missing."""
    return sources.part(name, source, forms(USUAL))


def forms(picks: Picks) -> list[sources.Find]:
    """The forms that weights may have on disk, each as a function that finds a part."""
    return [partial(native.find, pick=picks.ours), diffusers.find, partial(kandinsky21.find, pick=picks.movqgan)]


def fingerprints(source: Source) -> dict[str, str]:
    """Part -> the SHA-256 of its files."""
    return {name: " ".join(store.sha256(file) for file in part.files) for name, part in find(source).items()}


def trained(folder: str | Path, part: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The network of one stage's run folder, as `network` builds it. ValueError where it is of another `part`."""
    run = native.exported(Path(folder))
    actual = native.part_of(run.config, run.folder)
    if part not in (None, actual):
        raise UserError(f"{folder} holds weights of a {actual}, and those of a {part} are wanted")
    return network(run, dtype)


def network(part: Part, dtype: torch.dtype = torch.float32) -> Any:
    """A part's trained network, frozen, in eval mode; buffers, which are statistics, stay float32.

    ValueError for weights of another network, and for weights that are NaN or infinite.
    """
    name, where = native.part_of(part.config, part.folder), str(part.folder)
    elements = sum(file.stat().st_size for file in part.files if file.is_file())
    empty = build.network(name, part.config["stage"]["network"], elements=elements, where=where)
    state, dropped = part.read(empty.state_dict())
    if dropped:
        logger.info("%s: %s", part.folder, left_out(dropped))
    parameters, like = {name for name, _ in empty.named_parameters()}, empty.state_dict()
    for name in list(state):  # in place, so that no more than one tensor is held twice
        if name in like and state[name].is_floating_point() != like[name].is_floating_point():
            raise UserError(f"{where}: {name!r} is of {state[name].dtype}, and {like[name].dtype} is wanted")
        state[name] = finite(state[name], dtype if name in parameters else torch.float32, name, part.folder)
    empty.load_state_dict(state, assign=True)
    return empty.requires_grad_(False).eval()


def finite(x: Tensor, dtype: torch.dtype, name: str, folder: Path) -> Tensor:
    """A weight in a precision, convolutions in channels_last. ValueError where it holds or would hold NaN or Inf."""
    if not x.is_floating_point():
        return x
    converted = x.to(dtype, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
    if not is_finite(converted):
        cause = f"too great for {dtype}" if is_finite(x) else "damaged, or of a training that diverged"
        raise UserError(f"{folder}: {name!r} holds what is no number (NaN or infinite): {cause}")
    return converted


def is_finite(x: Tensor) -> bool:
    """In one pass and without a copy, which for the largest tensor would raise the peak of memory."""
    return all(bool(end.isfinite()) for end in x.aminmax())


def diffusion(part: Part, name: str, network: Any, device: Device) -> Diffusion:
    """A prior or decoder. What its weights do not say about sampling is as in Kandinsky 2.1."""
    stage, where = part.config["stage"], str(part.folder)
    if "alpha_bar" not in stage or "parameterisation" not in stage:
        raise UserError(f"{where}: no weights of a {name}, whose config has stage.alpha_bar and parameterisation")
    return Diffusion(
        network=network,
        alpha_bar=build.schedule(stage["alpha_bar"], where).to(device),
        parameterisation=build.parameterisation(stage["parameterisation"], where),
        sampling=sampling(part, name),
    )


def sampling(part: Part, name: str) -> Sampling:
    """How a part is sampled: by its config, and else by conf/sampling. ValueError for what cannot be."""
    values, fields = with_sampling(part, name)["sampling"], Sampling.__dataclass_fields__.keys()
    if stray := sorted(map(str, values.keys() - fields)):
        raise UserError(f"{part.folder}: sampling.{stray[0]} is none of {', '.join(fields)}")
    try:
        return Sampling(**values).but(**{key: values[key] for key in values if key != "clamp"})
    except (TypeError, ValueError) as error:
        raise UserError(f"{part.folder}: its sampling cannot be: {error}") from error


def with_sampling(part: Part, name: str) -> dict[str, Any]:
    """A part's whole config, completed by the defaults of conf/sampling."""
    cfg, defaults = dict(part.config), CONF / "sampling" / f"{name}.yaml"
    if defaults.is_file():
        cfg["sampling"] = {**yaml.safe_load(defaults.read_text()), **(cfg.get("sampling") or {})}
    return cfg


def check_steps(source: Source, options: Mapping[str, Any]) -> None:
    """ValueError for a number of steps that a part's schedule does not have, before its weights are read."""
    parts = find(source)
    for name, prefix in (("prior", "prior_"), ("decoder", "")):
        part = parts[name]
        chosen = sampling(part, name).but(**{key: options.get(f"{prefix}{key}") for key in ("steps", "sampler")})
        alpha_bar = build.schedule(part.config["stage"]["alpha_bar"], str(part.folder))
        named(chosen.sampler).spacing(alpha_bar, chosen.steps)


def text_encoder(parts: Mapping[str, Part], networks: Mapping[str, Any]) -> Any:
    """The encoder of the decoder's prompts: None for a decoder without text, a text encoder of its own, or CLIP.

    ValueError where CLIP's text states have another width than the decoder reads.
    """
    condition = networks["decoder"].condition
    if isinstance(condition, ImageCondition):
        return None
    if TEXT in networks:
        return networks[TEXT]
    width, of_clip = condition.text_tokens.in_features, parts["clip"].config["dims"]["clip_text_width"]
    if width != of_clip:
        widths = (
            f"the decoder ({parts['decoder'].folder}) reads text states {width} wide, and CLIP's are {of_clip} wide"
        )
        raise UserError(f"{widths}: its own text encoder is missing; give its folder as text, {{text: FOLDER, ...}}")
    return networks["clip"]
