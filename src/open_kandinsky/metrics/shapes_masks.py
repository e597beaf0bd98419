"""Masks of the toy set's shapes: blobs cut out of a picture, and the rendered templates they are compared with."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

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
