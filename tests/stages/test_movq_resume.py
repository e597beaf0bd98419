"""A run with everything on that is stopped within a window and gone on with ends as one that was not, to the bit."""

import pytest
import torch
from fixtures.system import config

from open_kandinsky.train import train
from open_kandinsky.weights import store

ALL_ON = ["gan/weight=adaptive", "gan/penalty=[r1,lecam]", "network/discriminator=per_image"]
ALL_ON += ["stage.penalties.r1.every=2", "stage.usage.window=5", "stage.adversary_lr_schedule.at=0"]
ALL_ON += ["stage.adversary_ramp=4", "callbacks.collapse.every=1"]
ALL_ON += ["stage.restart_unused_codes=true", "stage.quantise_from=3", "stage.adversary_from=5"]
ALL_ON += ["stage.lr_schedule={warmup: 2, steps: 12}", "data.val_urls=null", "trainer.log_every_n_steps=1"]


@pytest.mark.slow
def test_resumed_is_uninterrupted(shapes, tmp_path):
    def run(steps, name, *more):
        where = [f"run_dir='{tmp_path}/{name}'", f"trainer.max_steps={steps}"]
        folder = train(config("movq", shapes, *ALL_ON, *where, *more))
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    whole = run(12, "whole")
    assert run(9, "cut")["state_dict"]["usage.counts"].sum() > 0, "stopped within a window"
    resumed = run(12, "cut", f"resume='{tmp_path}/cut/checkpoints/last.ckpt'")
    assert whole["state_dict"]["penalties.lecam.seen"] == 7
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(resumed[name], whole[name], rtol=0, atol=0)
    torch.testing.assert_close(resumed["callbacks"]["EMA"], whole["callbacks"]["EMA"], rtol=0, atol=0)
    assert resumed["callbacks"]["Collapse"] == whole["callbacks"]["Collapse"]


@pytest.mark.slow
def test_a_training_begins_with_given_weights(shapes, system, tmp_path):
    """And goes on from its own when it is resumed."""
    decoder_only = ["stage.trained=[decoder]", "stage.quantise_from=1000000", "stage.adversary_from=1000000"]
    plain = ["data.val_urls=null", "stage.lr_schedule={warmup: 1, steps: 9}", *decoder_only]

    def run(steps, *more):
        typed = [*plain, f"trainer.max_steps={steps}", f"run_dir='{tmp_path}/run'", f"init='{system}'", *more]
        return store.read(train(config("movq", shapes, *typed)) / store.WEIGHTS)

    given, made = store.read(system / "movq" / store.WEIGHTS), run(2)
    assert {name.partition(".")[0] for name in given if not made[name].equal(given[name])} == {"decoder"}
    resumed = run(3, f"resume='{tmp_path}/run/checkpoints/last.ckpt'")
    assert not resumed["decoder.conv_out.weight"].equal(made["decoder.conv_out.weight"])
    assert resumed["encoder.conv_out.weight"].equal(given["encoder.conv_out.weight"])


@pytest.mark.slow
def test_weights_that_are_not_there_are_refused(shapes, system, tmp_path):
    with pytest.raises(ValueError, match="weights: the movq is looked for in nowhere"):
        train(config("movq", shapes, "init=nowhere", f"run_dir='{tmp_path}/a'"))
    with pytest.raises(ValueError, match="init=.* have another shape: codebook.embedding.weight .*choose the network"):
        train(config("movq", shapes, f"init='{system}'", "stage.network.codes=64", f"run_dir='{tmp_path}/b'"))
