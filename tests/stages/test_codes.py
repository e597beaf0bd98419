"""Usage over a window, and the restart of exactly the codes that it did not see."""

import pytest
import torch
from fixtures.fitting import Repeated, images, trainer
from fixtures.system import stage

from open_kandinsky.networks.quantizer import Codebook, perplexity
from open_kandinsky.stages.movq import Usage, latents_for_codes, restart_unused


def usage(*indices, codes=8):
    made = Usage(codes=codes, window=3)
    for index in indices:
        made.add(index.view(1, 1, -1))
    return made


def test_usage_is_of_all_the_windows_indices():
    indices = [torch.tensor([0, 0, 1]), torch.tensor([5, 5, 5, 1]), torch.tensor([2])]
    made, every = usage(*indices), torch.cat(indices)
    assert made.counts.tolist() == [2, 2, 1, 0, 0, 3, 0, 0]
    assert float(made.figures()["code_usage"]) == pytest.approx(float(perplexity(every, 8)) / 8)
    assert float(made.figures()["codes_used"]) == 4 / 8


def test_fewer_latents_than_codes_can_use_no_more():
    assert float(usage(torch.tensor([1, 3]), codes=100).figures()["codes_used"]) == 1


def book():
    torch.manual_seed(0)
    return Codebook(codes=8, channels=3, beta=0.25)


def test_exactly_the_unused_are_restarted():
    made, z = book(), 10 + torch.rand(2, 3, 4, 4)
    before, counts = made.embedding.weight.detach().clone(), torch.tensor([1, 0, 4, 0, 0, 2, 9, 1])
    restart_unused(made, counts, z)
    dead, latents = counts == 0, z.permute(0, 2, 3, 1).reshape(-1, 3)
    assert (made.embedding.weight[dead][:, None] == latents).all(2).any(1).all()
    assert made.embedding.weight[~dead].equal(before[~dead])


@pytest.mark.parametrize("restart", [False, True])
def test_codes_are_restarted_at_the_end_of_a_window_where_the_stage_is_to(restart):
    typed = [f"stage.restart_unused_codes={str(restart).lower()}", "stage.usage.window=2", "stage.quantise_from=0"]
    made = stage("movq", *typed)
    made.log_dict = lambda figures: None
    with torch.no_grad():
        found = made.reconstruct(images(4)["pixels"], 0)
    codes, state = made.network.codebook.embedding.weight.detach().clone(), torch.get_rng_state()
    made.update_usage(found, 0)
    assert made.network.codebook.embedding.weight.equal(codes), "within the window"
    made.update_usage(found, 1)
    assert made.network.codebook.embedding.weight.equal(codes) is not restart
    assert torch.get_rng_state().equal(state) is not restart, "what is not restarted draws nothing"


def test_what_is_drawn_are_latents_of_the_batch():
    z = torch.randn(2, 3, 4, 4)
    flat = z.permute(0, 2, 3, 1).reshape(-1, 3)
    is_it = (latents_for_codes(z, 50)[:, None] == flat).all(2)
    assert is_it.shape == (50, 32) and is_it.any(1).all()
    assert is_it.any(0).sum() > 10


@pytest.mark.slow
def test_codes_that_were_dead_are_used_after_a_window():
    """All but two codes start far away: none is found there without restarts, most are with them."""
    used = {}
    for restart in (False, True):
        still = ["stage.optimizer.lr=1e-5", "stage.lr_schedule.warmup=1", "stage.quantise_from=0"]
        made = stage("movq", f"stage.restart_unused_codes={str(restart).lower()}", "stage.usage.window=4", *still)
        with torch.no_grad():
            made.network.codebook.embedding.weight[2:] += 1e4
        trainer(8).fit(made, datamodule=Repeated(images(4)))
        index = made.network(images(4)["pixels"]).index
        used[restart] = len(index.unique())
        assert int(made.usage.counts.sum()) == 0, "the window ended with the run"
    assert used[False] <= 2 and used[True] > 10
