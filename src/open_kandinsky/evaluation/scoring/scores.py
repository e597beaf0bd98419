"""From features to the numbers that papers print. Each score says which networks it reads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from open_kandinsky.core.errors import UserError
from open_kandinsky.metrics.clip_score import clip_score
from open_kandinsky.metrics.frechet_check import cross_checked
from open_kandinsky.metrics.inception_score import inception_score
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
