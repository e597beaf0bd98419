"""Pixels of the toy set: silhouettes in units of their radius, sampled into soft masks and painted one over the other.

Positions are (x, y) in pixels, x to the right, y down, the middle of the first pixel at (0.5, 0.5).
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Float32, UInt8

SAMPLES = 4  # along each side of a pixel: 16 samples make the edge

Axis = Float[np.ndarray, "#h #w"]
Silhouette = Callable[[Axis, Axis], np.ndarray]


def circle(x: Axis, y: Axis) -> np.ndarray:
    """The unit disc."""
    return x * x + y * y <= 1


def square(x: Axis, y: Axis) -> np.ndarray:
    """Slightly less than the unit box, so that its area is nearer to the others'."""
    return (abs(x) <= 0.92) & (abs(y) <= 0.92)


def triangle(x: Axis, y: Axis) -> np.ndarray:
    """Apex up, as wide and nearly as high as the unit box."""
    return (y <= 0.9) & (abs(x) <= (y + 1) / 1.9)


def cross(x: Axis, y: Axis) -> np.ndarray:
    """Upright, with arms thick enough to survive an autoencoder that halves the picture twice."""
    return ((abs(x) <= 0.36) & (abs(y) <= 1)) | ((abs(y) <= 0.36) & (abs(x) <= 1))


SILHOUETTES: Mapping[str, Silhouette] = {"circle": circle, "square": square, "triangle": triangle, "cross": cross}


def coverage(shape: str, *, centre: tuple[float, float], radius: float, size: int) -> Float32[np.ndarray, "h w"]:
    """How much of each pixel the shape covers, in [0, 1]; `radius`, `centre` and `size` in pixels."""
    at = (np.arange(size * SAMPLES) + 0.5) / SAMPLES
    x, y = (at - centre[0]) / radius, (at - centre[1]) / radius
    inside = SILHOUETTES[shape](x[None, :], y[:, None])
    pool = np.repeat(np.eye(size, dtype=np.float32), SAMPLES, axis=1) / SAMPLES
    return pool @ inside.astype(np.float32) @ pool.T


def paint(
    canvas: Float32[np.ndarray, "h w 3"], mask: Float32[np.ndarray, "h w"], colour: tuple[int, int, int]
) -> Float32[np.ndarray, "h w 3"]:
    """`canvas` with `colour` laid over it where `mask` is 1; both in [0, 255]."""
    return canvas + mask[:, :, None] * (np.array(colour, dtype=np.float32) - canvas)


def to_uint8(canvas: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Round to the nearest of 256 levels."""
    return np.rint(canvas).astype(np.uint8)
