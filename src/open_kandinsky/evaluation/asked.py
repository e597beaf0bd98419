"""What `evaluate` was told beside the protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.coco import Coco
from open_kandinsky.evaluation.subject import Subject

NO_COCO = (
    "coco=null: give the folder of captions_val2014.json and val2014/, as `make coco` fetches them; to see the same "
    "without COCO, evaluate protocol=shapes"
)
# how a system is told to draw
DRAWING = ("size", "steps", "scale", "sampler", "prior_steps", "prior_scale", "prior_sampler", "negative_prompt")
# all that has a meaning for some protocols alone
OPTIONS = ("coco", "also", "metrics", "limit", "block", "seed", "table", "real_stats", "wandb", *DRAWING)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A protocol says in `reads` what of it has a meaning for it; what has none is refused where it was typed."""

    out: Path
    subjects: Mapping[str, Subject]  # by the name of the prior; the first is the system's own
    coco: Path | None
    also: Sequence[Any]  # protocols that score the same pictures
    metrics: Sequence[str]
    limit: int | None
    block: int
    table: Path | None  # a folder of runs, of which this is one
    accept_flat: bool
    real_stats: Path | None  # npz of mu and sigma, in place of real pictures
    accept_unknown_stats: bool
    wandb: str | None  # project

    def opened_coco(self) -> Coco:
        """ValueError where none was given, or what was given is not whole."""
        if self.coco is None:
            raise UserError(NO_COCO)
        return Coco.open(self.coco)

    @property
    def subject(self) -> Subject:
        """The one system. ValueError where several were asked for."""
        if len(self.subjects) != 1:
            told = f"priors={list(self.subjects)}: this protocol scores one system a run"
            raise UserError(f"{told}; add -m and sweep over lists of one, priors='[prior],[prior_linear]'")
        return next(iter(self.subjects.values()))
