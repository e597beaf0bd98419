"""The quickstart from its first part to its report, with hardly any training in it."""

import json

import pytest

from open_kandinsky.config import compose
from open_kandinsky.evaluate import evaluate
from open_kandinsky.quickstart import quickstart

SHORT = ["trainer.max_steps=2", "data.batch_size=8"]
EVALUATE = ["evaluate=['protocol=shapes','protocol.captions=8']"]
STAGES = {
    "clip": ["experiment=clip_toy"],
    "movq": ["experiment=movq_toy"],
    "prior": ["experiment=prior_toy"],
    "prior_linear": ["experiment=prior_toy", "network/prior=linear"],
    "prior_residual": ["experiment=prior_toy", "network/prior=residual"],
    "prior_none": ["experiment=prior_toy", "network/prior=none"],
    "decoder": ["experiment=decoder_toy"],
}


def listed(words):
    return "[" + ",".join(f"'{word}'" for word in words) + "]"


def config(out):
    train = [f"train.{name}={listed([*given, *SHORT])}" for name, given in STAGES.items()]
    few = ["shapes={images: 48, val_images: 8, per_shard: 24}"]
    return compose.compose("quickstart", [f"out='{out}'", *few, *train, *EVALUATE])


@pytest.mark.slow
def test_from_nothing_to_a_report_and_on_to_cocos_evaluation(tmp_path):
    out = tmp_path / "quickstart"
    page = quickstart(config(out))
    found = json.loads((out / "report.json").read_text())
    assert page == out / "report.html" and page.is_file()
    assert set(found["priors"]) == {"diffusion", "linear", "residual", "none"}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/part.json")}
    assert len(before) == 9  # shapes, seven trainings, scores; the cache's two lie deeper
    quickstart(config(out))
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/part.json")} == before

    paths = {"weights": out, "protocol.shapes": out / "shapes", "out": tmp_path / "scores"}
    asked = [f"{key}='{path}'" for key, path in paths.items()]
    told = evaluate(compose.compose("evaluate", [*asked, "protocol=shapes", "protocol.captions=8"]))
    right = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]["accuracy"]
    for split, found in right.items():
        assert f"{split:20} {found['all']:.3f} (s.e. {found['all_se']:.3f})" in told
    assert told.endswith(f"scored: {tmp_path}/scores/metrics.json, {tmp_path}/scores/samples.png")

    paths = {"weights": out, "coco": out / "shapes" / "coco", "out": tmp_path / "smoke"}
    asked = [f"{key}='{path}'" for key, path in paths.items()]
    told = evaluate(compose.compose("evaluate", [*asked, "protocol=smoke", "accept_flat=true"]))
    assert told.startswith("smoke, 40 pictures against 40: frechet_distance_own_clip")
