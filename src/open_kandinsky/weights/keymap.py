"""Exact renaming of weights between our networks and another program's, in both directions.

A rule names one of our modules (or tensors) and its counterparts; a `KeyMap` is rules spelt out for one network, so
that it knows every key and every shape of both sides. Nothing is skipped: a key that is missing, left over or of
another shape stops the conversion.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.core.suggest import nearest
from open_kandinsky.weights.store import return_freed_memory

State = Mapping[str, Tensor]
Shapes = dict[str, torch.Size]


class Change(NamedTuple):
    """How their tensors are joined into one of ours, and ours is split into theirs."""

    join: Callable[[list[Tensor]], Tensor]
    split: Callable[[Tensor], list[Tensor]]


SAME = Change(lambda parts: parts[0], lambda x: [x])


def stacked(parts: int) -> Change:
    """Ours is theirs one above the other: `qkv` of to_q, to_k, to_v."""
    return Change(torch.cat, lambda x: [part.clone() for part in x.chunk(parts)])  # clones: files refuse shared memory


def leading(dims: int) -> Change:
    """Theirs has `dims` dimensions of 1 in front."""
    return Change(lambda parts: parts[0].squeeze(tuple(range(dims))), lambda x: [x[(None,) * dims]])


def pointwise(dims: int) -> Change:
    """Theirs is a 1x1 convolution over `dims` axes, ours a linear layer; biases are alike."""
    return Change(
        lambda parts: parts[0].reshape(parts[0].shape[:2]),
        lambda x: [x.reshape(*x.shape, *[1] * dims) if x.ndim == 2 else x],
    )


def chain(outer: Change, inner: Change) -> Change:
    """From theirs to ours, first `outer` and then `inner`."""
    return Change(lambda parts: inner.join([outer.join(parts)]), lambda x: outer.split(inner.split(x)[0]))


class Rule(NamedTuple):
    """The name of a module or tensor of ours, and the names of theirs that it is made of."""

    ours: str
    theirs: tuple[str, ...]
    change: Change = SAME


class Constant(NamedTuple):
    """A tensor absent from the other format, where it always has this value."""

    ours: str
    value: float


Rules = Iterable[Rule | Constant]


def renamed(names: Mapping[str, str]) -> list[Rule]:
    """Our name -> theirs, tensors unchanged."""
    return [Rule(ours, (theirs,)) for ours, theirs in names.items()]


def under(ours: str, theirs: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a module for one inside of `ours`, and of `theirs`."""
    return [Rule(f"{ours}.{r.ours}", tuple(f"{theirs}.{t}" for t in r.theirs), r.change) for r in rules]


class Pair(NamedTuple):
    """A rule applied to one tensor: `like` has our shape and dtype, `theirs` the keys and shapes on the other side."""

    rule: Rule | Constant
    like: Tensor
    theirs: Shapes


class KeyMap:
    """Rules spelt out for one network, of which `like` is a state dict: its keys, shapes and dtypes count, not values.

    ValueError where no rule knows one of its keys.
    """

    def __init__(self, rules: Rules, like: State) -> None:
        by_name = {rule.ours: rule for rule in rules}
        self.pairs = {key: _pair(by_name, key, tensor.detach().to("meta")) for key, tensor in like.items()}
        self.ours: Shapes = {key: pair.like.shape for key, pair in self.pairs.items()}
        self.theirs: Shapes = {key: shape for pair in self.pairs.values() for key, shape in pair.theirs.items()}
        assert len(self.theirs) == sum(len(pair.theirs) for pair in self.pairs.values()), "one of their keys used twice"

    def to_ours(self, theirs: State) -> dict[str, Tensor]:
        """Their state dict as ours. ValueError for a key that is missing, left over or of another shape."""
        _check(theirs, self.theirs)
        return {key: _joined(pair, theirs) for key, pair in self.pairs.items()}

    def to_ours_in_place(self, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
        """As `to_ours`, and empties `theirs` on its way, so that no more than one tensor is in memory twice."""
        _check(theirs, self.theirs)
        ours = {}
        for key, pair in self.pairs.items():
            ours[key] = _joined(pair, theirs)
            for name in pair.theirs:
                del theirs[name]
            if len(pair.theirs) > 1:
                return_freed_memory()  # joined tensors leave holes in the heap, too small for the next ones
        return ours

    def to_theirs(self, ours: State) -> dict[str, Tensor]:
        """Our state dict as theirs. ValueError as in `to_ours`, and for a value that they have no place for."""
        _check(ours, self.ours)
        return {key: part for our, pair in self.pairs.items() for key, part in _split(pair, ours[our]).items()}


def _pair(rules: Mapping[str, Rule | Constant], key: str, like: Tensor) -> Pair:
    module, _, leaf = key.rpartition(".")
    if key in rules:
        rule, suffix = rules[key], ""
    elif module in rules:
        rule, suffix = rules[module], f".{leaf}"
    else:
        raise UserError(f"no rule for our {key!r}{_nearest(key, rules)}")
    if isinstance(rule, Constant):
        return Pair(rule, like, {})
    names = [name + suffix for name in rule.theirs]
    return Pair(rule, like, {n: part.shape for n, part in zip(names, rule.change.split(like), strict=True)})


def _joined(pair: Pair, theirs: State) -> Tensor:
    if isinstance(pair.rule, Constant):
        return torch.full(pair.like.shape, pair.rule.value, dtype=pair.like.dtype)
    return pair.rule.change.join([theirs[key] for key in pair.theirs])


def _split(pair: Pair, ours: Tensor) -> dict[str, Tensor]:
    if isinstance(pair.rule, Rule):
        return dict(zip(pair.theirs, pair.rule.change.split(ours), strict=True))
    if not ours.is_meta and bool((ours != pair.rule.value).any()):
        raise UserError(f"{pair.rule.ours!r} is not {pair.rule.value} everywhere, and the other side cannot hold it")
    return {}


def _check(state: State, expected: Shapes, named: int = 3) -> None:
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    faults = [f"missing {key!r}{_nearest(key, extra)}" for key in missing[:named]]
    faults += [f"left over {key!r}{_nearest(key, missing or expected)}" for key in extra[:named]]
    if faults:
        raise UserError(f"{len(missing)} keys missing, {len(extra)} left over: " + "; ".join(faults))
    for key, shape in expected.items():
        if state[key].shape != shape:
            raise UserError(f"{key!r} has shape {list(state[key].shape)}, expected {list(shape)}")


def _nearest(key: str, candidates: Iterable[str]) -> str:
    near = nearest(key, candidates, cutoff=0.0)
    return f" (nearest: {near!r})" if near else ""
