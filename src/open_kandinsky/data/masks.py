"""Masks for inpainting: white is repainted, black stays. No other module decides that."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.transforms import to_rgb

WHITE = 128  # and above, of 255


def check_mask(mask: Image.Image, image: Image.Image) -> None:
    """Raises UserError for a mask of another size than its picture's, and for one without any white."""
    if mask.size != image.size:
        found, expected = ("{}x{}".format(*sized.size) for sized in (mask, image))
        raise UserError(f"a mask of {found} pixels for a picture of {expected}: make the mask as large as the picture")
    brightest = int(_levels(mask).max())
    if brightest < WHITE:
        raise UserError(
            f"the mask is nowhere white (its brightest level is {brightest} of 255), so nothing is to be painted: "
            "white is what is repainted, black stays"
        )


def keep_of(mask: Image.Image, *, factor: int, rows: int, columns: int) -> Float[Tensor, "1 {rows} {columns}"]:
    """The mask where latents are, `factor` pixels a latent: 1 = known, 0 = to paint.

    A latent is kept if none of its pixels is to be repainted, nor any of its eight neighbours': their pixels
    have a part in it. A mask that is smaller than the latents reach goes on as at its right and bottom edges.
    Levels of 128 and more are white, and transparency is.
    """
    white = _levels(mask) >= WHITE
    height, width = white.shape
    white = np.pad(white, ((0, rows * factor - height), (0, columns * factor - width)), mode="edge")
    repaint = F.max_pool2d(torch.from_numpy(white)[None].float(), factor)
    return 1 - F.max_pool2d(repaint, 3, stride=1, padding=1)


def _levels(mask: Image.Image) -> np.ndarray:
    return np.asarray(to_rgb(mask).convert("L"))
