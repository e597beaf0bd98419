"""What a person typed, held against the config it is meant for: a key or an option that does not exist is named.

Works on plain dicts and lists. `base` is the config with the chosen options and before any value is set.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from open_kandinsky import nodes
from open_kandinsky.config import help as config_help
from open_kandinsky.core.errors import UserError

ABSENT = object()


def groups(folders: Sequence[Path]) -> list[str]:
    """The names of the config groups below `folders`, nested ones too: network, network/prior, ..."""
    return sorted({str(p.relative_to(folder)) for folder in folders for p in folder.rglob("*") if p.is_dir()})


def options(group: str, folders: Sequence[Path]) -> list[str]:
    """What may be chosen for `group`, nested ones too: tiny, prior/tiny, ..."""
    homes = [folder / group for folder in folders]
    return sorted({option for home in homes for option in config_help.options(home)})


def refuse_unknown_option(group: str, option: str, folders: Sequence[Path], package: str = "") -> None:
    """ValueError where `folders` hold no such group or option of it; `package` is what was typed after an @."""
    placed = f"{group}@{package}" if package else group
    if group not in groups(folders):
        raise UserError(f"no such group {group!r}" + meant(nodes.nearest_key(group, groups(folders))))
    known = options(group, folders)
    if option.removesuffix(".yaml") not in known:
        near = nodes.nearest_key(option, known)
        remedy = meant(f"{placed}={near}") if near else f"; there are: {', '.join(known)}"
        raise UserError(f"no such option '{placed}={option}'" + remedy)


def chosen_as(group: str, option: str, choices: Iterable[str]) -> str | None:
    """How to type an option of a group that the config places elsewhere, as in network@stage.network=prior/tiny."""
    for placed in choices:
        room, _, where = placed.partition("@")
        if where and (group == room or group.startswith(f"{room}/")):
            return f"{placed}={nodes.join(group.removeprefix(room).strip('/'), option).replace('.', '/')}"
    return None


def refuse_unknown_key(key: str, typed: str, base: Mapping[str, Any], group_names: Sequence[str]) -> None:
    """ValueError where `typed` sets a key that the config does not have."""
    unknown = first_unknown(base, key)
    if unknown is None:
        return
    owner, _, argument = unknown.rpartition(".")
    target = target_at(base, owner)
    if target and nodes.takes(target, argument):
        raise UserError(f"{unknown!r} is not set here but {target} takes it: add it with a plus, '+{typed}'")
    beside = [nodes.join(owner, name) for name in nodes.parameters(target) or ()] if target else []
    raise UserError(
        f"no such key {unknown!r}" + meant(nodes.nearest_key(unknown, [*nodes.keys(base), *group_names, *beside]))
    )


def refuse_stray_key(key: str, base: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """ValueError where an added key is no argument of any node of the composed config `tree`."""
    if first_unknown(base, key) is None:
        return
    parts = key.split(".")
    owner = next((o for o in prefixes(parts) if target_at(tree, o)), None)
    if owner is None or first_unknown(base, parts[0]) is not None:
        raise UserError(f"no such key {key!r}" + meant(nodes.nearest_key(key, nodes.keys(base))))
    argument, target = key.removeprefix(owner).strip(".").partition(".")[0], target_at(tree, owner)
    if argument and not nodes.is_word(argument) and target and not nodes.takes(target, argument):
        raise UserError(nodes.not_taken(owner, target, argument, base))


def refuse_missing(tree: Any, config_name: str, conf: Path) -> None:
    """One ValueError that lists every value still to be given, and what each takes."""
    absent = [key for key in nodes.keys(tree) if at(tree, key) == nodes.MISSING]
    if absent:
        lines = [
            f"  {key}={takes and '  ' + takes}" for key in absent for takes in [taken(key, tree, config_name, conf)]
        ]
        raise UserError("these need a value:\n" + "\n".join(lines))


def taken(key: str, tree: Any, config_name: str, conf: Path) -> str:
    """What `key` takes: the comment beside its ??? in the config files, or else the type in the signature."""
    own = [*(conf / key.partition(".")[0]).rglob("*.yaml"), conf / f"{config_name}.yaml"]  # they say it before others
    every = [key for file in [*sorted(conf.rglob("*.yaml")), *own] for key in config_help.keys(file)]
    said = {one.name: one.comment for one in every if one.value == nodes.MISSING and one.comment}
    ends = [".".join(key.split(".")[start:]) for start in range(key.count(".") + 1)]  # the longest first
    if found := next((said[end] for end in ends if end in said), None):
        return found
    owner, _, argument = key.rpartition(".")
    target = target_at(tree, owner)
    parameter = (nodes.parameters(target) or {}).get(argument) if target else None
    return "" if parameter is None or parameter.annotation is parameter.empty else nodes.named(parameter.annotation)


def at(tree: Any, key: str) -> Any:
    """The value under a dotted key, through references to whole nodes (${network}); ABSENT where there is none."""
    value = tree
    for part in key.split(".") if key else []:
        value = dict(nodes.children(value)).get(part, ABSENT)
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        value = at(tree, reference[1].lstrip(".")) if reference and reference[1][0] != "." else value
    return value


def target_at(tree: Any, key: str) -> str | None:
    node = at(tree, key)
    return node.get("_target_") if isinstance(node, dict) else None


def first_unknown(tree: Any, key: str) -> str | None:
    """The shortest beginning of `key` that `tree` does not have; None where it has all of it."""
    return next((start for start in reversed(list(prefixes(key.split(".")))) if at(tree, start) is ABSENT), None)


def prefixes(parts: Sequence[str]) -> Iterator[str]:
    """The dotted beginnings of a key, longest first."""
    return (".".join(parts[:end]) for end in range(len(parts), 0, -1))


def meant(near: str | None) -> str:
    return f"; did you mean {near!r}?" if near else ""
