"""Small caches of random tensors."""

import torch

from open_kandinsky.data.cache.folder import finish, shard_files, write_null
from open_kandinsky.data.cache.rows import before, kept, rows_of
from open_kandinsky.data.cache.shard import write_shard
from open_kandinsky.data.cached_data import CachedData

NULL = {"image_emb": torch.ones(1, 6), "text_tokens": torch.zeros(1, 4, 3), "text_emb": torch.zeros(1, 6)}
RECIPE = {"encoders": {"clip": "abc"}, "text_states": "all"}


def encoded(n, seed=0):
    """What encoders might say of n pictures, and of n captions of one to four words."""
    random = torch.Generator().manual_seed(seed)
    images = {"image_emb": torch.randn(n, 6, generator=random)}
    mask = before(torch.randint(1, 5, (n,), generator=random), 4)
    texts = {"text_emb": torch.randn(n, 6, generator=random), "text_tokens": torch.randn(n, 4, 3, generator=random)}
    return images, texts | {"text_mask": mask}


def rows(n, seed=0, *, at=0, text_states="all"):
    keys = [f"{at:05d}/{row}" for row in range(n)]
    return rows_of(*encoded(n, seed), [[f"caption of {key}"] for key in keys], keys, kept(text_states))


def folder(path, counts=(5, 3, 4), **recipe):
    path.mkdir()
    text_states = recipe.get("text_states", "all")
    for at, n in enumerate(counts):
        write_shard(path / f"{at:05d}.safetensors", rows(n, seed=at, at=at, text_states=text_states), {})
    return closed(path, **{"source": "here"} | recipe)


def closed(path, **recipe):
    """A folder whose shards are there."""
    write_null(path, NULL)
    finish(path, RECIPE | recipe, shard_files(path))
    return path


def data(path, **changes):
    settings = dict(
        path=str(path),
        val_path=None,
        fields=["image_emb", "text_tokens"],
        dims={},
        sizes={},
        padding=True,
        batch_size=4,
        limit=None,
        in_memory=True,
        workers=0,
        shuffle_buffer=8,
        seed=0,
    )
    return CachedData(**settings | changes)
