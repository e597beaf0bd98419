"""What was typed on a command line: which options it picks, and what Hydra would not say of them clearly."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from open_kandinsky import nodes, overrides
from open_kandinsky.core.errors import UserError


def parse(typed: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(typed))


def refuse_sweeps(parsed: Sequence[Override]) -> None:
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line!r} gives several values: add -m to run each, or quote the value")


def dotted(override: Override) -> str:
    return override.key_or_group.replace("[", ".").replace("]", "")


def search_folders(parsed: Sequence[Override]) -> list[Path]:
    """Config folders that the command line adds to ours."""
    added: list[Any] = [o.value() for o in parsed if o.key_or_group == "hydra.searchpath"]
    return [Path(str(folder).removeprefix("file://")) for folders in added for folder in folders]


def is_choice(override: Override, folders: Sequence[Path]) -> bool:
    """Whether an override picks an option of a group and sets no value; what is Hydra's own counts as picked."""
    name = override.key_or_group
    is_group = any((folder / name).is_dir() for folder in folders)
    return "/" in name or name.startswith("hydra.") or (is_group and not isinstance(override.value(), dict))


def refuse_unknown_options(choices: Sequence[Override], folders: Sequence[Path]) -> None:
    for o in choices:
        if not o.key_or_group.startswith("hydra") and not o.is_delete():
            for option in picked(o):
                overrides.refuse_unknown_option(o.key_or_group, option, folders, o.package or "")


def picked(choice: Override) -> list[str]:
    value: Any = choice.value()
    return [str(option) for option in (value if isinstance(value, list) else [value]) if option is not None]


def misplaced(config_name: str, choices: Sequence[Override]) -> str | None:
    known = hydra.compose(config_name, return_hydra_config=True).hydra.runtime.choices
    for o in choices:
        wanted = [overrides.chosen_as(o.key_or_group, option, known) for option in picked(o)]
        if o.package is None and o.key_or_group not in known and wanted and wanted[0]:
            return f"{o.input_line!r} has no place in {config_name}; did you mean {wanted[0]!r}?"
    return None


def unknown_to_hydra(config_name: str, choices: Sequence[Override]) -> str | None:
    """The key of Hydra's own, as in hydra.launcher.partition, that does not exist, and the nearest that does."""
    groups = [str(o.input_line) for o in choices if not o.key_or_group.startswith("hydra.")]
    own = hydra.compose(config_name, groups, return_hydra_config=True).hydra
    known = list(nodes.keys({"hydra": OmegaConf.to_container(own, resolve=False)}))
    wrong = [dotted(o) for o in choices if dotted(o).startswith("hydra.") and not o.is_add() and dotted(o) not in known]
    return f"no such key {wrong[0]!r}" + overrides.meant(nodes.nearest_key(wrong[0], known)) if wrong else None


def uninstalled(error: Exception) -> str | None:
    """What to install where an option is a plugin of Hydra's that is not there."""
    plugin = re.search(r"hydra/(launcher|sweeper)'?.*(submitit|optuna)", " ".join(str(error).split()))
    return f"{plugin[1]}: {plugin[2]} is not installed: pip install open-kandinsky[cluster]" if plugin else None
