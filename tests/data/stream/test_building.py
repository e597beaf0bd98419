"""Rows copied to their places, against rows stacked."""

import torch
from torch.utils.data import DataLoader, IterableDataset

from open_kandinsky.data.stream.batches import BatchBuilder, BufferPool


def rows():
    draws = torch.Generator().manual_seed(0)
    for at in range(5):
        pixels = torch.randn(3, 4, 2, generator=draws)
        yield {
            "pixels": pixels,
            "mask": pixels[0] > 0,
            "half": pixels[0, 0].half(),
            "at": torch.tensor(at),
            "key": f"{at}",
        }


class Built(IterableDataset):
    def __iter__(self):
        building = BatchBuilder(7, BufferPool())
        for row in rows():
            building.add(row)
        yield building.batch() | {"shared": building.columns["pixels"].is_shared()}


def check(batch):
    expected = list(rows())
    assert batch["key"] == ["0", "1", "2", "3", "4"]
    for name in ("pixels", "mask", "half", "at"):
        stacked = torch.stack([row[name] for row in expected])
        assert torch.equal(batch[name], stacked) and batch[name].dtype == stacked.dtype


def test_rows_are_stacked():
    batch = next(iter(Built()))
    check(batch)
    assert not batch["shared"]


def test_a_worker_hands_them_over():
    [batch] = DataLoader(Built(), batch_size=None, num_workers=1, collate_fn=lambda batch: batch)
    check(batch)
    assert batch["shared"]
