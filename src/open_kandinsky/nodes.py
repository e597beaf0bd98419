"""What a node of the configuration may name in `_target_`, and which arguments it may give.

Works on plain dicts and lists. What may be built of a config that comes with weights is in `weights.build`.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any, get_args

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest

MISSING = "???"  # a value still to be given
HOMES = ("open_kandinsky.", "torch.", "lightning.", "torchmetrics.")


def nodes(tree: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every (dotted path, node) at or below `tree` that names a target."""
    if isinstance(tree, dict) and "_target_" in tree:
        yield path, tree
    for key, value in children(tree):
        yield from nodes(value, join(path, key))


def keys(tree: Any, path: str = "") -> Iterator[str]:
    """The dotted path of everything below `tree` but Hydra's own words."""
    for key, value in children(tree):
        if is_word(key):
            continue
        yield join(path, key)
        yield from keys(value, join(path, key))


def children(tree: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [(str(key), value) for key, value in tree.items()]
    return [(str(i), value) for i, value in enumerate(tree)] if isinstance(tree, list) else []


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@cache
def located(target: str) -> Any:
    """The class or function that `target` names. ImportError or AttributeError where there is none."""
    return resolve_name(target)


@cache
def parameters(target: str) -> Mapping[str, inspect.Parameter] | None:
    """What calling `target` takes by name; None for the few compiled ones that do not say."""
    try:
        return inspect.signature(located(target)).parameters
    except ValueError:
        return None


def takes(target: str, argument: str) -> bool:
    known = parameters(target)
    if known is None or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return True
    return argument in known and known[argument].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )


def named(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def nearest_key(key: str, among: Iterable[str]) -> str | None:
    """What somebody who wrote `key` most likely meant: a sibling, the same last name elsewhere, or a look-alike."""
    parent, _, name = key.rpartition(".")
    among = list(among)
    siblings = {k.rpartition(".")[2]: k for k in among if k.rpartition(".")[0] == parent}
    if close := nearest(name, siblings):
        return siblings[close]
    namesakes = [k for k in among if k.rpartition(".")[2] == name]
    return nearest(key, namesakes, cutoff=0.0) or nearest(key, among)


def refuse_misfits(tree: Any) -> None:
    """ValueError at the first node below `tree` whose target is not ours to call, or takes other arguments."""
    for path, node in nodes(tree):
        refuse_misfit(path, node, tree)


def refuse_misfit(path: str, node: Mapping[str, Any], tree: Any) -> None:
    target, where = node["_target_"], path or "the config"
    if not str(target).startswith(HOMES):
        raise UserError(f"{where} names {target!r} as its _target_; one starts with {', '.join(HOMES)}")
    try:
        located(target)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where}: cannot find its _target_ {target!r}: {error}") from error
    for argument in arguments(node):
        if not takes(target, argument):
            raise UserError(not_taken(path, target, argument, tree))
        refuse_words_for_numbers(join(path, argument), node[argument], (parameters(target) or {}).get(argument))
    if absent := lacking(node):
        raise UserError(f"{where} lacks {', '.join(map(repr, absent))}, which {target} needs")


def refuse_words_for_numbers(key: str, value: Any, parameter: inspect.Parameter | None) -> None:
    """ValueError where a signature wants a number and the config has a word, which is not to be resolved yet."""
    if (
        isinstance(value, str)
        and "${" not in value
        and value != MISSING
        and parameter
        and numeric(parameter.annotation)
    ):
        raise UserError(f"{key}={value}: no number; it takes {named(parameter.annotation)}")


def numeric(annotation: Any) -> bool:
    """Whether nothing but numbers fits: int, float, or one of them with None; a Tensor is no value of a config."""
    kinds = set(get_args(annotation) or [annotation]) - {type(None), bool}
    return bool(kinds & {int, float}) and all(kind in (int, float) or named(kind).endswith("Tensor") for kind in kinds)


def arguments(node: Mapping[str, Any]) -> list[str]:
    """The argument names a node gives: its keys but Hydra's own words (_target_, _partial_, ...)."""
    return [key for key in node if not is_word(key)]


def is_word(key: str) -> bool:
    return key.startswith("_") and key.endswith("_")


def not_taken(path: str, target: str, argument: str, tree: Any) -> str:
    key = join(path, argument)
    known = [join(path, name) for name in parameters(target) or {}]
    near = nearest_key(key, [*known, *(k for k in keys(tree) if not f"{k}.".startswith(f"{key}."))])
    return f"{path or target} takes no {argument!r}" + (f"; nearest: {near!r}" if near else f" ({target})")


def lacking(node: Mapping[str, Any]) -> list[str]:
    """Arguments that the target needs and the node does not give; a partial is given the rest when it is called."""
    if node.get("_partial_") or "_args_" in node:
        return []
    known = parameters(node["_target_"]) or {}
    needed = [
        name for name, p in known.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return [name for name in needed if name not in node]
