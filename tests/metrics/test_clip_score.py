"""The CLIP score is a plain cosine, and its mean adds up."""

import pytest
import torch

from open_kandinsky.metrics.clip_score import CLIPScore, clip_score


def pairs(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 16, generator=generator), torch.randn(n, 16, generator=generator)


def test_it_is_the_cosine_with_its_sign_and_without_a_factor():
    image_emb = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    text_emb = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    expected = torch.tensor([1.0, 0.5**0.5, -1.0], dtype=torch.float64)
    torch.testing.assert_close(clip_score(image_emb, text_emb), expected, rtol=0, atol=1e-15)


def test_the_mean_and_its_standard_error_are_the_samples():
    metric = CLIPScore()
    for image_emb, text_emb in zip(*(part.split(7) for part in pairs(50)), strict=True):
        metric.update(image_emb, text_emb)
    scores = clip_score(*pairs(50))
    figures = metric.compute()
    assert figures["n"] == 50
    assert figures["mean"] == pytest.approx(float(scores.mean()), abs=1e-14)
    assert figures["se"] == pytest.approx(float(scores.std()) / 50**0.5, abs=1e-14)


def test_one_pair_has_no_standard_error():
    metric = CLIPScore()
    metric.update(*pairs(1))
    assert metric.compute()["se"] != metric.compute()["se"]


def test_pairs_that_all_agree_have_an_error_of_nought():
    metric = CLIPScore()
    image_emb, _ = pairs(9)
    metric.update(image_emb, image_emb)
    assert metric.compute() == pytest.approx({"mean": 1.0, "se": 0.0, "n": 9}, abs=1e-8)
