"""A file is whole, or what it was before, and nothing is left beside it."""

import errno
import os
import socket

import pytest
from safetensors import SafetensorError

from open_kandinsky import atomic


def test_bytes_and_text(tmp_path):
    path = tmp_path / "new folder" / "file"
    atomic.write(path, b"old")
    atomic.write(path, "new \u00fc")
    assert path.read_text(encoding="utf-8") == "new \u00fc" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "stop", [OSError(errno.ENOSPC, "No space left on device"), OSError("full"), SafetensorError("io")]
)
def test_a_failure_names_the_file_and_leaves_it(tmp_path, stop):
    path = tmp_path / "file"
    atomic.write(path, "old")
    with pytest.raises(OSError) as error, atomic.replacing(path) as part:
        part.write_text("half")
        raise stop
    assert error.value.filename == str(path) and error.value.errno and error.value.strerror
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_machine_that_stops_before_the_rename(tmp_path, monkeypatch):
    """What is under the other name by then is on the disk, complete."""
    path, synced = tmp_path / "file", []
    monkeypatch.setattr("open_kandinsky.atomic.synced", lambda p: synced.append((p, p.is_file() and p.read_text())))
    atomic.write(path, "text")
    part, folder = synced
    assert part[0].name.startswith(".file.") and part[1] == "text" and folder[0] == tmp_path


def test_interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.replacing(tmp_path / "file") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_processes_have_two_names(tmp_path):
    with atomic.replacing(tmp_path / "file") as part:
        part.write_text("")
        assert str(os.getpid()) in part.name


def test_a_folder_is_there_with_all_that_was_written_or_not_at_all(tmp_path):
    with atomic.new_folder(tmp_path / "new" / "folder") as part:
        (part / "file").write_text("text")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "file").read_text() == "text"
    with pytest.raises(KeyboardInterrupt), atomic.new_folder(tmp_path / "other") as part:
        (part / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_a_folder_that_holds_something_by_then_is_left_alone(tmp_path):
    with pytest.raises(OSError, match="not empty"), atomic.new_folder(tmp_path / "folder") as part:
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
        part = folder / f".file.ckpt.{host}.{pid}.part"
        part.write_text("half")
        os.utime(part, (part.stat().st_mtime - age,) * 2)
        return part

    def test_those_of_dead_processes_of_this_machine_go(self, tmp_path, dead):
        (tmp_path / "below").mkdir()
        gone = self.left(tmp_path / "below", socket.gethostname(), dead)
        assert atomic.remove_leftovers(tmp_path) == [gone] and not gone.exists()

    def test_folders_too(self, tmp_path, dead):
        with atomic.new_folder(tmp_path / "folder") as part:
            (part / "file").touch()
            name = part.name.replace(f".{os.getpid()}.", f".{dead}.")
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
        atomic.remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_those_of_the_living_stay(self, tmp_path):
        self.left(tmp_path, socket.gethostname(), os.getppid())
        assert atomic.remove_leftovers(tmp_path) == []

    @pytest.mark.parametrize(("age", "goes"), [(60, False), (2 * 3600, True)])
    def test_those_of_another_machine_when_it_has_long_been_silent(self, tmp_path, dead, age, goes):
        part = self.left(tmp_path, "elsewhere", dead, age)
        assert atomic.remove_leftovers(tmp_path) == [part] * goes and part.exists() is not goes

    def test_nobody_elses_files(self, tmp_path, dead):
        (tmp_path / ".notes.part").touch()
        (tmp_path / f"file.{dead}.part").touch()
        assert atomic.remove_leftovers(tmp_path) == []
