"""Masks of the toy set's shapes: blobs cut out of a picture, and the rendered templates they are compared with.

Reads the toy set's pictures by rule and says whether they show what their captions say. Nothing here is learned.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric

Point = tuple[float, float]
Mask = Bool[np.ndarray, "h w"]


@runtime_checkable
class WorldLike(Protocol):
    """The vocabularies (colours are RGB in [0, 255]) and the pictures of shapes; `size` and radii in pixels."""

    @property
    def size(self) -> int: ...
    @property
    def shapes(self) -> Sequence[str]: ...
    @property
    def colours(self) -> Mapping[str, Any]: ...
    @property
    def backgrounds(self) -> Mapping[str, Any]: ...
    @property
    def relations(self) -> Mapping[str, Any]: ...
    @property
    def sizes(self) -> Mapping[str, Any]: ...
    def radius(self, size: str) -> float: ...
    def template(self, shape: str, radius: float, offset: Point) -> np.ndarray: ...


class Templates:
    """Soft masks of every shape at many radii, laid so that their centroids are at most a pixel off the middle."""

    def __init__(self, world: WorldLike) -> None:
        radii = [world.radius(size) for size in world.sizes]
        radii = np.geomspace(0.85 * min(radii), 1.15 * max(radii), 12)
        shifts = list(product((-1 / 3, 0, 1 / 3), repeat=2))
        self.keys = [(shape, float(r), self.lean(world, shape, r)) for shape in world.shapes for r in radii]
        masks = [
            world.template(shape, r, (x - lean[0], y - lean[1])) for shape, r, lean in self.keys for x, y in shifts
        ]
        self.masks = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
        self.power = (self.masks**2).sum(1)
        self.shifts = len(shifts)
        self.smallest = float(self.masks.sum(1).min())

    @staticmethod
    def lean(world: WorldLike, shape: str, radius: float) -> Point:
        """From the shape's own centre to its centroid, (x, y) in pixels: a triangle's is low."""
        x, y = centroid(world.template(shape, radius, (0.0, 0.0)))
        return x - world.size / 2, y - world.size / 2

    def best(self, mask: Float32[np.ndarray, "h w"]) -> tuple[str, float, Point, float]:
        """Shape, radius, centre and soft intersection over union of the template that fits the mask best."""
        centre = centroid(mask)
        flat = centred(mask, centre).flatten()
        overlap = self.masks @ flat
        fit = overlap / (self.power + flat @ flat - overlap)
        at = int(fit.argmax())
        shape, radius, lean = self.keys[at // self.shifts]
        return shape, radius, (centre[0] - lean[0], centre[1] - lean[1]), float(fit[at])


def components(foreground: Mask, *, smallest: float) -> list[Mask]:
    """The connected parts of at least `smallest` pixels, largest first."""
    labels = np.zeros(foreground.shape, dtype=np.int32)
    ndimage.label(foreground, output=labels)
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")
    return [labels == i + 1 for i in order if areas[i] >= smallest]


def core(blob: Mask) -> Mask:
    """The blob without its blurred rim, or all of a blob that is nothing but rim."""
    inside = ndimage.binary_erosion(blob)
    return inside if inside.any() else blob


def soft_mask(
    pixels: Float32[np.ndarray, "h w 3"], background: Float32[np.ndarray, "3"], colour: np.ndarray, blob: Mask
) -> Float32[np.ndarray, "h w"]:
    """How far each pixel in and around the blob has gone from the background's colour to the blob's, in [0, 1]."""
    way = (colour - background).astype(np.float32)
    alpha = ((pixels - background) @ way / max(float(way @ way), 1.0)).clip(0, 1)
    return alpha * ndimage.binary_dilation(blob, iterations=2)


def centroid(mask: np.ndarray) -> Point:
    """The mask's centre of mass, (x, y) in pixels; its middle if it is empty."""
    at = np.arange(mask.shape[0]) + 0.5
    total = float(mask.sum())
    return (float(mask.sum(0) @ at) / total, float(mask.sum(1) @ at) / total) if total else (at.mean(), at.mean())


def centred(mask: np.ndarray, centre: Point) -> np.ndarray:
    """The mask moved by whole pixels so that `centre` comes within half a pixel of the middle."""
    size = mask.shape[0]
    x, y = (round(c) for c in centre)
    return np.pad(mask, size // 2)[y : y + size, x : x + size]


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
