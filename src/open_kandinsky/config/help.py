"""What `open-kandinsky VERB --help` prints, read from the command's source and its YAML file.

Nothing is imported for it, so it takes a fraction of a second, where torch, Lightning and Hydra would take several.
"""

import ast
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from open_kandinsky.config import CONF, PACKAGE

WIDTH, INDENT = 100, 30
END = """
A key is set by key=value, in Hydra's grammar: lists as '[a, b]', null for nothing. A group's option is chosen by
group=option. --cfg job prints the whole configuration that a command line would run with, --hydra-help all else of
Hydra's.
"""


class Key(NamedTuple):
    """A line of a YAML file: a dotted key, its value as it is written there, and the comment beside it."""

    name: str
    value: str
    comment: str


def verb_help(verb: str, conf: Path = CONF) -> str:
    """The description and examples of a command, its keys with defaults and meanings, its groups with their options."""
    text = docstring(PACKAGE / f"{verb}.py")
    first, _, rest = text.partition("\n")
    file = conf / f"{verb}.yaml"
    lines = [f"usage: open-kandinsky {verb} [key=value ...]", "", first, rest.rstrip(), ""]
    lines += ["keys, and what they are unless given (??? must be):", "", *map(shown, keys(file)), ""]
    if chosen := list(groups(file)):
        lines += ["groups, and what is chosen unless another option is:", ""]
        lines += [
            shown(Key(name, option, ", ".join(options(conf / name.partition("@")[0])))) for name, option in chosen
        ]
    return "\n".join(lines).rstrip() + "\n" + END


def docstring(source: Path) -> str:
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def keys(file: Path) -> Iterator[Key]:
    """The keys that a YAML file sets, nested ones too, but for its defaults list."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()

    def walk(node: yaml.Node | None, path: str) -> Iterator[Key]:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else key.value
            if isinstance(value, yaml.MappingNode) and not value.flow_style and name != "defaults":
                yield from walk(value, name)
            elif name != "defaults":
                written = " ".join(text[value.start_mark.index : value.end_mark.index].split())
                last = value.end_mark if value.start_mark.line == value.end_mark.line else key.end_mark
                yield Key(name, written, lines[last.line][last.column :].partition("#")[2].strip())

    return walk(yaml.compose(text), "")


def groups(file: Path) -> Iterator[tuple[str, str]]:
    """The groups of a file's defaults list, Hydra's own left out, and the option that each begins with."""
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []):
        if isinstance(entry, dict):
            for name, option in entry.items():
                if name != "hydra":
                    yield name.removeprefix("override ").lstrip("/"), str("null" if option is None else option)


def shown(key: Key) -> str:
    """The key with its value, and the comment from column INDENT on."""
    left = f"  {key.name}={key.value}"
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - INDENT
    comment = textwrap.wrap(key.comment, max(width, 30))
    if not comment:
        return left
    if len(left) >= INDENT:
        return "\n".join([left, *(" " * INDENT + line for line in comment)])
    return "\n".join([left.ljust(INDENT) + comment[0], *(" " * INDENT + line for line in comment[1:])])


def options(group: Path) -> list[str]:
    """What may be chosen for a group, by its folder; those in a folder below it have that folder's name too.

    A folder whose files fill the node of its own name, `# @package data.filters` in data/filters, is another group.
    """
    found = [path for path in group.rglob("*.yaml") if path.parent == group or not is_nested_group(path, group)]
    return sorted(str(path.relative_to(group).with_suffix("")) for path in found)


def is_nested_group(path: Path, group: Path) -> bool:
    return path.read_text(encoding="utf-8").startswith(f"# @package {group.name}.{path.parent.name}\n")
