"""COCO's validation set of 2014, which the protocols coco30k_* score on.

open-kandinsky coco                     to data/coco
open-kandinsky coco to=/data/coco

Goes on where it was stopped; done again, it only looks. Without a network it says which two files to put where.
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_kandinsky.config import compose
from open_kandinsky.data.coco import Coco
from open_kandinsky.data.coco.fetch import CocoRelease, fetch


def coco(cfg: DictConfig) -> Coco:
    """Run it; ValueError as for `fetch`."""
    return fetch(Path(cfg.to), instantiate(cfg.published))


def spare(folder: Path, published: CocoRelease) -> list[Path]:
    """Archives that are still there, of which nothing is needed any more."""
    paths = (folder / archive.name for archive in (published.annotations, published.pictures))
    return [path for path in paths if path.exists()]


@compose.command("coco")
def main(cfg: DictConfig) -> None:
    found = coco(cfg)
    print(f"coco: {len(found.images):,} images and {len(found.captions):,} captions in {found.source}")
    print(f"sha256 of ids, names and captions: {found.sha256}")
    if left := spare(found.source, instantiate(cfg.published)):
        print(f"no longer needed: {', '.join(map(str, left))}")


if __name__ == "__main__":
    main()
