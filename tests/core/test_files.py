"""A file is whole, or what it was before, and nothing is left beside it."""

import errno
import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError

from open_kandinsky.core import files

WRITES_TENSORS = """
import sys
import torch
from open_kandinsky.core import files

files.write_tensors(sys.argv[1], {"x": torch.zeros(400_000_000)})
"""


def test_bytes_and_text(tmp_path):
    path = tmp_path / "new folder" / "file"
    files.write(path, b"old")
    files.write(path, "new \u00fc")
    assert path.read_text(encoding="utf-8") == "new \u00fc" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "stop", [OSError(errno.ENOSPC, "No space left on device"), OSError("full"), SafetensorError("io")]
)
def test_a_failure_names_the_file_and_leaves_it(tmp_path, stop):
    path = tmp_path / "file"
    files.write(path, "old")
    with pytest.raises(OSError) as error, files.replacing(path) as part:
        part.write_text("half")
        raise stop
    assert error.value.filename == str(path) and error.value.errno and error.value.strerror
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_machine_that_stops_before_the_rename(tmp_path, monkeypatch):
    """What is under the other name by then is on the disk, complete."""
    path, synced = tmp_path / "file", []
    monkeypatch.setattr("open_kandinsky.core.files.synced", lambda p: synced.append((p, p.is_file() and p.read_text())))
    files.write(path, "text")
    part, folder = synced
    assert part[0].name.startswith(".file.") and part[1] == "text" and folder[0] == tmp_path


def test_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "file") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_no_two_writers_have_one_name(tmp_path, monkeypatch):
    """Nor two containers whose hosts have one name, and whose processes one number."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    with files.replacing(tmp_path / "file") as part, files.replacing(tmp_path / "file") as other:
        assert part != other and ".1." in part.name
        part.write_text("1")
        other.write_text("2")
    assert (tmp_path / "file").read_text() == "1" and list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_others_may_read_what_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write(tmp_path / "text", "x")
        files.write_tensors(tmp_path / "w.safetensors", {"x": torch.zeros(3)})
        with files.replacing(tmp_path / "w.ckpt") as part, open(part, "wb") as file:
            torch.save({}, file)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == dict.fromkeys(
        ["text", "w.safetensors", "w.ckpt"], mode
    )


def test_a_folder_is_there_with_all_that_was_written_or_not_at_all(tmp_path):
    with files.new_folder(tmp_path / "new" / "folder") as part:
        (part / "file").write_text("text")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "file").read_text() == "text"
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "other") as part:
        (part / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_a_folder_that_holds_something_by_then_is_left_alone(tmp_path):
    with pytest.raises(OSError, match="not empty"), files.new_folder(tmp_path / "folder") as part:
        (part / "mine").touch()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["theirs"]


class TestLeftovers:
    """What killed processes were writing."""

    @pytest.fixture
    def dead(self):
        """The number of a process that is no more."""
        import subprocess

        process = subprocess.Popen(["true"])
        process.wait()
        return process.pid

    def left(self, folder, host, pid, age=0.0):
        part = folder / f".file.ckpt.{host}.{pid}.0123abcd.part"
        part.write_text("half")
        os.utime(part, (part.stat().st_mtime - age,) * 2)
        return part

    def test_those_of_dead_processes_of_this_machine_go(self, tmp_path, dead):
        (tmp_path / "below").mkdir()
        gone = self.left(tmp_path / "below", files.machine(), dead)
        assert files.remove_leftovers(tmp_path) == [gone] and not gone.exists()

    def test_folders_too(self, tmp_path, dead):
        with files.new_folder(tmp_path / "folder") as part:
            (part / "file").touch()
            name = part.name.replace(f".{os.getpid()}.", f".{dead}.")
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        files.remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_those_of_the_living_stay(self, tmp_path):
        self.left(tmp_path, files.machine(), os.getppid())
        assert files.remove_leftovers(tmp_path) == []

    @pytest.mark.parametrize(("age", "goes"), [(60, False), (2 * 3600, True)])
    def test_those_of_another_machine_when_it_has_long_been_silent(self, tmp_path, dead, age, goes):
        part = self.left(tmp_path, "elsewhere", dead, age)
        assert files.remove_leftovers(tmp_path) == [part] * goes and part.exists() is not goes

    @pytest.mark.parametrize(("age", "goes"), [(60, False), (2 * 3600, True)])
    def test_those_of_a_version_before_are_judged_by_age(self, tmp_path, dead, age, goes):
        """Their names do not tell containers of one host's name apart."""
        part = tmp_path / f".file.{socket.gethostname()}.{dead}.part"
        part.touch()
        os.utime(part, (part.stat().st_mtime - age,) * 2)
        assert files.remove_leftovers(tmp_path) == [part] * goes

    def test_what_this_process_writes_at_this_moment_stays(self, tmp_path):
        with files.replacing(tmp_path / "file") as part:
            part.write_text("half")
            assert files.remove_leftovers(tmp_path) == []
        assert (tmp_path / "file").read_text() == "half"

    def test_what_safetensors_leaves_where_it_is_killed_goes(self, tmp_path):
        """In the middle of a large write, under a name of its own."""
        process = subprocess.Popen([sys.executable, "-c", WRITES_TENSORS, str(tmp_path / "w.safetensors")])
        deadline = time.time() + 60
        while not any(path.is_file() for path in tmp_path.rglob("*")):
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert list(tmp_path.iterdir()) and not (tmp_path / "w.safetensors").exists()
        assert len(files.remove_leftovers(tmp_path)) == 1 and list(tmp_path.iterdir()) == []

    def test_nobody_elses_files(self, tmp_path, dead):
        (tmp_path / ".notes.part").touch()
        (tmp_path / f"file.{dead}.part").touch()
        assert files.remove_leftovers(tmp_path) == []
