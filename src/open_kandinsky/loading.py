"""From folders to networks: the one place beside the verbs where a config becomes objects.

A run folder of a stage holds `config.yaml` and `weights.safetensors`; one of the whole system holds four of them,
`clip/`, `movq/`, `prior/` and `decoder/`, and `text/` where the decoder has a text encoder of its own. Both are read
with `load`, and so are folders of diffusers' Kandinsky 2.1 and 2.2 and of the original 2.1 files.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from yaml import YAMLError

from open_kandinsky.configuration import CONF, refuse_foreign_targets
from open_kandinsky.networks.condition import ImageCondition
from open_kandinsky.pipeline import Diffusion, Pipeline, Sampling, compiling, packing
from open_kandinsky.weights import checkpoint, checkpoint_folder, store
from open_kandinsky.weights import source as sources
from open_kandinsky.weights.devices import Device, Turns, at_home, one, placed
from open_kandinsky.weights.diffusers import folder as diffusers
from open_kandinsky.weights.kandinsky21 import folder as kandinsky21
from open_kandinsky.weights.kandinsky21 import movqgan
from open_kandinsky.weights.keymap import State
from open_kandinsky.weights.part import TEXT, Part, Picked, agree, left_out
from open_kandinsky.weights.source import Source

logger = logging.getLogger(__name__)


class Picks(NamedTuple):
    """Which of the weights that a training's checkpoint holds: of MoVQGAN's, and of ours."""

    movqgan: kandinsky21.Pick
    ours: Callable[[Path], Picked]


USUAL = Picks(movqgan.raw, checkpoint.usual)


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
        compiling.check(device, offload=offload)
    parts = find(source)
    agree(parts)
    devices = placed(device)
    home = devices["decoder"]
    if offload:
        turns = Turns(one(device))
        made = {part: turns.seat(network(found, dtype)) for part, found in parts.items()}
    else:
        made = {part: network(found, dtype).to(devices[part]) for part, found in parts.items()}
        for part in compiling.DRAWING:
            quickened = compiling.compiled if compile and compiling.pays(part, devices[part]) else packing.packed
            made[part] = quickened(made[part])
        made = {part: each if devices[part] == home else at_home(each, home) for part, each in made.items()}
    diffusions = {part: diffusion(parts[part], part, made[part], home) for part in ("prior", "decoder")}
    return Pipeline(
        movable=not (compile or offload or isinstance(device, Mapping)),
        clip=made["clip"],
        text=text_encoder(parts, made),
        movq=made["movq"],
        size=parts["decoder"].config["dims"]["image_size"],
        device=home,
        **diffusions,
    )


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
    return [partial(native, pick=picks.ours), diffusers.find, partial(kandinsky21.find, pick=picks.movqgan)]


def locate(source: Source) -> dict[str, Path]:
    """The folder of each part."""
    return {name: part.folder for name, part in find(source).items()}


def fingerprints(source: Source) -> dict[str, str]:
    """Of each part, what its files' contents say it is."""
    return {name: " ".join(store.sha256(file) for file in part.files) for name, part in find(source).items()}


def native(part: str, folder: Path, pick: Callable[[Path], Picked]) -> Part | None:
    """A part in our own form: a run's folder, one below a system's folder, or a checkpoint in a run's folder."""
    run = folder.parent.parent
    is_checkpoint = folder.suffix == ".ckpt" and (folder.is_file() or checkpoint_folder.is_folder(folder))
    if is_checkpoint and (run / "config.yaml").is_file():
        cfg = config(run)
        return of_run(run, folder, pick, choice=True) if f".{part}." in cfg["stage"]["_target_"] else None
    places = [place for place in (folder, folder / part) if (place / store.WEIGHTS).is_file()]
    return exported(places[0]) if places else None


def exported(folder: Path) -> Part:
    """What a run's folder holds when the run has ended."""
    return of_run(folder, folder / store.WEIGHTS, lambda path: Picked(store.read(path), {}), choice=False)


def of_run(folder: Path, file: Path, pick: Callable[[Path], Picked], *, choice: bool) -> Part:
    def read(like: State) -> Picked:
        state, dropped = pick(file)
        shapes, expected = ({k: v.shape for k, v in tensors.items()} for tensors in (state, like))
        wrong = sorted(k for k in expected.keys() | shapes.keys() if shapes.get(k) != expected.get(k))
        if wrong:
            told = f"weights and config.yaml disagree on {len(wrong)} tensors, {wrong[0]!r} among them"
            raise ValueError(f"{folder}: {told}")
        return Picked(state, dropped)

    files = checkpoint_folder.files(file) if file.is_dir() else (file,)
    return Part(folder, files, config(folder), read, choice)


def config(folder: Path) -> DictConfig:
    """What a stage's run was made with."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a stage's folder holds config.yaml beside its weights")
    try:
        cfg = OmegaConf.load(path)
    except YAMLError as error:
        raise ValueError(f"{path}: damaged ({error}); export the stage again") from error
    if not isinstance(cfg, DictConfig) or any(not OmegaConf.select(cfg, key) for key in ("dims", "stage.network")):
        raise ValueError(f"{path}: no config of a stage, which has dims and stage.network")
    return cfg


def trained(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network of one stage's run folder, as `network` makes it."""
    return network(exported(Path(folder)), dtype)


def network(part: Part, dtype: torch.dtype = torch.float32) -> Any:
    """A part's trained network, frozen, in eval mode; buffers, which are statistics, stay float32.

    ValueError for weights of another network, and for such as are no numbers.
    """
    cfg = dict(part.config["stage"]["network"])
    if "tokenizer" in cfg:
        cfg["tokenizer"] = str(part.folder / cfg["tokenizer"])
    with parameters_on_meta():
        made = build(OmegaConf.create(cfg))
    state, dropped = part.read(made.state_dict())
    if dropped:
        logger.info("%s: %s", part.folder, left_out(dropped))
    parameters = {name for name, _ in made.named_parameters()}
    for name in list(state):  # in place, so that no more than one tensor is held twice
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
        raise ValueError(f"{folder}: {name!r} holds what is no number (NaN or infinite): {cause}")
    return made


def finite(x: Tensor) -> bool:
    """In one pass and without a copy, which of the largest tensor would be a part of the peak."""
    return all(bool(end.isfinite()) for end in x.aminmax())


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


def build(cfg: DictConfig) -> Any:
    """An object from a part of somebody's config: only this package's own and torch's classes are made."""
    refuse_foreign_targets(cfg)
    return instantiate(cfg, _convert_="all")


def diffusion(part: Part, name: str, made: Any, device: Device) -> Diffusion:
    """Sampled as its weights say, and where they do not, as Kandinsky 2.1."""
    cfg = with_sampling(part, name)
    return Diffusion(
        network=made,
        alpha_bar=build(cfg.stage.alpha_bar).to(device),
        parameterisation=build(cfg.stage.parameterisation),
        sampling=Sampling(**cfg.sampling),
    )


def with_sampling(part: Part, name: str) -> DictConfig:
    """A part's whole config: what its source leaves open of sampling is as conf/sampling has it."""
    cfg, published = OmegaConf.create(dict(part.config)), CONF / "sampling" / f"{name}.yaml"
    if published.is_file():
        cfg.sampling = OmegaConf.merge(OmegaConf.load(published), cfg.get("sampling") or {})
    return cfg


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
        raise ValueError(f"{told}: its own text encoder is missing; give its folder as text, {{text: FOLDER, ...}}")
    return made["clip"]
