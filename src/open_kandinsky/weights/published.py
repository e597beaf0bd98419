"""Published weights of the networks that evaluate, found by name and hash on this machine, or else downloaded."""

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
    """A file of weights. `sha256` is the beginning of the hash where only that is published; None where nothing is."""

    file: str
    sha256: str | None
    url: str | None
    what: str
    also: tuple[str, ...] = ()  # other names of the same file


class FoundWeights(NamedTuple):
    """A file of weights on this machine, its whole hash, and whether that is the published one."""

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
    """The file in `folder`, in $EVAL_WEIGHTS_DIR or in torch's cache; downloaded into `folder` if it is in none.

    Raises ValueError, which names file, hash, address and folder, if the file cannot be downloaded, and if a file of
    its name has another hash, unless `accept_unknown`: then it is returned, and is not `verified`.
    """
    there = [path for path in candidates(published, folder) if path.is_file()]
    if not there:
        return download(published, folder)
    weights = hashed(there[0], published)
    if published.sha256 and not weights.verified and not accept_unknown:
        raise UserError(f"{weights.path}: its SHA-256 is {weights.sha256}, and not that of {described(published)}")
    return weights


def candidates(published: PublishedFile, folder: Path) -> list[Path]:
    """The paths that the file may have, best first."""
    return [place / name for place in places(folder) for name in (published.file, *published.also)]


def places(folder: Path) -> Sequence[Path]:
    """The folders in which weights are searched, in order."""
    named = os.environ.get(FOLDER)
    return [folder, *([Path(named).expanduser()] if named else []), Path(torch.hub.get_dir()) / "checkpoints"]


def hashed(path: Path, published: PublishedFile) -> FoundWeights:
    digest = store.sha256(path)
    return FoundWeights(path, digest, bool(published.sha256) and digest.startswith(published.sha256))


def download(published: PublishedFile, folder: Path) -> FoundWeights:
    """The file, written whole and with the published hash, or not at all. Raises ValueError as `find`."""
    if published.url is None:
        raise UserError(missing(published, folder, "it has no address"))
    path = folder / published.file
    try:
        with urlopen(published.url, timeout=TIMEOUT) as response, files.replacing(path) as part:
            with open(part, "wb") as file:
                copyfileobj(response, file)
            weights = hashed(part, published)
            if published.sha256 and not weights.verified:
                raise UserError(missing(published, folder, f"what came has the SHA-256 {weights.sha256}"))
    except (OSError, HTTPException) as error:
        raise UserError(missing(published, folder, str(error) or type(error).__name__)) from error
    return weights._replace(path=path)


def missing(published: PublishedFile, folder: Path, why: str) -> str:
    looked = ", ".join(str(place) for place in places(folder))
    text = f"{published.file} is in none of {looked}, and could not be fetched ({why})"
    return f"{text}; put into {folder} {described(published)}"


def described(published: PublishedFile) -> str:
    address = published.url or "its author's page"
    return f"{published.what}: {published.file}, SHA-256 {published.sha256}, from {address}"
