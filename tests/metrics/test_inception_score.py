"""The Inception score against closed forms and its definition."""

import numpy as np
import pytest
import torch

from open_kandinsky.metrics.features import inception_score


def drawn(n, classes, seed=0):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def by_definition(logits):
    p = logits.double().softmax(1).numpy()
    return float(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()))


def test_sure_and_even_scores_as_many_as_there_are_classes():
    logits = 100.0 * torch.eye(8).repeat(5, 1)
    assert inception_score(logits, seed=0, splits=1).mean == pytest.approx(8)


def test_pictures_that_look_alike_score_one():
    assert inception_score(drawn(1, 8).repeat(40, 1), seed=0) == pytest.approx((1, 0))


def test_one_split_is_the_definition_in_any_order():
    logits = drawn(60, 12)
    for seed in (0, 1):
        assert inception_score(logits, seed=seed, splits=1) == pytest.approx((by_definition(logits), 0))


def test_the_seed_decides_the_splits():
    logits = drawn(60, 12)
    assert inception_score(logits, seed=3) == inception_score(logits, seed=3) != inception_score(logits, seed=4)


def test_fewer_pictures_than_splits_and_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="9 pictures do not fill 10 splits"):
        inception_score(drawn(9, 4), seed=0)
    logits = drawn(10, 4)
    logits[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 40 numbers"):
        inception_score(logits, seed=0)
