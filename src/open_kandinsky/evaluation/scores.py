"""From features to the numbers that papers print. Each score says which networks it reads.

Means and covariances of real pictures in place of the pictures: the npz files that evaluation programs exchange.

Ours hold `mu` and `sigma`, as pytorch-fid, clean-fid and text2image-benchmark write and read them, and beside them what
they are of. Those of others do not say what they are of, and are taken only if that is accepted by name.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.clip_score import clip_score
from open_kandinsky.metrics.features import inception_score
from open_kandinsky.metrics.frechet import Moments, cross_checked, frechet_from_moments, moments
from open_kandinsky.metrics.kernel import cmmd, kid
from open_kandinsky.metrics.neighbours import neighbours

Set = Mapping[str, Tensor]  # a set of pictures' features by name, [n d]
SMALL = 2048  # pictures below which a covariance of Inception's features has no full rank
SEED = 0  # of KID's subsets, and of the order in which the Inception score splits


@dataclass(frozen=True)
class Score:
    """`compute(generated, real)`, where `real` is empty if the score needs no real pictures."""

    reads: str  # the role of an extractor: inception, dinov2, cmmd, or clip for each of the protocol's
    real: bool
    compute: Callable[[Set, Set], Mapping[str, float]]
    about: str = ""  # what else decides it


def fid(generated: Set, real: Set) -> dict[str, float]:
    few = min(len(generated["pool"]), len(real["pool"])) < SMALL
    return {"fid_small_n" if few else "fid": cross_checked(real["pool"], generated["pool"])}


def kernel_distance(generated: Set, real: Set) -> dict[str, float]:
    size = min(1000, len(generated["pool"]), len(real["pool"]))
    found = kid(real["pool"], generated["pool"], seed=SEED, subset_size=size)
    return {"kid": found.mean, "kid_std": found.std}


def inception(generated: Set, real: Set) -> dict[str, float]:
    found = inception_score(generated["logits"], seed=SEED, splits=min(10, len(generated["logits"])))
    return {"is": found.mean, "is_std": found.std}


def precision(generated: Set, real: Set) -> dict[str, float]:
    return neighbours(real["pool"], generated["pool"])._asdict()


def fd_dinov2(generated: Set, real: Set) -> dict[str, float]:
    return {"fd_dinov2": cross_checked(real["cls"], generated["cls"])}


def maximum_mean_discrepancy(generated: Set, real: Set) -> dict[str, float]:
    found = cmmd(real["image"], generated["image"])
    return {"cmmd": found.value, "cmmd_unbiased": found.unbiased}


def similarity(generated: Set, real: Set) -> dict[str, float]:
    """Raw cosines, neither clipped nor scaled: their mean, and its standard error."""
    each = clip_score(generated["image"], generated["text"])
    return {"clip_score": float(each.mean()), "clip_score_se": float(each.std() / len(each) ** 0.5)}


def frechet(generated: Set, real: Set) -> dict[str, float]:
    """On a CLIP's pictures: never to be called FID."""
    return {"frechet_distance": cross_checked(real["image"], generated["image"])}


SCORES = {
    "fid": Score("inception", True, fid),
    "kid": Score("inception", True, kernel_distance),
    "is": Score("inception", False, inception),
    "precision_recall": Score("inception", True, precision),
    "fd_dinov2": Score("dinov2", True, fd_dinov2),
    "cmmd": Score("cmmd", True, maximum_mean_discrepancy),
    "clip_score": Score("clip", False, similarity),
    "frechet_distance_own_clip": Score("own_clip", True, frechet),
    "clip_score_own_clip": Score("own_clip", False, similarity),
}


def named(metrics: Sequence[str]) -> dict[str, Score]:
    """ValueError for a score that there is not."""
    if unknown := [name for name in metrics if name not in SCORES]:
        raise UserError(f"metrics: no score is called {unknown[0]!r}; there are {', '.join(SCORES)}")
    if not metrics:
        raise UserError(f"metrics=[]: nothing to compute; there are {', '.join(SCORES)}")
    return {name: SCORES[name] for name in metrics}


def worst(generated: Set, n: int) -> list[int]:
    """The pictures that agree least with their captions."""
    return torch.argsort(clip_score(generated["image"], generated["text"]))[:n].tolist()


ABOUT = "about"


@dataclass(frozen=True)
class Against:
    """FID against an npz's moments."""

    real: Moments

    def __call__(self, generated: Set, real: Set) -> dict[str, float]:
        own = moments(generated["pool"])
        name = "fid_small_n" if len(generated["pool"]) < SMALL else "fid"
        return {name: frechet_from_moments(*own, *self.real)}


def against(path: Path, wanted: Mapping[str, Any], *, accept_unknown: bool) -> Score:
    """FID, of drawn pictures alone; ValueError as `read`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return Score("inception", False, Against(read(path, wanted, accept_unknown=accept_unknown)), f"against {digest}")


def write(path: Path, features: Tensor, about: Mapping[str, Any]) -> None:
    mean, cov = moments(features)
    data = io.BytesIO()
    np.savez(data, mu=mean.numpy(), sigma=cov.numpy(), n=len(features), about=json.dumps(about, sort_keys=True))
    files.write(path, data.getvalue())


def read(path: Path, wanted: Mapping[str, Any], *, accept_unknown: bool) -> Moments:
    """ValueError for a file that is no such npz, that is of something else than `wanted`, or that does not say."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
            told = json.loads(str(file[ABOUT])) if ABOUT in file else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"real_stats={path}: no npz of mu and sigma ({error})") from error
    if told is None and not accept_unknown:
        raise UserError(f"real_stats={path}: does not say what it is of; accept_unknown_stats=true takes it as it is")
    if told is not None and told != json.loads(json.dumps(wanted)):
        raise UserError(f"real_stats={path}: of {told}, where this protocol compares with {dict(wanted)}")
    return Moments(mu, sigma)
