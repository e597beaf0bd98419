"""Precisions in which something would go wrong are refused by name, and a scaler's first overflow is no NaN."""

from types import SimpleNamespace

import pytest
import torch
from fixtures.system import config

from open_kandinsky.callbacks.health import unless_scaled
from open_kandinsky.core.failures import message
from open_kandinsky.train import train

REFUSED = {
    "bf16-true": "it would round the noise schedule's table",
    "16-true": "it would round the noise schedule's table",
    "16-mixed": "float16 is for GPUs; choose bf16-mixed or 32-true",
    "16": "float16 is for GPUs",
    "transformer-engine": "not known here; choose one of 32-true, 64-true, bf16-mixed, 16-mixed",
}
SCALED = ["~trainer.plugins", "trainer.precision=null"]
PLUGINS = (  # as on a GPU, by hand: on a CPU Lightning takes bf16-mixed for 16-mixed
    "+trainer.plugins=[{_target_: open_kandinsky.training.checkpointing.WholeCheckpoints},"
    "{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu,"
    " scaler: {_target_: torch.amp.GradScaler, device: cpu, init_scale: %s}}]"
)


@pytest.mark.parametrize("precision", REFUSED)
@pytest.mark.parametrize("part", ["clip", "prior", "decoder", "movq"])
def test_a_precision_that_would_compute_something_wrongly_is_refused(tmp_path, precision, part):
    told = REFUSED[precision]
    if part == "movq" and precision.startswith("16") and "true" not in precision:
        told = "with stage=movq: gradients are clipped by value while they are scaled"
    typed = [f"trainer.precision={precision}", f"run_dir='{tmp_path / 'run'}'", "data.val_path=null"]
    typed = [t for t in typed if part not in ("clip", "movq") or "val_path" not in t]
    with pytest.raises(ValueError, match=f"trainer.precision={precision}.*{told}") as refusal:
        train(config(part, tmp_path, *typed))
    assert message(refusal.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["prior", pytest.param("decoder", marks=pytest.mark.slow)])
def test_the_first_overflow_of_a_scaler_is_no_nan(cached, tmp_path, part):
    """2^26 times the loss overflows float16 for some steps, which are skipped while the scale falls."""
    more = [*SCALED, PLUGINS % 2.0**26, "trainer.max_steps=16", "data.val_path=null"]
    folder = train(config(part, cached, *more, f"run_dir='{tmp_path / 'run'}'", "trainer.log_every_n_steps=1"))
    rows = (folder / "metrics.csv").read_text()
    assert "inf" in rows or "nan" in rows, "nothing overflowed, so this shows nothing"
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(x.isfinite().all() for x in state["state_dict"].values())
    assert state["MixedPrecision"]["scale"] < 2.0**26


def test_gradients_that_overflow_at_a_scale_of_one_are_too_great_by_themselves():
    def seen(scale):
        precision = SimpleNamespace(scaler=None if scale is None else SimpleNamespace(_scale=torch.tensor(scale)))
        return float(unless_scaled(torch.tensor(float("inf")), precision))

    assert [seen(scale) for scale in (2.0**16, 2.0, 1.0, 0.5, None)] == [0, 0, *[float("inf")] * 3]
