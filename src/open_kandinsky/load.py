"""From folders to networks: the one place beside the verbs where a config becomes objects.

A run folder of a stage holds `config.yaml` and `weights.safetensors`; one of the whole system holds four of them,
`clip/`, `movq/`, `prior/` and `decoder/`. Both are read with `load`.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from open_kandinsky.configuration import refuse_foreign_targets
from open_kandinsky.pipeline import Diffusion, Pipeline, Sampling
from open_kandinsky.weights import store

PARTS = ("clip", "movq", "prior", "decoder")
Source = str | Path | Mapping[str, str | Path]


def load(source: Source, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pipeline:
    """The assembled system, in eval mode, from a run folder or a mapping of some of its parts to folders.

    `load({"": "runs/quickstart", "prior": "runs/prior_linear"})` takes all parts from one folder but the prior.
    Raises ValueError for a folder that is none, lacks a part, or holds parts that do not fit together.
    """
    folders = locate(source)
    parts = {part: config(folder) for part, folder in folders.items()}
    agree(parts, folders)
    made = {part: network(folders[part]).to(device) for part in PARTS}
    for parameter in chain.from_iterable(part.parameters() for part in made.values()):
        parameter.data = parameter.data.to(dtype)  # and no buffer: statistics stay float32
    diffusions = {part: diffusion(parts[part], made[part], device) for part in ("prior", "decoder")}
    size = parts["decoder"].dims.image_size
    return Pipeline(clip=made["clip"], text=made["clip"], movq=made["movq"], size=size, device=device, **diffusions)


def locate(source: Source) -> dict[str, Path]:
    """The folder of each part."""
    given = dict(source) if isinstance(source, Mapping) else {"": source}
    unknown = set(given) - {"", *PARTS}
    if unknown:
        raise ValueError(f"weights: no part is called {sorted(unknown)[0]!r}; the parts are {', '.join(PARTS)}")
    folders = {part: Path(given[part]) if part in given else Path(given.get("", ".")) / part for part in PARTS}
    for part, folder in folders.items():
        if not (folder / store.WEIGHTS).is_file():
            found = sorted(p.name for p in folder.iterdir())[:6] if folder.is_dir() else "no such folder"
            raise ValueError(
                f"weights: the {part} is looked for in {folder}, which should hold config.yaml and {store.WEIGHTS}; "
                f"found: {found}. A run that was stopped has none: resume it"
            )
    return folders


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


def network(folder: str | Path) -> Any:
    """A stage's trained network, frozen, in eval mode."""
    folder = Path(folder)
    made = build(config(folder).stage.network)
    state = store.read(folder / store.WEIGHTS)
    shapes, expected = ({k: v.shape for k, v in tensors.items()} for tensors in (state, made.state_dict()))
    wrong = sorted(k for k in expected.keys() | shapes.keys() if shapes.get(k) != expected.get(k))
    if wrong:
        raise ValueError(f"{folder}: weights and config.yaml disagree on {len(wrong)} tensors, {wrong[0]!r} among them")
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False).eval()


def build(cfg: DictConfig) -> Any:
    """An object from a part of somebody's config: only this package's own and torch's classes are made."""
    refuse_foreign_targets(cfg)
    return instantiate(cfg, _convert_="all")


def diffusion(cfg: DictConfig, made: Any, device: str) -> Diffusion:
    return Diffusion(
        network=made,
        alpha_bar=build(cfg.stage.alpha_bar).to(device),
        parameterisation=build(cfg.stage.parameterisation),
        sampling=Sampling(**cfg.sampling),
    )


def agree(parts: Mapping[str, DictConfig], folders: Mapping[str, Path]) -> None:
    """ValueError where two parts were trained on different facts, such as CLIP's width."""
    for fact in ("clip", "clip_text_width", "text_length", "latent_channels", "quantise_latents"):
        values = {part: cfg.dims.get(fact) for part, cfg in parts.items()}
        if len(set(values.values())) > 1:
            seen = ", ".join(f"{part} ({folders[part]}) {value}" for part, value in values.items())
            raise ValueError(f"weights that do not belong together: dims.{fact} is {seen}")
