"""Precompute in processes of their own, begun from one that has imported everything and has no threads."""

import functools
import multiprocessing
from pathlib import Path

from omegaconf import OmegaConf

from open_kandinsky.config import compose

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["makers.precomputing", "open_kandinsky.precompute"])


def words(urls, out, system, *more):
    paths = {"urls": urls, "out": out, "clip": system / "clip", "movq": system / "movq"}
    return [*(f"{key}='{path}'" for key, path in paths.items()), *more]


@functools.cache
def usual():
    return compose.compose("precompute", words("urls", "out", Path("system")))


def config(urls, out, system, *more):
    """As composed from these words, without composing each anew."""
    return OmegaConf.merge(usual(), OmegaConf.from_dotlist(words(urls, out, system, *more)))


def run(typed):
    import torch

    from open_kandinsky.precompute import precompute

    torch.set_num_threads(1)  # as in the process that runs the tests
    precompute(compose.compose("precompute", typed))


def begun(typed):
    process = SERVER.Process(target=run, args=(typed,))
    process.start()
    return process


def files(folder):
    """All that was written, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
