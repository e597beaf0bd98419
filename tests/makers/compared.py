"""Two systems' galleries of small pictures for the same prompts."""

from pathlib import Path

from PIL import Image

from open_kandinsky.generation.gallery import Gallery, Picture

PROMPTS = ["a red circle", "a <b>blue</b> square & more", "ein gr\u00fcner Kreis"]


def gallery(folder, hue, prompts=PROMPTS, count=2):
    """Each picture of another colour; `hue`, 0 to 255, is the system's. As `generate` writes it."""
    pictures = [Picture(i, prompts[i // count], seed=i) for i in range(count * len(prompts))]
    made = Gallery(Path(folder), {"mode": "text_to_image", "weights_sha256": {"decoder": f"secret{hue}"}}, pictures)
    images = [Image.new("RGB", (8, 8), (hue, 20 * p.index, 7)) for p in pictures]
    made.add(pictures, images, {"sampler": "ddim"})
    made.finish()
    return made.folder
