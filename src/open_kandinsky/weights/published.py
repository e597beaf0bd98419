"""The published weights of the networks that evaluate: found by name and hash, and fetched only where there is none."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from typing import NamedTuple
from urllib.request import urlopen

import torch

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.weights import store

FOLDER = "EVAL_WEIGHTS_DIR"  # the environment variable
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights. `sha256` may be the beginning of the hash, where no more of it is published, or None."""

    file: str
    sha256: str | None
    url: str | None
    what: str
    also: tuple[str, ...] = ()  # other names that the same file goes by


class FoundWeights(NamedTuple):
    """Where weights lie, their whole hash, and whether it is the published one."""

    path: Path
    sha256: str
    verified: bool


INCEPTION = PublishedFile(
    file="weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    what="the Inception of 2015, on whose features a Frechet distance is FID",
    also=("pt_inception-2015-12-05-6726825d.pth",),  # pytorch-fid's name
)
DINOV2 = PublishedFile(
    file="dinov2_vitl14_pretrain.pth",
    sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    what="DINOv2 ViT-L/14",
)
VGG16 = PublishedFile(
    file="vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    what="torchvision's VGG16, which LPIPS looks through",
)
EVALUATORS = (INCEPTION, DINOV2, VGG16)


def find(published: PublishedFile, folder: Path, *, accept_unknown: bool = False) -> FoundWeights:
    """The file, in `folder`, in $EVAL_WEIGHTS_DIR or in torch's cache; fetched into `folder` if it is in none.

    Raises ValueError, which names file, hash, address and folder, where it is in none and cannot be fetched, and where
    a file of its name has another hash, unless `accept_unknown`: then it is returned, and is not `verified`.
    """
    there = [path for path in candidates(published, folder) if path.is_file()]
    if not there:
        return fetched(published, folder)
    found = checked(there[0], published)
    if published.sha256 and not found.verified and not accept_unknown:
        raise UserError(f"{found.path}: its SHA-256 is {found.sha256}, and not that of {described(published)}")
    return found


def candidates(published: PublishedFile, folder: Path) -> list[Path]:
    return [place / name for place in places(folder) for name in (published.file, *published.also)]


def places(folder: Path) -> Sequence[Path]:
    """Where weights are looked for, in order."""
    named = os.environ.get(FOLDER)
    return [folder, *([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def checked(path: Path, published: PublishedFile) -> FoundWeights:
    digest = store.sha256(path)
    return FoundWeights(path, digest, bool(published.sha256) and digest.startswith(published.sha256))


def fetched(published: PublishedFile, folder: Path) -> FoundWeights:
    """Whole and of the published hash, or not at all. Raises ValueError as `find`."""
    if published.url is None:
        raise UserError(absent(published, folder, "it has no address"))
    path = folder / published.file
    try:
        with urlopen(published.url, timeout=TIMEOUT) as response, files.replacing(path) as part:
            with open(part, "wb") as file:
                copyfileobj(response, file)
            wrong = checked(part, published)
            if published.sha256 and not wrong.verified:
                raise UserError(absent(published, folder, f"what came has the SHA-256 {wrong.sha256}"))
    except (OSError, HTTPException) as error:
        raise UserError(absent(published, folder, str(error) or type(error).__name__)) from error
    return checked(path, published)


def absent(published: PublishedFile, folder: Path, why: str) -> str:
    looked = ", ".join(str(place) for place in places(folder))
    told = f"{published.file} is in none of {looked}, and could not be fetched ({why})"
    return f"{told}; put into {folder} {described(published)}"


def described(published: PublishedFile) -> str:
    address = published.url or "its author's page"
    return f"{published.what}: {published.file}, SHA-256 {published.sha256}, from {address}"
