"""Weights are found by name and hash, fetched whole from a server, and refused where they are others."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from open_kandinsky.weights.published import EVALUATORS, PublishedFile, find

DATA = b"weights" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class CutShort(Quiet):
    """Promises more than it sends."""

    def send_header(self, keyword, value):
        super().send_header(keyword, str(int(value) + 100) if keyword == "Content-Length" else value)


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    """Neither this machine's caches nor its proxy."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("EVAL_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve(tmp_path):
    """A function from a handler to the address where the folder `served` is."""
    servers = []

    def start(handler=Quiet):
        (tmp_path / "served").mkdir(exist_ok=True)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served")))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def toy(url=None, sha256=SHA):
    return PublishedFile(file="toy.pth", sha256=sha256, url=url, what="a toy", also=("other.pth",))


def put(path, data=DATA):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["toy.pth", "other.pth"])
@pytest.mark.parametrize("place", ["folder", "named", "torch/hub/checkpoints"])
def test_it_is_found_by_either_name_in_three_places(tmp_path, monkeypatch, place, name):
    monkeypatch.setenv("EVAL_WEIGHTS_DIR", str(tmp_path / "named"))
    path = put(tmp_path / place / name)
    assert find(toy(), tmp_path / "folder") == (path, SHA, True)


def test_the_beginning_of_a_hash_will_do(tmp_path):
    put(tmp_path / "toy.pth")
    assert find(toy(sha256=SHA[:8]), tmp_path).verified


def test_another_file_of_that_name_is_refused_unless_it_is_wanted(tmp_path):
    path = put(tmp_path / "toy.pth", b"others")
    other = hashlib.sha256(b"others").hexdigest()
    with pytest.raises(ValueError, match=f"{path}.*{other}.*{SHA}"):
        find(toy(), tmp_path)
    assert find(toy(), tmp_path, accept_unknown=True) == (path, other, False)
    assert path.read_bytes() == b"others"


def test_it_is_fetched_once(tmp_path, serve):
    put(tmp_path / "served" / "toy.pth")
    url = f"{serve()}/toy.pth"
    path = tmp_path / "new" / "folder" / "toy.pth"
    assert find(toy(url), path.parent) == (path, SHA, True)
    assert path.read_bytes() == DATA
    (tmp_path / "served" / "toy.pth").unlink()
    assert find(toy(url), path.parent).verified


@pytest.mark.parametrize("handler", [Quiet, CutShort], ids=["another file", "cut short"])
def test_what_is_not_the_file_is_not_kept(tmp_path, serve, handler):
    put(tmp_path / "served" / "toy.pth", b"others" if handler is Quiet else DATA[:-5])
    with pytest.raises(ValueError, match="toy.pth.*could not be fetched"):
        find(toy(f"{serve(handler)}/toy.pth"), tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/toy.pth", "missing"], ids=["none", "no network", "404"])
def test_where_it_is_nowhere_one_message_says_what_to_put_where(tmp_path, serve, url):
    url = f"{serve()}/toy.pth" if url == "missing" else url
    with pytest.raises(ValueError) as error:
        find(toy(url), tmp_path / "folder")
    for said in ("toy.pth", SHA, str(tmp_path / "folder"), url or "author", "a toy"):
        assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_table_agrees_with_itself():
    for published in EVALUATORS:
        assert len(published.sha256) == 64 and published.url.startswith("https://")
        assert published.url.endswith(published.file)
        hashed = [name.removesuffix(".pth").rpartition("-")[2] for name in (published.file, *published.also)]
        assert all(published.sha256.startswith(part) for part in hashed if len(part) == 8)
