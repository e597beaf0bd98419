"""Reads the toy set's pictures by rule, without learning, and says whether they show their captions.

A picture is cut into blobs, and each blob is compared with rendered templates of every shape at many sizes.
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
    """A toy world: its vocabularies (colours are RGB in [0, 255]) and rendered shapes; `size` and radii in pixels."""

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
    """Soft masks of every shape at many radii, with centroids within a pixel of the middle."""

    def __init__(self, world: WorldLike) -> None:
        radii = [world.radius(size) for size in world.sizes]
        radii = np.geomspace(0.85 * min(radii), 1.15 * max(radii), 12)
        shifts = list(product((-1 / 3, 0, 1 / 3), repeat=2))
        self.keys = [(shape, float(r), self.centroid_offset(world, shape, r)) for shape in world.shapes for r in radii]
        masks = [
            world.template(shape, r, (x - offset[0], y - offset[1]))
            for shape, r, offset in self.keys
            for x, y in shifts
        ]
        self.masks = np.stack(masks).reshape(len(masks), -1).astype(np.float32)
        self.power = (self.masks**2).sum(1)
        self.shifts = len(shifts)
        self.smallest = float(self.masks.sum(1).min())

    @staticmethod
    def centroid_offset(world: WorldLike, shape: str, radius: float) -> Point:
        """From a shape's centre to its centroid, (x, y) in pixels: a triangle's is lower."""
        x, y = centroid(world.template(shape, radius, (0.0, 0.0)))
        return x - world.size / 2, y - world.size / 2

    def best(self, mask: Float32[np.ndarray, "h w"]) -> tuple[str, float, Point, float]:
        """Shape, radius, centre and soft intersection over union of the template that fits the mask best."""
        centre = centroid(mask)
        flat = centred(mask, centre).flatten()
        overlap = self.masks @ flat
        fit = overlap / (self.power + flat @ flat - overlap)
        best = int(fit.argmax())
        shape, radius, offset = self.keys[best // self.shifts]
        return shape, radius, (centre[0] - offset[0], centre[1] - offset[1]), float(fit[best])


def components(foreground: Mask, *, smallest: float) -> list[Mask]:
    """The connected components of at least `smallest` pixels, largest first."""
    labels = np.zeros(foreground.shape, dtype=np.int32)
    ndimage.label(foreground, output=labels)
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")
    return [labels == i + 1 for i in order if areas[i] >= smallest]


def core(blob: Mask) -> Mask:
    """The blob without its blurred rim; all of a blob that is only rim."""
    inside = ndimage.binary_erosion(blob)
    return inside if inside.any() else blob


def soft_mask(
    pixels: Float32[np.ndarray, "h w 3"], background: Float32[np.ndarray, "3"], colour: np.ndarray, blob: Mask
) -> Float32[np.ndarray, "h w"]:
    """Opacity of the blob's colour over the background's for each pixel in and around the blob, in [0, 1]."""
    difference = (colour - background).astype(np.float32)
    alpha = ((pixels - background) @ difference / max(float(difference @ difference), 1.0)).clip(0, 1)
    return alpha * ndimage.binary_dilation(blob, iterations=2)


def centroid(mask: np.ndarray) -> Point:
    """The mask's centre of mass, (x, y) in pixels; its middle if it is empty."""
    position, total = np.arange(mask.shape[0]) + 0.5, float(mask.sum())
    if not total:
        return position.mean(), position.mean()
    return float(mask.sum(0) @ position) / total, float(mask.sum(1) @ position) / total


def centred(mask: np.ndarray, centre: Point) -> np.ndarray:
    """The mask shifted by whole pixels so that `centre` is within half a pixel of the middle."""
    size = mask.shape[0]
    x, y = (round(c) for c in centre)
    return np.pad(mask, size // 2)[y : y + size, x : x + size]


ATTRIBUTES = ("count", "shape", "colour", "size", "relation", "background", "all")
ALL_BY_COUNT = {1: "all_single", 2: "all_pair"}  # by the number of things in the scene
FIGURES = (*ATTRIBUTES, *ALL_BY_COUNT.values())


@runtime_checkable
class ThingLike(Protocol):
    """One object's attributes; an empty size is not judged."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...


@runtime_checkable
class SceneLike(Protocol):
    """The scene that a picture should show; an empty relation is not judged."""

    @property
    def things(self) -> Sequence[ThingLike]: ...
    @property
    def relation(self) -> str: ...
    @property
    def background(self) -> str: ...


class ShapesOracle:
    """Reads scenes from pictures of `world`. A blob whose best template fits worse than `fit` has the shape "none"."""

    def __init__(self, world: WorldLike, *, fit: float = 0.75) -> None:
        self.world = world
        self.fit = fit
        self.templates = Templates(world)
        palette = {**world.backgrounds, **world.colours}
        self.names = list(palette)
        self.palette = np.array(list(palette.values()), dtype=np.float32)

    def read(self, image: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"]) -> dict:
        """`things` (shape, colour, size, centre (x, y), fit; largest first), `relation` of the first two, `background`.

        The size is empty unless there is one thing only, the relation unless there are two or more.
        """
        pixels = np.asarray(image.cpu() if isinstance(image, Tensor) else image).astype(np.float32)
        nearest = self.nearest(pixels)
        border = np.concatenate([nearest[0], nearest[-1], nearest[1:-1, 0], nearest[1:-1, -1]])
        background = int(np.bincount(border).argmax())
        foreground = nearest != background
        blobs = components(foreground, smallest=self.templates.smallest / 4)
        things = [self.thing(pixels, self.palette[background], blob, foreground & ~blob) for blob in blobs]
        if len(things) > 1:
            things = [thing | {"size": ""} for thing in things]
        return {"things": things, "relation": self.relation(things), "background": self.names[background]}

    def judge(self, image: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"], scene: SceneLike) -> dict[str, bool]:
        """For each attribute of the scene, and for "all" of them, whether the picture shows it."""
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
            right["relation"] = complete and self.relation(things) == scene.relation
        if any(wanted.size for wanted in scene.things):
            right["size"] = complete and all(thing["size"] == wanted.size for thing, wanted in pairs)
        return right | {"all": all(right.values())}

    def matched(self, things: Sequence[dict], scene: SceneLike) -> Sequence[dict]:
        """The things in the order in which most attributes are right, or of equal ones the relation."""

        def agreement(order: Sequence[dict]) -> tuple[int, bool]:
            pairs = zip(order, scene.things, strict=False)
            same = sum((a["shape"] == b.shape) + (a["colour"] == b.colour) for a, b in pairs)
            return same, self.relation(order) == scene.relation

        largest = things[: len(scene.things) + 1]
        return max(permutations(largest, min(len(largest), len(scene.things))), key=agreement)

    def relation(self, things: Sequence[dict]) -> str:
        """The relation of the first thing to the second, nearest in direction; empty for fewer than two."""
        if len(things) < 2:
            return ""
        direction = np.subtract(things[0]["centre"], things[1]["centre"])
        return max(self.world.relations, key=lambda name: float(np.dot(self.world.relations[name], direction)))

    def thing(self, pixels: np.ndarray, background: np.ndarray, blob: Mask, rest: Mask) -> dict:
        """The attributes of one blob; `rest` is the foreground without it."""
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
        """The index of the palette's nearest colour to each colour."""
        distance = (self.palette**2).sum(1) - 2 * colours @ self.palette.T
        return distance.argmin(-1)


class CaptionAccuracy(Metric):
    """The share of pictures that show their scenes, by attribute. The states are counts, so that processes add up."""

    right: Tensor
    judged: Tensor

    def __init__(self, *, oracle: ShapesOracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.add_state("right", torch.zeros(len(FIGURES), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("judged", torch.zeros(len(FIGURES), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "b 3 h w"], scenes: Sequence[SceneLike]) -> None:
        """Read each picture and judge it against its scene. Raises ValueError where their numbers differ."""
        right, judged = Counter(), Counter()
        for image, scene in zip(rearrange(images.cpu(), "b c h w -> b h w c"), scenes, strict=True):
            verdicts = self.oracle.judge(image, scene)
            verdicts[ALL_BY_COUNT[len(scene.things)]] = verdicts["all"]
            right.update(verdicts)
            judged.update(verdicts.keys())
        self.right += self.right.new_tensor([right[name] for name in FIGURES])
        self.judged += self.judged.new_tensor([judged[name] for name in FIGURES])

    def compute(self) -> dict[str, float]:
        """The share of each attribute that was judged, the standard error of "all", and the number of pictures "n"."""
        counts = zip(FIGURES, self.right.tolist(), self.judged.tolist(), strict=True)
        share = {name: right / judged for name, right, judged in counts if judged}
        n = int(self.judged[FIGURES.index("all")])
        error = (share["all"] * (1 - share["all"]) / n) ** 0.5 if n else float("nan")
        return share | {"all_se": error, "n": n}
