"""From features to the numbers that papers print: FID, KID, Inception score, precision and recall, CMMD, CLIP score.

Means and covariances of real features can stand for the pictures, in the npz files that evaluation programs exchange:
`mu` and `sigma` as pytorch-fid, clean-fid and text2image-benchmark write them. Ours also say what they are of; others
are taken only where the user accepts that they do not say it.
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

    reads: str  # a role in the protocol: inception, dinov2, cmmd, clip or own_clip
    real: bool  # whether it needs real pictures
    compute: Callable[[Set, Set], Mapping[str, float]]
    about: str = ""  # what else decides the number


def fid(generated: Set, real: Set) -> dict[str, float]:
    n = min(len(generated["pool"]), len(real["pool"]))
    return {fid_name(n): cross_checked(real["pool"], generated["pool"])}


def fid_name(n: int) -> str:
    """FID by another name where `n` pictures are too few for it."""
    return "fid_small_n" if n < SMALL else "fid"


def kernel_distance(generated: Set, real: Set) -> dict[str, float]:
    size = min(1000, len(generated["pool"]), len(real["pool"]))
    mean, std = kid(real["pool"], generated["pool"], seed=SEED, subset_size=size)
    return {"kid": mean, "kid_std": std}


def inception(generated: Set, real: Set) -> dict[str, float]:
    mean, std = inception_score(generated["logits"], seed=SEED, splits=min(10, len(generated["logits"])))
    return {"is": mean, "is_std": std}


def precision(generated: Set, real: Set) -> dict[str, float]:
    return neighbours(real["pool"], generated["pool"])._asdict()


def fd_dinov2(generated: Set, real: Set) -> dict[str, float]:
    return {"fd_dinov2": cross_checked(real["cls"], generated["cls"])}


def maximum_mean_discrepancy(generated: Set, real: Set) -> dict[str, float]:
    distance = cmmd(real["image"], generated["image"])
    return {"cmmd": distance.value, "cmmd_unbiased": distance.unbiased}


def similarity(generated: Set, real: Set) -> dict[str, float]:
    """Mean cosine of picture and caption, neither clipped nor scaled, and its standard error."""
    each = clip_score(generated["image"], generated["text"])
    return {"clip_score": float(each.mean()), "clip_score_se": float(each.std() / len(each) ** 0.5)}


def frechet(generated: Set, real: Set) -> dict[str, float]:
    """The Fréchet distance of a CLIP's features of pictures, which is not FID."""
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


def select(metrics: Sequence[str]) -> dict[str, Score]:
    """The scores of these names. ValueError for a name that is not in SCORES, and for none."""
    if unknown := [name for name in metrics if name not in SCORES]:
        raise UserError(f"metrics: no score is called {unknown[0]!r}; there are {', '.join(SCORES)}")
    if not metrics:
        raise UserError(f"metrics=[]: nothing to compute; there are {', '.join(SCORES)}")
    return {name: SCORES[name] for name in metrics}


def worst(generated: Set, n: int) -> list[int]:
    """The numbers of the `n` pictures that agree least with their captions, the worst first."""
    return torch.argsort(clip_score(generated["image"], generated["text"]))[:n].tolist()


def fid_to_moments(path: Path, about: Mapping[str, Any], *, accept_unknown: bool) -> Score:
    """FID to the moments in an npz, without real pictures; ValueError as `read_moments`."""
    real_moments = read_moments(path, about, accept_unknown=accept_unknown)

    def compute(generated: Set, real: Set) -> dict[str, float]:
        x = generated["pool"]
        return {fid_name(len(x)): frechet_from_moments(*moments(x), *real_moments)}

    return Score("inception", False, compute, f"against {hashlib.sha256(path.read_bytes()).hexdigest()}")


def write_moments(path: Path, features: Tensor, about: Mapping[str, Any]) -> None:
    """Write mean and covariance of features [n d], with `about`, a description that `read_moments` compares."""
    mean, cov = moments(features)
    data = io.BytesIO()
    np.savez(data, mu=mean.numpy(), sigma=cov.numpy(), n=len(features), about=json.dumps(about, sort_keys=True))
    files.write(path, data.getvalue())


def read_moments(path: Path, about: Mapping[str, Any], *, accept_unknown: bool) -> Moments:
    """The moments in an npz. ValueError for a file without mu and sigma, for one of another description than `about`,
    and, unless `accept_unknown`, for one without a description."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (torch.from_numpy(file[name].astype(np.float64)) for name in ("mu", "sigma"))
            description = json.loads(str(file["about"])) if "about" in file else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"real_stats={path}: no npz of mu and sigma ({error})") from error
    if description is None and not accept_unknown:
        raise UserError(f"real_stats={path}: does not say what it is of; accept_unknown_stats=true takes it as it is")
    if description is not None and description != json.loads(json.dumps(about)):
        raise UserError(f"real_stats={path}: of {description}, where this protocol compares with {dict(about)}")
    return Moments(mu, sigma)
