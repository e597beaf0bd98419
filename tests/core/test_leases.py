"""Units of work are done once, by whoever comes; what a dead process held is done by another."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from open_kandinsky.core import files
from open_kandinsky.core.leases import Leases, share


@dataclass(frozen=True)
class Note:
    """A unit that writes down who did it."""

    folder: Path
    name: str
    times: list = field(default_factory=list)

    @property
    def path(self):
        return self.folder / f"{self.name}.note"

    def done(self):
        return self.path.is_file()

    def do(self):
        self.times.append(time.perf_counter())
        with open(self.path.with_suffix(".log"), "a") as file:
            file.write("once\n")
        time.sleep(0.005)
        self.path.write_text("done")


def notes(folder, n=20):
    return [Note(folder, f"{i:02d}") for i in range(n)]


def shared(units, folder, **options):
    seen = []
    share(units, Leases(folder / "claims", **options), seen=lambda: seen.append(1), pause=0.01)
    return len(seen)


def test_several_workers_do_each_unit_once(tmp_path):
    workers = [threading.Thread(target=shared, args=(notes(tmp_path), tmp_path)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [(tmp_path / f"{i:02d}.log").read_text() for i in range(20)] == ["once\n"] * 20
    assert not list((tmp_path / "claims").iterdir())


def test_what_is_done_is_seen_and_left_alone(tmp_path):
    assert shared(notes(tmp_path), tmp_path) == 20
    again = notes(tmp_path)
    assert shared(again, tmp_path) == 20 and not any(note.times for note in again)


def held(folder, name, **owner):
    path = folder / "claims" / f"{name}.claim"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": files.machine(), "pid": os.getpid()} | owner))
    return path


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_dead_processs_unit_is_taken_over(tmp_path):
    held(tmp_path, "03", pid=dead_pid())
    assert shared(notes(tmp_path), tmp_path) == 20


def test_a_living_processs_unit_is_waited_for(tmp_path):
    path = held(tmp_path, "03")
    units = notes(tmp_path)
    worker = threading.Thread(target=shared, args=(units, tmp_path))
    worker.start()
    time.sleep(0.4)
    assert worker.is_alive() and not units[3].done() and units[4].done()
    path.unlink()
    worker.join()
    assert units[3].done()


@pytest.mark.parametrize(("idle", "taken"), [(100, True), (1, False)])
def test_another_machines_unit_is_taken_over_once_it_gives_no_sign_of_life(tmp_path, idle, taken):
    path = held(tmp_path, "03", machine="elsewhere")
    before = time.time() - idle
    os.utime(path, (before, before))
    with Leases(tmp_path / "claims", stale=60.0).take("03") as mine:
        assert mine == taken


def test_long_work_is_not_taken_for_dead(tmp_path):
    claims = Leases(tmp_path / "claims", stale=0.4)
    with claims.take("long") as mine:
        assert mine
        path = tmp_path / "claims" / "long.claim"
        path.write_text(json.dumps({"machine": "elsewhere", "pid": 1}))
        time.sleep(1.0)
        with claims.take("long") as another:
            assert not another


def test_a_unit_that_fails_is_given_back(tmp_path):
    claims = Leases(tmp_path / "claims")
    with pytest.raises(RuntimeError, match="broken"), claims.take("a"):
        raise RuntimeError("broken")
    with claims.take("a") as mine:
        assert mine


@pytest.mark.parametrize("text", ["", "{", "{}", '{"pid": "1"}', "[]", '{"machine": 3}', "\x00"])
@pytest.mark.parametrize(("idle", "taken"), [(100, True), (1, False)])
def test_an_owner_that_cannot_be_read_is_judged_by_age(tmp_path, text, idle, taken):
    """As a full disk leaves it, or a process that was killed before it had said who it is."""
    path = held(tmp_path, "03")
    path.write_text(text)
    before = time.time() - idle
    os.utime(path, (before, before))
    with Leases(tmp_path / "claims", stale=60.0).take("03") as mine:
        assert mine == taken


def test_a_claim_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as failure:
        patch.setattr("json.dump", full)
        with Leases(tmp_path / "claims").take("a"):
            pass
    assert failure.value.filename.endswith("a.claim") and list((tmp_path / "claims").iterdir()) == []
    with Leases(tmp_path / "claims").take("a") as mine:
        assert mine


def test_who_was_overtaken_does_not_give_back_what_is_anothers(tmp_path):
    """A machine that slept finds its claim taken over: the new owner's stays."""
    claims = Leases(tmp_path / "claims")
    path = tmp_path / "claims" / "a.claim"
    with claims.take("a") as mine:
        assert mine
        path.unlink()
        with claims.take("a") as other:
            assert other
            theirs = path.read_text()
            with claims.take("a") as third:
                assert not third
            path.write_text(theirs)
        path.write_text(theirs)
    assert path.read_text() == theirs
