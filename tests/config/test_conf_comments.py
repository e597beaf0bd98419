"""Every key of conf/ says what it means.

A key is explained by a comment on its line or in the lines right above it (the comment that opens a file is of the
file), or where the same key is explained elsewhere: one of the same dotted name, as an experiment's is by the stage
that it changes, or the same argument of the same class. A comment on the line of a mapping that is no node of a class
is of all keys that are written in it.
"""

from typing import NamedTuple

import pytest
import yaml

from open_kandinsky.config import CONF

FILES = sorted(CONF.rglob("*.yaml"))
HYDRA = ("defaults", "_target_", "_partial_")  # Hydra's own words


class Key(NamedTuple):
    name: str  # dotted, with the package of the file
    argument: tuple[str, str] | None  # of a node with a _target_: the class, and the key
    is_explained: bool


def package(file, lines):
    """Where Hydra places the keys of a file."""
    if lines and lines[0].startswith("# @package "):
        return lines[0].removeprefix("# @package ").strip().replace("_global_", "")
    return ".".join(file.relative_to(CONF).parent.parts)


def keys_of(file):
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    opening = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))

    def above(line):
        """The comment lines right above a line, but for those that open the file."""
        at = line
        while at > opening and lines[at - 1].lstrip().startswith("#"):
            at -= 1
        return " ".join(line.strip("# ") for line in lines[at:line])

    def walk(node, path, covered):
        """`covered`: whether a comment on the line of a mapping is of these keys too."""
        target = next((value.value for key, value in node.value if key.value == "_target_"), None)
        for key, value in node.value:
            if key.value in HYDRA:
                continue
            name = f"{path}.{key.value}".lstrip(".")
            one_line = value.start_mark.line == value.end_mark.line
            last = value.end_mark if one_line else key.end_mark
            beside = lines[last.line][last.column :].partition("#")[2].strip()
            is_mapping = isinstance(value, yaml.MappingNode)
            if is_mapping and value.value:
                is_node = any(one.value == "_target_" for one, _ in value.value)
                if beside:
                    yield Key(name, None, True)
                over = above(key.start_mark.line) if value.flow_style else ""
                yield from walk(value, name, covered or bool(beside or over) and not is_node)
            else:
                found = covered or bool(beside or above(key.start_mark.line))
                yield Key(name, target and (target, key.value), found)

    tree = yaml.compose(text)
    return list(walk(tree, package(file, lines), False)) if isinstance(tree, yaml.MappingNode) else []


KEYS = {file: keys_of(file) for file in FILES}
EVERY = [key for file, keys in KEYS.items() for key in keys if "experiment" not in file.parts]  # those say why
ARGUMENTS = {key.argument for key in EVERY if key.is_explained and key.argument}
NAMES = {key.name for key in EVERY if key.is_explained or key.argument in ARGUMENTS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_every_key_has_a_comment(file):
    assert [key.name for key in KEYS[file] if not (key.is_explained or key.name in NAMES)] == []


def test_keys_are_found_with_and_without_a_comment(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CONF", tmp_path)
    (tmp_path / "a.yaml").write_text(TEXT)
    found = {key.name: key.is_explained for key in keys_of(tmp_path / "a.yaml")}
    explained = {name for name, explained in found.items() if explained}
    assert explained == {
        "x.b",
        "x.c",
        "x.d",
        "x.e",
        "x.e.f",
        "x.g",
        "x.g.h",
    }
    assert {name for name, explained in found.items() if not explained} == {"x.a", "x.d.k", "x.i.j"}


TEXT = """# @package x
# of the file
a: 1
b: 2   # beside
# above
c: [1, 2]
d:     # of a node, which is not of its arguments
  _target_: torch.nn.Linear
  k: 1
e: {f: 1}   # of all that is in it
g:          # likewise
  h: 1
# of what follows, as a heading is
i:
  j: 1
"""
