"""Numbers that others have printed for COCO-30K, to stand beside ours. Each under its own protocol: none are equal."""

from typing import NamedTuple


class Row(NamedTuple):
    """A zero-shot FID-30K at 256 px and a CLIP score as its authors scale it, where they give one."""

    model: str
    fid: float | None
    clip_score: float | None
    source: str


PAPER = "arXiv 2310.03502, Table 3"
TABLE_3 = {
    "linear": Row("Kandinsky, linear prior", 8.03, 0.261, PAPER),
    "residual": Row("Kandinsky, residual prior", 8.61, 0.249, PAPER),
    "diffusion": Row("Kandinsky, diffusion prior", 9.87, 0.286, PAPER),
    "diffusion, quantised": Row("Kandinsky, diffusion prior, quantised latents", 9.86, 0.287, PAPER),
    "none": Row("Kandinsky, no prior", 25.92, 0.256, PAPER),
}
OTHERS = (
    Row("Kandinsky 2.1, as released", 8.21, None, "its model card"),
    Row("eDiff-I", 6.95, None, "arXiv 2310.03502, Table 1"),
    Row("Imagen", 7.27, None, "arXiv 2310.03502, Table 1"),
    Row("GigaGAN", 9.09, 0.33, "its evaluation code, CLIP ViT-B/32"),
    Row("DALL-E 2", 10.39, None, "arXiv 2310.03502, Table 1"),
    Row("Stable Diffusion 1.4", 13.05, 0.2958, "BK-SDM's card, CLIP ViT-g/14"),
    Row("Karlo", 14.43, 0.3192, "its README, CLIP ViT-B/16"),
    Row("DeepFloyd IF, by its authors", 7.19, None, "arXiv 2310.03502, Table 1"),
    Row("DeepFloyd IF, by Kandinsky's authors", 15.10, None, "arXiv 2310.03502, Table 1"),
)
