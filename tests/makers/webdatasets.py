"""A data module of webdataset's pipelines, and what its processes of one group see or are told."""

from functools import partial

import torch
from makers.shards import every_sample

from open_kandinsky.core.errors import UserError
from open_kandinsky.data.pairs import Captions, OneShape
from open_kandinsky.data.transforms import Pixels
from open_kandinsky.data.webdataset_data import WebDatasetData, shuffled_samples


def data(urls, **changes):
    settings = dict(
        urls=urls,
        val_urls=None,
        pipeline=partial(shuffled_samples, shuffle_buffer=16),
        fields={"pixels": Pixels(size=8)},
        filters=every_sample(),
        captions=Captions(weights={"txt": 1.0, "caption": 0.0}),
        buckets=OneShape(),
        batch_size=4,
        workers=0,
        epoch_batches=None,
        val_batches=None,
        max_bad_share=0.1,
        seed=0,
        allow_pipe=False,
    )
    return WebDatasetData(**settings | changes)


def keys(batches):
    return [key for batch in batches for key in batch["key"]]


def keys_of_an_epoch(rank, folder, **changes):
    """For `makers.group.together`."""
    return keys(data(folder, **changes).train_dataloader())


def refusal(rank, folder, **changes):
    """The error's text, for `makers.group.together`."""
    torch.distributed.barrier()  # a group that is left at once is not yet joined by all
    try:
        data(folder, **changes).train_dataloader()
    except UserError as error:
        return str(error)
