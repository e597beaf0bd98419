"""One thread, for numbers that do not depend on the machine's; and a system of every part, made once."""

import multiprocessing
from multiprocessing.context import ForkServerProcess

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """What programs keep for later runs, such as the index of shards, is not kept by tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def no_process_is_left():
    """What a test has begun and, failing, not ended would be waited for at the end of all tests."""
    yield
    for process in multiprocessing.active_children():
        if isinstance(process, ForkServerProcess):
            process.kill()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A folder whose `shapes/` is a toy set of 48 pictures in two shards."""
    from open_kandinsky.data.shapes.world import toy_world
    from open_kandinsky.data.shapes.write import write_shapes

    root = tmp_path_factory.mktemp("set")
    write_shapes(root / "shapes", world=toy_world(size=32), images=48, val_images=8, seed=0, per_shard=24)
    return root


@pytest.fixture(scope="session")
def system(tmp_path_factory):
    """A folder of clip, movq, prior and decoder, tiny and untrained."""
    from fixtures.system import PARTS, untrained

    root = tmp_path_factory.mktemp("system")
    for part in PARTS:
        untrained(part, root)
    return root


@pytest.fixture(scope="session")
def cached(shapes, system, tmp_path_factory):
    """A folder with the toy set, and in `cache/` what the tiny system's encoders make of it."""
    from open_kandinsky.config import compose
    from open_kandinsky.precompute import precompute

    root = tmp_path_factory.mktemp("cached")
    (root / "shapes").symlink_to(shapes / "shapes")
    for split in ("train", "seen"):
        paths = {"urls": shapes / "shapes" / split, "out": root / "cache" / split}
        encoders = {"clip": system / "clip", "movq": system / "movq"}
        given = [f"{key}='{path}'" for key, path in (paths | encoders).items()]
        precompute(compose.compose("precompute", given))
    return root
