"""COCO's validation set of 2014, which the protocols coco30k_* score on.

open-kandinsky coco                     to data/coco
open-kandinsky coco to=/data/coco

Resumes where it was stopped; checks a set that is complete. Without a network it says which two files to put where.
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.coco.fetch import fetch


def coco(cfg: DictConfig) -> Coco:
    """Fetch what the folder lacks of the set; ValueError as for `fetch`."""
    return fetch(Path(cfg.to), instantiate(cfg.published))


@compose.command("coco")
def main(cfg: DictConfig) -> None:
    fetched, published = coco(cfg), instantiate(cfg.published)
    print(f"coco: {len(fetched.images):,} images and {len(fetched.captions):,} captions in {fetched.source}")
    print(f"sha256 of ids, names and captions: {fetched.sha256}")
    archives = [fetched.source / archive.name for archive in (published.annotations, published.pictures)]
    if unneeded := [str(archive) for archive in archives if archive.exists()]:
        print(f"no longer needed: {', '.join(unneeded)}")


if __name__ == "__main__":
    main()
