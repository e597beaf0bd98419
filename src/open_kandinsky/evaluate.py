"""Score a system by a protocol.

open-kandinsky evaluate protocol=shapes weights=runs/quickstart out=out/scores
"""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from open_kandinsky import configuration
from open_kandinsky.evaluation.figures import samples_png
from open_kandinsky.evaluation.report import write_json
from open_kandinsky.evaluation.shapes import called
from open_kandinsky.evaluation.versions import versions
from open_kandinsky.load import load


def evaluate(cfg: DictConfig) -> Any:
    """Run the protocol and write `metrics.json` to cfg.out; returns what the protocol made, pictures included."""
    out = Path(cfg.out)
    if (out / "metrics.json").exists():
        raise ValueError(f"out={out} holds metrics already, and none are overwritten: choose another folder")
    pipes = {called(prior): load({"rest": cfg.weights, "prior": Path(cfg.weights) / prior}) for prior in cfg.priors}
    scored = instantiate(cfg.protocol)(pipes)
    out.mkdir(parents=True, exist_ok=True)
    metrics = {"protocol": "shapes", "metrics": scored.metrics, "images_sha256": scored.images_sha256}
    shown = slice(0, 40)
    samples_png(
        out / "samples.png", scored.pictures[shown], scored.captions[shown], columns=8, marks=scored.right[shown]
    )
    write_json(out / "metrics.json", metrics | {"versions": versions()})
    return scored


@configuration.verb("evaluate")
def main(cfg: DictConfig) -> None:
    evaluate(cfg)
    print(f"scored: {cfg.out}/metrics.json")


if __name__ == "__main__":
    main()
