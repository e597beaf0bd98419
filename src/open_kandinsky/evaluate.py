"""Score a system by a protocol.

open-kandinsky evaluate protocol=shapes weights=runs/quickstart out=out/scores
open-kandinsky evaluate protocol=coco30k_default weights=kandinsky-2.1 coco=data/coco out=out/coco30k device=cuda
torchrun --nproc-per-node 8 -m open_kandinsky.evaluate protocol=coco30k_default weights=... coco=... out=... device=cuda

COCO protocols may be run by any number of processes on one `out`, at once or one after another: by torchrun, as a
SLURM array, by hand. Each does work that no other has done; all of them end when everything is done.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_kandinsky.config import compose
from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.samples import DRAWING, OPTIONS, EvalRequest, EvaluatedSystem, make_deterministic
from open_kandinsky.evaluation.toy import prior_name
from open_kandinsky.loading import check_steps, fingerprints, load
from open_kandinsky.pipeline import Pipeline
from open_kandinsky.pipeline.execution import take_device
from open_kandinsky.pipeline.options import Options, check, sides
from open_kandinsky.weights.part import REST
from open_kandinsky.weights.source import Source

DEFAULTS = {"block": 32, "seed": 0}  # where a protocol reads them and the user gave none


def evaluate(cfg: DictConfig) -> str:
    """Run the protocol and write `metrics.json` to cfg.out; returns the headline."""
    values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    make_deterministic()
    take_device(values["device"])
    protocol = instantiate(cfg.protocol)
    refuse_unread(values, protocol.reads)
    options = {name: values[name] for name in DRAWING if values[name] is not None}
    check(options)
    values |= {name: default for name, default in DEFAULTS.items() if values[name] is None}
    request = EvalRequest(
        out=Path(values["out"]),
        systems={name: system(values, name, options) for name in values["priors"]},
        coco=path(values["coco"]),
        also=[instantiate(compose_protocol(cfg, name).protocol) for name in values["also"]],
        metrics=values["metrics"] or protocol.metrics,
        limit=values["limit"],
        block=values["block"],
        table=path(values["table"]),
        accept_flat=values["accept_flat"],
        real_stats=path(values["real_stats"]),
        accept_unknown_stats=values["accept_unknown_stats"],
        wandb=values["wandb"],
    )
    return protocol.run(request)


def path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def refuse_unread(values: Mapping[str, Any], reads: tuple[str, ...]) -> None:
    """ValueError for an option that the user gave and the protocol does not read."""
    if unread := [name for name in OPTIONS if name not in reads and values[name] not in (None, [])]:
        raise UserError(f"this protocol does not read {', '.join(unread)}; leave it out, or take another protocol")


def system(values: Mapping[str, Any], prior: str, options: Mapping[str, Any]) -> EvaluatedSystem:
    """The system with the prior in the folder of that name, loaded at most once."""
    source = with_prior(values["weights"], prior)
    check_steps(source, options)
    if "size" in options:
        options = {**options, "size": sides(options["size"])}

    @functools.cache
    def open_pipeline() -> Pipeline:
        pipe = load(source, device=values["device"])
        pipe.progress = False  # there is one progress bar, of all pictures
        return pipe

    place = {"seed": values["seed"], "device": values["device"]}
    drawn_with = cast(Options, dict(options))
    return EvaluatedSystem(prior_name(prior), fingerprints(source), open_pipeline, drawn_with, **place)


def with_prior(weights: Source, prior: str) -> Source:
    """The weights, with their prior replaced by the one in the folder `prior` below them."""
    if prior == "prior":
        return weights
    if isinstance(weights, Mapping):
        raise UserError(f"priors={prior}: a folder below weights, and these are a mapping: name the prior there")
    return {REST: weights, "prior": Path(weights) / prior}


def compose_protocol(cfg: DictConfig, name: str) -> DictConfig:
    """The config with another protocol, and with the evaluators' device and weights as they are in `cfg`."""
    kept = ("device", "evaluator_weights", "accept_unknown_weights")
    typed = [f"{key}='{cfg[key]}'" if isinstance(cfg[key], str) else f"{key}={cfg[key]}".lower() for key in kept]
    return compose.compose("evaluate", [f"protocol={name}", "weights=as_above", "out=as_above", *typed])


@compose.command("evaluate")
def main(cfg: DictConfig) -> None:
    print(evaluate(cfg))


if __name__ == "__main__":
    main()
