"""Score a system by a protocol.

open-kandinsky evaluate protocol=shapes weights=runs/quickstart out=out/scores
open-kandinsky evaluate protocol=coco30k_default weights=kandinsky-2.1 coco=data/coco out=out/coco30k device=cuda
torchrun --nproc-per-node 8 -m open_kandinsky.evaluate protocol=coco30k_default weights=... coco=... out=... device=cuda

COCO protocols may be run by any number of processes on one `out`, at once or one after another: by torchrun, as a
SLURM array, by hand. Each does what no other has done; all of them end when everything is done.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.samples import DRAWING, OPTIONS, EvalRequest, Subject, exactly
from open_kandinsky.evaluation.toy import prior_name
from open_kandinsky.loading import check_steps, fingerprints, load
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.execution import take_device
from open_kandinsky.pipeline.options import Options, check, sides
from open_kandinsky.weights.part import REST
from open_kandinsky.weights.source import Source

USUAL = {"block": 32, "seed": 0}


def evaluate(cfg: DictConfig) -> str:
    """Run the protocol and write `metrics.json` to cfg.out; returns the line that says what came out."""
    wanted: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    exactly()
    take_device(wanted["device"])
    protocol = instantiate(cfg.protocol)
    refuse_idle(wanted, protocol.reads)
    options = {name: wanted[name] for name in DRAWING if wanted[name] is not None}
    check(options)
    given = {name: USUAL[name] if wanted[name] is None else wanted[name] for name in USUAL}
    asked = EvalRequest(
        out=Path(wanted["out"]),
        subjects={name: subject(wanted, name, options, given["seed"]) for name in wanted["priors"]},
        coco=None if wanted["coco"] is None else Path(wanted["coco"]),
        also=[instantiate(beside(cfg, name).protocol) for name in wanted["also"]],
        metrics=wanted["metrics"] or protocol.metrics,
        limit=wanted["limit"],
        block=given["block"],
        table=None if wanted["table"] is None else Path(wanted["table"]),
        accept_flat=wanted["accept_flat"],
        real_stats=None if wanted["real_stats"] is None else Path(wanted["real_stats"]),
        accept_unknown_stats=wanted["accept_unknown_stats"],
        wandb=wanted["wandb"],
    )
    return protocol.run(asked)


def refuse_idle(wanted: Mapping[str, Any], reads: tuple[str, ...]) -> None:
    """ValueError for a value that was given and would have no effect."""
    if idle := [name for name in OPTIONS if name not in reads and wanted[name] not in (None, [])]:
        raise UserError(f"this protocol does not read {', '.join(idle)}; leave it out, or take another protocol")


def subject(wanted: Mapping[str, Any], prior: str, options: Mapping[str, Any], seed: int) -> Subject:
    """The system with the prior in the folder of that name, opened at most once."""
    source = with_prior(wanted["weights"], prior)
    drawn = {**options, "size": sides(options["size"])} if "size" in options else dict(options)
    opened = functools.cache(lambda: quiet(load(source, device=wanted["device"])))
    check_steps(source, options)
    about = {"seed": seed, "device": wanted["device"]}
    return Subject(prior_name(prior), fingerprints(source), opened, cast(Options, drawn), **about)


def quiet(pipe: Pipeline) -> Pipeline:
    """The same without bars of its own: one of all pictures is shown."""
    pipe.progress = False
    return pipe


def with_prior(weights: Source, prior: str) -> Source:
    if prior == "prior":
        return weights
    if isinstance(weights, Mapping):
        raise UserError(f"priors={prior}: a folder below weights, and these are a mapping: name the prior there")
    return {REST: weights, "prior": Path(weights) / prior}


def beside(cfg: DictConfig, name: str) -> DictConfig:
    """The config with another protocol, and all else as it is."""
    kept = ("device", "evaluator_weights", "accept_unknown_weights")
    typed = [f"{key}='{cfg[key]}'" if isinstance(cfg[key], str) else f"{key}={cfg[key]}".lower() for key in kept]
    return compose.compose("evaluate", [f"protocol={name}", "weights=as_above", "out=as_above", *typed])


@compose.command("evaluate")
def main(cfg: DictConfig) -> None:
    print(evaluate(cfg))


if __name__ == "__main__":
    main()
