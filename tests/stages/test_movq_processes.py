"""Two processes train as one does: the adversary's weight, LeCam's averages, restarted codes and all figures."""

import pytest
import torch
from fixtures.movq import said, sharded, trained
from fixtures.ranks import ranks


@pytest.mark.slow
def test_processes_tell_each_other():
    assert ranks(2, said) == [[[1, 1], [0.5, 0.5], [0, 0, 1, 1], [0, 0]]] * 2


@pytest.mark.slow
def test_sharded_codes_are_restarted():
    before, after = ranks(2, sharded)[1]
    even = torch.arange(7) % 2 == 0
    assert after[even].equal(torch.arange(21.0).view(7, 3)[even]) and after[~even].equal(before[~even])


@pytest.mark.slow
def test_two_processes_train_as_one():
    """Over 20 steps, with all of the options on, to the float32 of the log; both end with the same state."""
    (losses, state), *_ = ranks(1, trained, 1)
    both = ranks(2, trained, 2)
    assert len(losses) == 20 and "train/code_usage" in losses[-1]
    for at, step in enumerate(losses):
        assert both[0][0][at] == pytest.approx(step, rel=1e-6, abs=1e-7), at
    for name, value in state.items():
        torch.testing.assert_close(both[0][1][name], value, rtol=1e-9, atol=1e-9, msg=name)
        assert torch.equal(both[0][1][name], both[1][1][name]), name
