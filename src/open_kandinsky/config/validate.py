"""Refuses a configuration that does not fit, and names what does: the nearest key, option or argument.

A node's `_target_` must lie in a package of HOMES, and its arguments must be those of that class or function. A key or
an option on the command line must exist in the composed config. All works on plain dicts and lists; `base` is the
config with the chosen options and before any value is set. What may be built of a config that comes with weights is in
`weights.build`.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

from open_kandinsky.config import help as config_help
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
def locate(target: str) -> Any:
    """The class or function that `target` names. ImportError or AttributeError where there is none."""
    return resolve_name(target)


@cache
def parameters(target: str) -> Mapping[str, inspect.Parameter] | None:
    """What calling `target` takes by name; None for the few compiled ones that do not say."""
    try:
        return inspect.signature(locate(target)).parameters
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


def type_name(annotation: Any) -> str:
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
        locate(target)
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
        raise UserError(f"{key}={value}: no number; it takes {type_name(parameter.annotation)}")


def numeric(annotation: Any) -> bool:
    """Whether nothing but numbers fits: int, float, or one of them with None; a Tensor is no value of a config."""
    kinds = set(get_args(annotation) or [annotation]) - {type(None), bool}
    return bool(kinds & {int, float}) and all(
        kind in (int, float) or type_name(kind).endswith("Tensor") for kind in kinds
    )


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


ABSENT = object()


def groups(folders: Sequence[Path]) -> list[str]:
    """The names of the config groups below `folders`, nested ones too: network, network/prior, ..."""
    return sorted({str(p.relative_to(folder)) for folder in folders for p in folder.rglob("*") if p.is_dir()})


def options(group: str, folders: Sequence[Path]) -> list[str]:
    """What may be chosen for `group`, nested ones too: tiny, prior/tiny, ..."""
    homes = [folder / group for folder in folders]
    return sorted({option for home in homes for option in config_help.options(home)})


# What was typed for earlier versions -> what is typed now; a group alone: all of its options moved to another group.
FORMER = {
    "adversary_rate=own": "stage.adversary_lr_schedule.at=0",
    "adversary_rate=in_step": "stage.adversary_lr_schedule.at=${stage.adversary_from}",
    "adversary_weight": "gan/weight",
    "beside=nothing": "stage=decoder",
    "beside=inpainting": "stage=decoder_inpainting",
    "buckets": "data/buckets",
    "callbacks=clip": "callbacks=train",
    "callbacks=preemption": "callbacks=train",
    "caption": "data/captions",
    "captions": "protocol/captions",
    "checkpoints=all": "callbacks.checkpoint.save_top_k=-1",
    "checkpoints=newest": "callbacks.checkpoint.every_n_train_steps=2000 callbacks.checkpoint.save_top_k=5",
    "collapse=watch": "callbacks=movq",
    "engine=compile_budget": "engine=[compile,budget]",
    "engine=compile_recompute": "engine=[compile,recompute]",
    "filters": "data/filters",
    "index=headers": "data.index.count_by=headers",
    "index=stats": "data.index.count_by=stats",
    "penalty=r1_lecam": "gan/penalty=[r1,lecam]",
    "penalty": "gan/penalty",
    "revival=never": "stage.restart_unused_codes=false",
    "revival=restart": "stage.restart_unused_codes=true",
    "sidecars=none": "data.parquet_columns=null",
    "sidecars=parquet": "data.parquet_columns=[similarity,punsafe,pwatermark]",
    "sweep": "hparams_search",
    "stage.beside": "stage.input_conditioning",
}


def refuse_former(key: str, typed: str, folders: Sequence[Path]) -> None:
    """UserError for an override of an earlier version, which names what is typed now."""
    value = typed.partition("=")[2]
    if key in groups(folders) and f"{key}={value}" not in FORMER:
        return
    now = FORMER.get(f"{key}={value}")
    old = next((start for start in prefixes(key.split(".")) if start in FORMER), None)
    if now is None and old:
        now = f"{FORMER[old]}{key.removeprefix(old)}={value}"
    if now:
        raise UserError(f"{typed!r} is {now!r} since version 0.2")


def refuse_unknown_option(group: str, option: str, folders: Sequence[Path], package: str = "") -> None:
    """ValueError where `folders` hold no such group or option of it; `package` is what was typed after an @."""
    placed = f"{group}@{package}" if package else group
    if group not in groups(folders):
        raise UserError(f"no such group {group!r}" + did_you_mean(nearest_key(group, groups(folders))))
    known = options(group, folders)
    if option.removesuffix(".yaml") not in known:
        near = nearest_key(option, known)
        remedy = did_you_mean(f"{placed}={near}") if near else f"; there are: {', '.join(known)}"
        raise UserError(f"no such option '{placed}={option}'" + remedy)


def chosen_as(group: str, option: str, choices: Iterable[str]) -> str | None:
    """How to type an option of a group that the config places elsewhere, as in network@stage.network=prior/tiny."""
    for placed in choices:
        room, _, where = placed.partition("@")
        if where and (group == room or group.startswith(f"{room}/")):
            return f"{placed}={join(group.removeprefix(room).strip('/'), option).replace('.', '/')}"
    return None


def refuse_unknown_key(key: str, typed: str, base: Mapping[str, Any], group_names: Sequence[str]) -> None:
    """ValueError where `typed` sets a key that the config does not have."""
    unknown = first_unknown(base, key)
    if unknown is None:
        return
    owner, _, argument = unknown.rpartition(".")
    target = target_at(base, owner)
    if target and takes(target, argument):
        raise UserError(f"{unknown!r} is not set here but {target} takes it: add it with a plus, '+{typed}'")
    arguments_there = [join(owner, name) for name in parameters(target) or ()] if target else []
    raise UserError(
        f"no such key {unknown!r}" + did_you_mean(nearest_key(unknown, [*keys(base), *group_names, *arguments_there]))
    )


def refuse_stray_key(key: str, base: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """ValueError where an added key is no argument of any node of the composed config `tree`."""
    if first_unknown(base, key) is None:
        return
    parts = key.split(".")
    owner = next((o for o in prefixes(parts) if target_at(tree, o)), None)
    if owner is None or first_unknown(base, parts[0]) is not None:
        raise UserError(f"no such key {key!r}" + did_you_mean(nearest_key(key, keys(base))))
    argument, target = key.removeprefix(owner).strip(".").partition(".")[0], target_at(tree, owner)
    if argument and not is_word(argument) and target and not takes(target, argument):
        raise UserError(not_taken(owner, target, argument, base))


def refuse_missing(tree: Any, config_name: str, conf: Path) -> None:
    """One ValueError that lists every value still to be given, and what each takes."""
    absent = [key for key in keys(tree) if at(tree, key) == MISSING]
    if absent:
        lines = [
            f"  {key}={takes and '  ' + takes}"
            for key in absent
            for takes in [description(key, tree, config_name, conf)]
        ]
        raise UserError("these need a value:\n" + "\n".join(lines))


def description(key: str, tree: Any, config_name: str, conf: Path) -> str:
    """What `key` takes: the comment beside its ??? in the config files, or else the type in the signature."""
    owner, _, argument = key.rpartition(".")
    target = target_at(tree, owner)
    own = [*sorted((conf / key.partition(".")[0]).rglob("*.yaml")), conf / f"{config_name}.yaml"]
    chosen = [file for file in own if target and f"{target}\n" in file.read_text(encoding="utf-8")]
    ends = [".".join(key.split(".")[start:]) for start in range(key.count(".") + 1)]  # the longest first
    for files in (chosen, [*sorted(conf.rglob("*.yaml")), *own]):  # the last that says it is heard
        every = [one for file in files for one in config_help.keys(file)]
        said = {one.name: one.comment for one in every if one.value == MISSING and one.comment}
        if found := next((said[end] for end in ends if end in said), None):
            return found
    parameter = (parameters(target) or {}).get(argument) if target else None
    return "" if parameter is None or parameter.annotation is parameter.empty else type_name(parameter.annotation)


def at(tree: Any, key: str) -> Any:
    """The value under a dotted key, through references to whole nodes (${network}); ABSENT where there is none."""
    value = tree
    for part in key.split(".") if key else []:
        value = dict(children(value)).get(part, ABSENT)
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


def did_you_mean(near: str | None) -> str:
    return f"; did you mean {near!r}?" if near else ""
