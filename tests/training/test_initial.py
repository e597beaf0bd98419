"""A training may begin with weights that are there already."""

import pytest
import torch
from fixtures.system import config, stage, untrained
from safetensors.torch import load_file

from open_kandinsky.core.failures import message
from open_kandinsky.train import train
from open_kandinsky.training.init_weights import initialise

INPAINTING = ["stage=decoder_inpainting", "stage.network.in_channels=9"]


def test_a_run_begins_with_anothers_weights(cached, system, tmp_path):
    still = ["stage.optimizer.lr=0", "trainer.max_steps=1", "data.val_path=null", "stage.standardise=false"]
    folder = train(config("decoder", cached, *still, f"init='{system}'", f"run_dir='{tmp_path / 'run'}'"))
    before, after = (load_file(each / "weights.safetensors") for each in (system / "decoder", folder))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_codebook_that_came_with_weights_stays(shapes, system, tmp_path):
    """At step `quantise_from` it enters; one that is new is filled with latents of that batch."""
    own = load_file(system / "movq" / "weights.safetensors")["codebook.embedding.weight"]
    still = ["stage.optimizer.lr=0", "trainer.max_steps=3", "stage.quantise_from=2", "data.val_urls=null"]
    for name, init, stays in (("kept", f"init='{system}'", True), ("new", "init=null", False)):
        folder = train(config("movq", shapes, *still, init, f"run_dir='{tmp_path / name}'"))
        codes = load_file(folder / "weights.safetensors")["codebook.embedding.weight"]
        assert torch.equal(codes, own) == stays
    assert codes.std() > 10 * own.std(), "latents are no codes as they are drawn"


def test_a_prior_goes_on_with_the_statistics_that_it_was_trained_with(cached, tmp_path):
    made = untrained("prior", tmp_path)
    still = ["stage.optimizer.lr=0", "trainer.max_steps=1", "data.val_path=null", f"init='{made}'"]
    kept, anew = (
        train(config("prior", cached, *still, f"stage.standardise={own}", f"run_dir='{tmp_path / own}'"))
        for own in ("false", "true")
    )
    before, kept, anew = (load_file(each / "weights.safetensors") for each in (made, kept, anew))
    assert torch.equal(kept["standardise.mean"], before["standardise.mean"])
    assert not torch.equal(anew["standardise.mean"], before["standardise.mean"])


def test_inpainting_begins_as_the_decoder_it_comes_from(system, caplog):
    wide, narrow = stage("decoder", *INPAINTING, seed=1).network, stage("decoder", seed=1).network
    initialise(narrow, "decoder", system)
    initialise(wide, "decoder", system)
    assert "the last 5 of 9 input channels are new, and start at zero" in caplog.text
    x_t, beside, t = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.tensor([3, 700])
    context = [narrow.context(torch.ones(2, 32), torch.ones(2, 16, 32), torch.ones(2, 32)) for _ in range(2)]
    torch.testing.assert_close(wide(torch.cat([x_t, beside], 1), t, context[0]), narrow(x_t, t, context[1]))
    assert narrow(x_t, t, context[0]).abs().max() > 0


def test_a_prior_alone_is_enough(tmp_path):
    made = untrained("prior", tmp_path)
    network = stage("prior", seed=1).network
    initialise(network, "prior", made)
    assert all(
        torch.equal(x, network.state_dict()[name]) for name, x in load_file(made / "weights.safetensors").items()
    )


REFUSED = {
    "stage.network.emb=96": "have another shape: .*, and here .*choose the network they are of",
    "stage.network.blocks=2": "are in one of both networks only",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_weights_of_another_network_are_refused(system, typed):
    network = stage("decoder", typed, seed=1).network
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(ValueError, match=REFUSED[typed]) as refusal:
        initialise(network, "decoder", system)
    assert message(refusal.value)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())


def test_a_folder_without_the_part_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the prior is looked for in"):
        initialise(stage("prior").network, "prior", tmp_path)
