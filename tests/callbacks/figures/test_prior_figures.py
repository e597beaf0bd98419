"""What a prior draws, told of priors whose drawings are known."""

import pytest
import torch
from fixtures.fitting import Repeated, latents, trainer
from fixtures.knowing import ROWS, Knowing, all_figures, batch, image_embeddings, of_two
from fixtures.ranks import ranks
from fixtures.system import stage
from torch.utils.data import DataLoader

from open_kandinsky.callbacks.validation import PriorFigures


def figures(text, *, scale=1.0, batch_size=5, **options):
    """Validation's, of a prior that says `text` to each caption."""
    data = Repeated({})
    loader = DataLoader(
        torch.arange(ROWS), batch_size, collate_fn=lambda r: batch(text, image_embeddings(), torch.stack(r))
    )
    data.val_dataloader = lambda: loader
    callback = PriorFigures(**dict(sampler="ddpm", steps=3, limit=None, retrieval=[1, 5]) | options, scale=scale)
    return trainer(1, callback).validate(Knowing(), datamodule=data, verbose=False)[0]


def test_a_prior_that_knows_is_perfect():
    found = figures(image_embeddings())
    for name in ("sampled", "unguided"):
        for figure in ("cosine", "norm_ratio", "std_ratio", "std_ratio_least", "retrieval_1", "retrieval_5"):
            assert found[f"val/{name}_{figure}"] == pytest.approx(1, abs=1e-5), (name, figure)
    assert found["val/sampled_cosine_others"] == pytest.approx(found["val/text_cosine_others"], abs=1e-5)
    assert abs(found["val/sampled_cosine_others"]) < 0.1


def test_guidance_scales_what_it_says_away_from_nothing():
    """Nothing is 0 here, so that guided by 3 every embedding is three times as long; unguided ones are as they were."""
    found = figures(image_embeddings(), scale=3.0)
    assert found["val/sampled_norm_ratio"] == pytest.approx(3, rel=1e-4)
    assert found["val/sampled_std_ratio"] == pytest.approx(3, rel=1e-4)
    assert found["val/unguided_norm_ratio"] == pytest.approx(1, rel=1e-4)
    assert found["val/sampled_cosine"] == pytest.approx(1, rel=1e-4)


def test_the_bound_is_kept():
    assert figures(image_embeddings(), scale=100.0, limit=0.5)["val/sampled_norm_ratio"] < 0.6


def test_a_prior_that_ignores_its_caption():
    """One vector for all: no nearer to its own image than to others', found by luck alone, without any spread."""
    found = figures(image_embeddings()[:1].expand(ROWS, -1))
    n = ROWS
    assert found["val/sampled_retrieval_1"] == pytest.approx(1 / n) and found["val/text_retrieval_5"] == pytest.approx(
        5 / n
    )
    assert found["val/sampled_std_ratio"] == pytest.approx(0, abs=1e-6)
    assert found["val/sampled_cosine_to_text"] == pytest.approx(1, abs=1e-5)


def test_a_prior_that_mixes_captions_up():
    found = figures(image_embeddings().roll(1, dims=0))
    assert found["val/sampled_retrieval_1"] == 0
    assert found["val/sampled_cosine"] < found["val/sampled_cosine_others"] + 0.3
    assert found["val/sampled_std_ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_of_a_real_stage_and_the_same_in_any_batch():
    """A diffusion prior, with ancestral noise: each embedding has its own."""
    found = []
    for size in (8, 3):
        data, whole = Repeated(latents()), latents()
        cut = [{name: value[at : at + size] for name, value in whole.items()} for at in range(0, 8, size)]
        data.val_dataloader = lambda cut=cut: DataLoader(cut, batch_size=None)
        callback = PriorFigures(sampler="ddpm", steps=3, scale=2.0, limit=10.0, retrieval=[1])
        made = stage("prior")
        found.append(trainer(1, callback).validate(made, datamodule=data, verbose=False)[0])
    assert {"val/sampled_cosine", "val/unguided_retrieval_1", "val/sampled_std_ratio_least"} <= set(found[0])
    for name in found[0]:
        if not name.startswith("val/cosine_prior"):  # the stage's own first guess draws for a batch
            assert found[0][name] == pytest.approx(found[1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_of_two_processes_they_are_those_of_one():
    """Every stage's figures, but those that the stage logs itself."""
    alone, (one, other) = all_figures(0, 1), ranks(2, of_two)
    assert one == other
    for kind, figures in alone.items():
        assert len(figures) > 2 and figures == pytest.approx(one[kind], rel=1e-4, abs=1e-5), kind
