"""Memory is used again when nobody holds what lay in it, and not before."""

import os
import random

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from open_kandinsky.data.stream.batches import IN_USE, MAX_BUFFERS, BufferPool, PooledTensor, receive, send


def numbered(at, pool, field="z"):
    """The batch number `at` of an endless run."""
    tensor = pool.tensor(field, [4 + at % 3, 1000], torch.float32)
    return tensor.copy_(expected(at))


def expected(at):
    return torch.full([4 + at % 3, 1000], float(at))


class Batches(IterableDataset):
    """Batches by their numbers, and how many buffers their worker has for them."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        pool = BufferPool()
        for at in self.numbers:
            tensor = send(numbered(at, pool))
            yield at, tensor, len(pool.buffers["z"])


def batches(workers, numbers):
    return DataLoader(Batches(numbers), batch_size=None, num_workers=workers, collate_fn=lambda batch: batch)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_dropped_batch_frees_its_buffer(workers):
    for at, tensor, known in batches(workers, range(0, 180, 3)):
        assert torch.equal(tensor, expected(at))
        assert known <= 5, "one that is built, two that are queued, two that are held"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_held_batch_stays(workers):
    draws, held = random.Random(0), []
    for at, tensor, known in batches(workers, range(60)):
        held.append((at, tensor))
        while len(held) > draws.choice([1, 4, 20]):
            held.pop(draws.randrange(len(held)))
        assert all(torch.equal(kept, expected(number)) for number, kept in held)
        assert known <= MAX_BUFFERS


VIEWS = [
    lambda x: x[1:],
    lambda x: x[0, 0],
    lambda x: x.mT,
    lambda x: x.detach(),
    lambda x: x.numpy()[2:],
    lambda x: x.view(torch.uint8),
    lambda x: x.untyped_storage(),
    lambda x: torch.utils.dlpack.from_dlpack(x),
    lambda x: torch.nn.Parameter(x),
    lambda x: (x.requires_grad_() * 2).sum().grad_fn,
    lambda x: (x * torch.ones([], requires_grad=True)).grad_fn,  # it saved x for the backward pass
]


@pytest.mark.parametrize("at", range(len(VIEWS)))
def test_any_view_keeps_the_buffer(at):
    pool = BufferPool()
    held = VIEWS[at](receive(numbered(5, pool)))
    for other in range(8, 20, 3):
        receive(numbered(other, pool))
    assert len(pool.buffers["z"]) == 2
    del held
    receive(numbered(5, pool))
    others = [receive(numbered(8, pool)), receive(numbered(11, pool))]
    assert len(pool.buffers["z"]) == 2 and len(others) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int64, torch.uint8])
@pytest.mark.parametrize("shape", [[], [0, 3], [5], [3, 1, 7]])
def test_types_and_shapes(dtype, shape):
    values = torch.randint(0, 2, shape).to(dtype)
    tensor = receive(BufferPool().tensor("z", shape, dtype).copy_(values))
    assert torch.equal(tensor, values) and tensor.dtype == dtype and tensor.shape == values.shape
    assert tensor.is_contiguous()


def test_a_short_batch():
    assert torch.equal(receive(numbered(2, BufferPool())[:3]), expected(2)[:3])


def test_a_buffer_is_neither_too_small_nor_much_too_large():
    pool = BufferPool()
    for size, known in [(100, 1), (60, 1), (101, 2), (40, 3), (100, 3), (0, 4)]:
        receive(pool.tensor("z", [size], torch.uint8))
        assert len(pool.buffers["z"]) == known
    receive(pool.tensor("other", [100], torch.uint8))
    assert len(pool.buffers["z"]) == 4, "each field has its own"


def test_no_more_buffers_are_kept_than_a_stream_needs():
    pool = BufferPool()
    held = [receive(numbered(at, pool)) for at in range(3 * MAX_BUFFERS)]
    assert len(pool.buffers["z"]) == MAX_BUFFERS
    assert all(torch.equal(tensor, expected(at)) for at, tensor in enumerate(held))


def test_a_forked_process_frees_nothing():
    """It has its parent's objects, and may drop them while the parent goes on."""
    buffer = torch.UntypedStorage._new_shared(5, device="cpu")
    buffer[4] = IN_USE
    held = [receive(torch.empty(0, dtype=torch.uint8).set_(buffer, 0, (4,)))]
    if (child := os.fork()) == 0:
        held.clear()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert buffer[4] == IN_USE
    held.clear()
    assert buffer[4] != IN_USE


def test_without_workers_it_is_a_tensor_at_once():
    assert not isinstance(send(numbered(0, BufferPool())), PooledTensor)
