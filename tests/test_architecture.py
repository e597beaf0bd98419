"""Imports point one way, verbs alone meet Hydra, and no file outgrows its noun."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "open_kandinsky"
FILES = sorted(SRC.rglob("*.py"))

# room -> the rooms of ours that it may import; every room may import core, and no room a command
MAY_IMPORT = {
    "core": set(),
    "config": set(),
    "diffusion": set(),
    "networks": set(),
    "data": {"networks"},
    "metrics": set(),
    "stages": {"diffusion", "networks", "data.batch"},
    "weights": {"networks"},
    "callbacks": {"stages", "metrics", "diffusion", "networks", "data.batch"},
    "pipeline": {"networks", "diffusion", "data", "weights"},
    "generation": {"pipeline", "data"},
    "evaluation": {"pipeline", "generation", "metrics", "data", "networks", "diffusion", "weights"},
    "training": {"weights", "stages", "callbacks", "loading"},
    "loading": {"pipeline", "networks", "diffusion", "weights", "config"},
}
VERBS = {"train", "generate", "evaluate", "judge", "selfcheck", "coco", "emoji", "precompute", "quickstart", "convert"}
MEET_HYDRA = VERBS | {"config"}
MEET_LIGHTNING = VERBS | {"stages", "callbacks", "data", "training"}
WHERE_USED = {"wandb", "gradio", "peft", "transformers", "diffusers", "tensorboard", "optuna"}  # not everybody has them


def room(file):
    """The first part of a file's dotted name inside the package: diffusion, pipeline, train, ..."""
    return file.relative_to(SRC).with_suffix("").parts[0]


def imported(nodes):
    """Every dotted name that some import statements name, the imported names themselves included."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def everywhere(file):
    return list(imported(ast.walk(ast.parse(file.read_text()))))


def roots(names):
    return {name.partition(".")[0] for name in names}


def ids(file):
    return str(file.relative_to(SRC))


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_arrows_point_one_way(file):
    here = room(file)
    if here in VERBS | {"__init__", "cli"}:
        return
    assert here in MAY_IMPORT, f"{here} is a room that the design does not have"
    ours = [name.removeprefix("open_kandinsky.") for name in everywhere(file) if name.startswith("open_kandinsky.")]
    allowed = tuple(f"{name}." for name in MAY_IMPORT[here] | {here, "core"})
    stray = [name for name in ours if not f"{name}.".startswith(allowed)]
    assert not stray, f"{here} may not import {stray}"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_hydra_is_met_in_the_verbs_and_lightning_in_training(file):
    found = roots(everywhere(file))
    assert room(file) in MEET_HYDRA or not found & {"hydra", "omegaconf"}
    assert room(file) in MEET_LIGHTNING or not found & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_optional_packages_are_imported_where_they_are_used(file):
    top = [node for node in ast.parse(file.read_text()).body if not is_for_types(node)]
    at_import = [child for node in top for child in outside_functions(node)]
    assert not roots(imported(at_import)) & WHERE_USED


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def outside_functions(node):
    """`node` and what is below it that runs when the module is imported."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from outside_functions(child)


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_is_one_noun_on_few_screens(file):
    assert file.stem not in {"utils", "helpers", "common", "misc", "base"}
    assert len(file.read_text().splitlines()) <= 400
