"""Small caches of random tensors."""

import torch

from open_kandinsky.data.cache import CachedData
from open_kandinsky.data.cache_files import finish, write_shard

NULL = {"image_emb": torch.ones(1, 6), "text_tokens": torch.zeros(1, 4, 3), "text_emb": torch.zeros(1, 6)}


def columns(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "image_emb": torch.randn(n, 6, generator=random),
        "text_tokens": torch.randn(n, 4, 3, generator=random).half(),
        "text_mask": torch.rand(n, 4, generator=random) > 0.5,
    }


def folder(path, counts=(5, 3, 4)):
    path.mkdir()
    for at, n in enumerate(counts):
        keys = [f"{at:05d}/{row}" for row in range(n)]
        write_shard(path / f"{at:05d}.safetensors", columns(n, seed=at), keys, [f"caption of {key}" for key in keys])
    finish(path, {"encoders": {"clip": "abc"}, "source": "here"}, NULL)
    return path


def data(path, **changes):
    settings = dict(
        path=str(path), val_path=None, fields=["image_emb", "text_tokens"], batch_size=4, limit=None, seed=0
    )
    return CachedData(**settings | changes)
