"""What encoders are given of a sample: its picture as each of them wants it, and all of its captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import BadSample
from open_kandinsky.data.pairs.captions import captions_at
from open_kandinsky.data.pairs.rows import refuse_empty
from open_kandinsky.data.tars.sample import Raw, parts, read_image, read_info
from open_kandinsky.data.transforms import MAX_PIXELS


class Prepared(NamedTuple):
    """`pixels`: by the name of the field that is made from them."""

    key: str
    captions: list[str]
    pixels: dict[str, Tensor]


@dataclass(frozen=True)
class Prepare:
    """`transforms`: for each field that is made from the picture, how. `captions`: where they lie."""

    transforms: Mapping[str, Callable[[Image.Image], Tensor]]
    captions: Sequence[str]

    def __call__(self, raw: Raw) -> Prepared:
        """Raises BadSample for a sample that cannot be used."""
        refuse_empty(raw)
        captions = all_captions(raw, self.captions)
        image = read_image(raw, MAX_PIXELS)
        return Prepared(raw.key, captions, {name: make(image) for name, make in self.transforms.items()})


def all_captions(raw: Raw, places: Sequence[str]) -> list[str]:
    """Those of every place, each once: img2dataset writes the same into txt and json.

    Raises BadSample where there is none at all.
    """
    info = read_info(raw)
    captions = list(dict.fromkeys(caption for place in places for caption in captions_at(place, raw, info)))
    if not captions:
        raise BadSample("missing caption", f"nothing in {', '.join(places)}; {parts(raw)}")
    return captions
