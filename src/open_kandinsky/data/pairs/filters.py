"""Which samples are wanted: by the size in the image's header, and by what is known of them; nothing is decoded."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from open_kandinsky.core.errors import FilteredSample, UserError
from open_kandinsky.data.tars.tally import FILTERED

Bounds = Sequence[float | None]  # least and most, both included; None: open


class Filters:
    """Refuses samples by FilteredSample; the reasons begin as those do that are no defect.

    min_side, min_pixels: of the upright image, in pixels; max_aspect: its longer side to its shorter one; None: any.
    known: fact -> bounds; a sample without the fact is refused. if_known: the same, a sample without it is taken.
    labels: fact -> the values that are taken, such as LAION's NSFW: [UNLIKELY].
    """

    def __init__(
        self,
        *,
        min_side: int | None,
        min_pixels: int | None,
        max_aspect: float | None,
        known: Mapping[str, Bounds],
        if_known: Mapping[str, Bounds],
        labels: Mapping[str, Sequence[Any]],
    ) -> None:
        for name, bounds in {**known, **if_known}.items():
            if len(bounds) != 2:
                raise UserError(f"bounds of {name}: {list(bounds)}; give [least, most], null where it is open")
        self.min_side, self.min_pixels, self.max_aspect = min_side, min_pixels, max_aspect
        self.known = {name: tuple(bounds) for name, bounds in known.items()}
        self.if_known = {name: tuple(bounds) for name, bounds in if_known.items()}
        self.labels = {name: tuple(wanted) for name, wanted in labels.items()}

    def check(self, size: tuple[int, int], info: Mapping[str, Any]) -> None:
        """`size`: width and height. Raises FilteredSample for a sample that is not wanted."""
        short, long = sorted(size)
        found = f"{size[0]}x{size[1]}"
        if self.min_side is not None and short < self.min_side:
            refuse("side", f"{found}, under {self.min_side}")
        if self.min_pixels is not None and short * long < self.min_pixels:
            refuse("pixels", f"{found}, under {self.min_pixels}")
        if self.max_aspect is not None and long > self.max_aspect * short:
            refuse("aspect", f"{found}, over {self.max_aspect}")
        self.check_facts(info)

    def check_facts(self, info: Mapping[str, Any]) -> None:
        for name, bounds in self.known.items():
            if number(info.get(name)) is None:
                refuse(f"no {name}", f"found {info.get(name)!r}")
            check_bounds(name, info.get(name), bounds)
        for name, bounds in self.if_known.items():
            check_bounds(name, info.get(name), bounds)
        for name, wanted in self.labels.items():
            if info.get(name) not in wanted:
                refuse(name, f"{info.get(name)!r}, not in {list(wanted)}")


def check_bounds(name: str, value: Any, bounds: Bounds) -> None:
    """Bounds are included; what is no number is not judged."""
    found, (least, most) = number(value), bounds
    if found is None:
        return
    if (least is not None and found < least) or (most is not None and found > most):
        refuse(name, f"{found}, not in [{least}, {most}]")


def number(value: Any) -> float | None:
    """A json's or a side file's number; tables that went through pandas hold some as text, and nan for none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found


def refuse(reason: str, detail: str) -> None:
    raise FilteredSample(f"{FILTERED}{reason}", detail)
