"""Reads the toy set's pictures by rule and says whether they show what their captions say. Nothing here is learned."""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float32, Int, UInt8
from torch import Tensor
from torchmetrics import Metric

from open_kandinsky.metrics.shapes_masks import Mask, Point, Templates, WorldLike, components, core, soft_mask

ATTRIBUTES = ("count", "shape", "colour", "size", "relation", "background", "all")
KINDS = {1: "all_single", 2: "all_pair"}  # by the number of things in the scene
FIGURES = (*ATTRIBUTES, *KINDS.values())


@runtime_checkable
class ThingLike(Protocol):
    """One object's attributes; an empty size is not asked about."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...


@runtime_checkable
class SceneLike(Protocol):
    """What a picture should show; an empty relation is not asked about."""

    @property
    def things(self) -> Sequence[ThingLike]: ...
    @property
    def relation(self) -> str: ...
    @property
    def background(self) -> str: ...


class ShapesOracle:
    """Reads scenes off pictures of `world`. A blob whose best template fits worse than `fit` has the shape "none"."""

    def __init__(self, world: WorldLike, *, fit: float = 0.75) -> None:
        self.world = world
        self.fit = fit
        self.templates = Templates(world)
        palette = {**world.backgrounds, **world.colours}
        self.names = list(palette)
        self.palette = np.array(list(palette.values()), dtype=np.float32)

    def read(self, image: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"]) -> dict:
        """`things` (shape, colour, size, centre (x, y), fit; largest first), `relation` of the first two, `background`.

        The size is empty unless the thing is alone, the relation is empty unless there are two or more.
        """
        pixels = np.asarray(image.cpu() if isinstance(image, Tensor) else image).astype(np.float32)
        nearest = self.nearest(pixels)
        background = int(np.bincount(border(nearest)).argmax())
        foreground = nearest != background
        blobs = components(foreground, smallest=self.templates.smallest / 4)
        seen = [self.thing(pixels, self.palette[background], blob, foreground & ~blob) for blob in blobs]
        things: list[dict] = [thing | {"size": thing["size"] if len(blobs) == 1 else ""} for thing in seen]
        return {"things": things, "relation": self.related(things), "background": self.names[background]}

    def judge(self, image: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"], scene: SceneLike) -> dict[str, bool]:
        """Whether the picture shows each attribute that the scene has, and "all" of them."""
        read = self.read(image)
        things = self.matched(read["things"], scene)
        pairs = list(zip(things, scene.things, strict=False))
        complete = len(pairs) == len(scene.things)
        right = {
            "count": len(read["things"]) == len(scene.things),
            "shape": complete and all(thing["shape"] == wanted.shape for thing, wanted in pairs),
            "colour": complete and all(thing["colour"] == wanted.colour for thing, wanted in pairs),
            "background": read["background"] == scene.background,
        }
        if scene.relation:
            right["relation"] = complete and self.related(things) == scene.relation
        if any(wanted.size for wanted in scene.things):
            right["size"] = complete and all(thing["size"] == wanted.size for thing, wanted in pairs)
        return right | {"all": all(right.values())}

    def matched(self, things: Sequence[dict], scene: SceneLike) -> Sequence[dict]:
        """The things in the scene's order: the one that gets most attributes right, then the relation."""

        def agreement(order: Sequence[dict]) -> tuple[int, bool]:
            pairs = zip(order, scene.things, strict=False)
            same = sum((a["shape"] == b.shape) + (a["colour"] == b.colour) for a, b in pairs)
            return same, self.related(order) == scene.relation

        largest = things[: len(scene.things) + 1]
        return max(permutations(largest, min(len(largest), len(scene.things))), key=agreement)

    def related(self, things: Sequence[dict]) -> str:
        """The relation of the first thing to the second; empty where there are not two."""
        return self.relation(things[0]["centre"], things[1]["centre"]) if len(things) > 1 else ""

    def relation(self, first: Point, second: Point) -> str:
        """The relation whose direction is nearest to that from the second centre to the first."""
        way = np.subtract(first, second)
        return max(self.world.relations, key=lambda name: float(np.dot(self.world.relations[name], way)))

    def thing(self, pixels: np.ndarray, background: np.ndarray, blob: Mask, rest: Mask) -> dict:
        """Name one blob's attributes; `rest` is what else lies before the background."""
        colour = np.median(pixels[core(blob)], axis=0)
        shape, radius, centre, fit = self.templates.best(soft_mask(pixels, background, colour, blob) * ~rest)
        return {
            "shape": shape if fit >= self.fit else "none",
            "colour": self.names[self.nearest(colour[None])[0]],
            "size": min(self.world.sizes, key=lambda name: abs(self.world.radius(name) - radius)),
            "centre": centre,
            "fit": fit,
        }

    def nearest(self, colours: Float32[np.ndarray, "*n 3"]) -> Int[np.ndarray, "*n"]:
        """The index of each colour's nearest in the palette."""
        distance = (self.palette**2).sum(1) - 2 * colours @ self.palette.T
        return distance.argmin(-1)


def border(image: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "n"]:
    """The outermost pixels."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


class CaptionAccuracy(Metric):
    """The share of pictures that show their scenes, attribute by attribute; counts alone, so processes add up."""

    right: Tensor
    asked: Tensor

    def __init__(self, *, oracle: ShapesOracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.add_state("right", torch.zeros(len(FIGURES), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(FIGURES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "b 3 h w"], scenes: Sequence[SceneLike]) -> None:
        """Read each picture and judge it against its scene. Raises ValueError where their numbers differ."""
        right, asked = Counter(), Counter()
        for image, scene in zip(rearrange(images.cpu(), "b c h w -> b h w c"), scenes, strict=True):
            judged = self.oracle.judge(image, scene)
            judged[KINDS[len(scene.things)]] = judged["all"]
            right.update(judged)
            asked.update(judged.keys())
        self.right += self.right.new_tensor([right[name] for name in FIGURES])
        self.asked += self.asked.new_tensor([asked[name] for name in FIGURES])

    def compute(self) -> dict[str, float]:
        """Each attribute's share where it was asked about, "all"'s standard error, and the number of pictures "n"."""
        counts = zip(FIGURES, self.right.tolist(), self.asked.tolist(), strict=True)
        share = {name: right / asked for name, right, asked in counts if asked}
        n = int(self.asked[FIGURES.index("all")])
        error = (share["all"] * (1 - share["all"]) / n) ** 0.5 if n else float("nan")
        return share | {"all_se": error, "n": n}
