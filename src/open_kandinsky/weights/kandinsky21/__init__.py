"""The original Kandinsky 2.1 files: their keys, and folders of them."""

from open_kandinsky.weights.kandinsky21.keys import STATISTICS, movq, prior, unet

__all__ = ["STATISTICS", "movq", "prior", "unet"]
