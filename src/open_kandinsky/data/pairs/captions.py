"""Which of a sample's captions is trained on."""

import random
from collections.abc import Mapping
from typing import Any

from open_kandinsky.core.errors import BadSample, UserError
from open_kandinsky.data.tars.sample import Raw, parts, read_text


class Captions:
    """One caption a sample, drawn by weight. `weights`: where it lies -> weight.

    A place is `txt`, the text member, or a field of the json (or side file): a caption, or a list that one is drawn
    from. Where a place is empty, the draw is among the others; a place of weight 0 is for when there is no other.
    """

    def __init__(self, *, weights: Mapping[str, float]) -> None:
        if not weights or min(weights.values()) < 0:
            raise UserError(f"captions by weights {dict(weights)}: give at least one place, and no weight below 0")
        self.weights = dict(weights)

    def choose(self, raw: Raw, info: Mapping[str, Any], draws: random.Random) -> str:
        """Raises BadSample where there is none."""
        found = {place: held for place in self.weights if (held := captions_at(place, raw, info))}
        if not found:
            if raw.members.get("txt") == b"":
                raise BadSample("zero-byte member", ".txt")
            raise BadSample("missing caption", f"nothing in {', '.join(self.weights)}; {parts(raw)}")
        weights = [self.weights[place] for place in found]
        weights = weights if any(weights) else [1.0] * len(found)
        [place] = draws.choices(list(found), weights)
        return draws.choice(found[place])


def captions_at(place: str, raw: Raw, info: Mapping[str, Any]) -> list[str]:
    """All that are not blank."""
    held = read_text(raw) if place == "txt" else info.get(place)
    given = held if isinstance(held, list) else [held]
    return [text.strip() for text in given if isinstance(text, str) and text.strip()]
