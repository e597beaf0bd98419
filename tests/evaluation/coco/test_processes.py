"""Any number of processes, and any of them killed at any moment: the same pictures and the same numbers."""

import json
import random
import time

import pytest
from fixtures import coco as maker
from fixtures.processes import begun, run

LONG = 120  # seconds: then something waits for nothing


@pytest.fixture(scope="module")
def asked(system, tmp_path_factory):
    coco = maker.make(tmp_path_factory.mktemp("coco") / "coco", n_images=16)
    paths = [f"weights='{system}'", f"coco='{coco}'", "protocol=smoke", "protocol.captions.n=16"]
    return [*paths, "metrics=[frechet_distance_own_clip,clip_score_own_clip]", "block=2"]


def found(out):
    """metrics.json without what differs from run to run: by what and how long."""
    return {name: value for name, value in json.loads((out / "metrics.json").read_text()).items() if name != "made"}


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    run(asked, out)
    return found(out)


@pytest.mark.parametrize("processes", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_as_many_processes_as_there_are(asked, alone, tmp_path, processes):
    together = [begun(asked, tmp_path) for _ in range(processes)]
    for process in together:
        process.join(LONG)
    assert [process.exitcode for process in together] == [0] * processes
    assert found(tmp_path) == alone
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.claim"))


@pytest.mark.slow
def test_killed_five_times_and_gone_on_with(asked, alone, tmp_path):
    moments = random.Random(0)
    for _ in range(5):
        process = begun(asked, tmp_path)
        time.sleep(moments.uniform(0.2, 1.2))
        process.kill()
        process.join()
    run(asked, tmp_path)
    assert found(tmp_path) == alone


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_other_does_its_work(asked, alone, tmp_path):
    first, second = begun(asked, tmp_path), begun(asked, tmp_path)
    time.sleep(0.8)
    first.kill()
    second.join(LONG)
    assert second.exitcode == 0 and found(tmp_path) == alone
