"""A file is whole, or what it was before, and nothing is left beside it."""

import errno
import os

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
