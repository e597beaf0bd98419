"""Means and covariances of real pictures in place of the pictures: the npz files that evaluation programs exchange.

Ours hold `mu` and `sigma`, as pytorch-fid, clean-fid and text2image-benchmark write and read them, and beside them what
they are of. Those of others do not say what they are of, and are taken only if that is accepted by name.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_kandinsky.core import files
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.scoring.scores import SMALL, Score, Set
from open_kandinsky.metrics.frechet import Moments, frechet_from_moments, moments

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
