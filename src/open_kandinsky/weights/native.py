"""Our own form of weights: a run's folder, one below a system's folder, or a checkpoint that a run has written.

A config.yaml may come from anybody, so it is read as plain values: no references, no aliases, of a bounded size.
`weights.build` lists the classes that it may name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import build, checkpoint, store
from open_kandinsky.weights.keymap import State
from open_kandinsky.weights.part import Part, Picked

CONFIG = "config.yaml"
LARGEST = 1 << 18  # bytes; a training's own is some 8,000
Pick = Callable[[Path], Picked]


def find(part: str, folder: Path, pick: Pick) -> Part | None:
    """A part in our own form; None where there is none. `pick` takes the weights out of a checkpoint."""
    run = folder.parent.parent
    is_checkpoint = folder.suffix == ".ckpt" and (folder.is_file() or checkpoint.is_folder(folder))
    if is_checkpoint and (run / CONFIG).is_file():
        config = read_config(run)
        return part_in(run, config, folder, pick, choice=True) if part_of(config, run) == part else None
    for place in (folder, folder / part):
        if (place / store.WEIGHTS).is_file() and part_of(config := read_config(place), place) == part:
            return exported(place, config)
    return None


def part_of(config: Mapping[str, Any], folder: Path) -> str:
    """The part of a system that a stage's config describes. ValueError for a network that may not be built."""
    part = build.part_of(config)
    if part is None:
        target = config["stage"]["network"].get("_target_")
        raise UserError(f"{folder}: refused to build {target!r}, which is no network of a system's (weights/build.py)")
    return part


def exported(folder: Path, config: dict[str, Any] | None = None) -> Part:
    """The folder of a run that has ended."""
    config = read_config(folder) if config is None else config
    return part_in(folder, config, folder / store.WEIGHTS, lambda path: Picked(store.read(path), {}), choice=False)


def name_of_part(folder: Path) -> str | None:
    """The name of the part whose weights a folder holds; None where it holds none of ours, or not whole ones."""
    try:
        return build.part_of(read_config(folder)) if (folder / store.WEIGHTS).is_file() else None
    except ValueError:
        return None


def part_in(folder: Path, config: dict[str, Any], file: Path, pick: Pick, *, choice: bool) -> Part:
    """The part in a run's folder, with the weights that `pick` takes from `file`."""

    def read(like: State) -> Picked:
        state, dropped = pick(file)
        shapes, expected = ({k: v.shape for k, v in tensors.items()} for tensors in (state, like))
        wrong = sorted(k for k in expected.keys() | shapes.keys() if shapes.get(k) != expected.get(k))
        if wrong:
            names = f"{len(wrong)} tensors, {wrong[0]!r} among them"
            raise UserError(f"{folder}: weights and config.yaml disagree on {names}")
        return Picked(state, dropped)

    files = checkpoint.tensor_files(file) if file.is_dir() else (file,)
    return Part(folder, files, with_tokenizer(folder, config), read, choice)


def with_tokenizer(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config with an absolute path to its tokenizer, if any. ValueError for one outside of the weights' folder."""
    network = config["stage"]["network"]
    if "tokenizer" not in network:
        return config
    path = (folder / str(network["tokenizer"])).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{folder / CONFIG}: its tokenizer is {network['tokenizer']!r}, outside of the folder")
    return config | {"stage": config["stage"] | {"network": network | {"tokenizer": str(path)}}}


def read_config(folder: Path) -> dict[str, Any]:
    """A stage's config.yaml as plain values. ValueError for a file that no run of ours has written."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: no such file; a stage's folder holds config.yaml beside its weights")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes, and a config has at most {LARGEST:,}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: damaged ({text}); export the stage again") from error
    stage = tree.get("stage") if isinstance(tree, dict) else None
    network = stage.get("network") if isinstance(stage, dict) else None
    if not (isinstance(network, dict) and network and isinstance(tree.get("dims"), dict) and tree["dims"]):
        raise UserError(f"{path}: no config of a stage, which has dims and stage.network")
    if not isinstance(tree.get("sampling") or {}, dict):
        raise UserError(f"{path}: sampling is {str(tree['sampling'])[:100]!r}, and no mapping")
    for name, value in tree["dims"].items():
        if isinstance(value, list):
            raise UserError(f"{path}: dims.{name} is a list, and a number is wanted")
        build.plain(f"dims.{name}", value, str(path))
    if reference := next(references(tree), None):
        raise UserError(f"{path}: {reference!r} is a reference, which a finished run's config has none of")
    return tree


def references(tree: Any) -> Iterator[str]:
    """Strings that OmegaConf would look up: in the environment, or elsewhere in the config."""
    if isinstance(tree, str) and "${" in tree:
        yield tree[:100]
    for inner in [*tree.keys(), *tree.values()] if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from references(inner)


class PlainLoader(yaml.SafeLoader):
    """Loads YAML of plain values without aliases: with them a few lines can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, *name, which is not read")
        return super().compose_node(parent, index)


# 1e-5 is a number to OmegaConf, which wrote the file, and a string to YAML 1.1.
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
