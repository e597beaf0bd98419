"""A password in an address is printed nowhere, and kept nowhere."""

import io
import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from fixtures.programs import environment
from fixtures.shards import sample, write_tar
from fixtures.system import overrides
from fixtures.web import Handler, serving

from open_kandinsky.core.secrets import HIDDEN, Masked, hidden_arguments, masked, masked_tree
from open_kandinsky.data.tar import reader
from open_kandinsky.data.tar.index import Indexer

SECRET = "hunter2"
HIDE = [
    f"http://me:{SECRET}@host/a.tar",
    f"https://{SECRET}@host/a.tar",
    f"s3://key:{SECRET}@bucket/{{00..09}}.tar",
    f"http://me:with/{SECRET}@host/a.tar",
    f"https://host/a.tar?X-Amz-Credential=a&X-Amz-Signature={SECRET}&x=1",
    f"https://host/a.tar?token={SECRET}",
    f"https://host/a.tar?x=1&sig={SECRET}",
    f"pipe:curl -H 'Authorization: Bearer {SECRET}' https://host/a.tar",
]
STAY = [
    "https://host:8080/a.tar?width=3",
    "https://host:8080/a@2x.tar",
    "a sign that says 12:30, me@example.org",
    "stage.optimizer.lr=1e-4 data.key=7",
    "C://pictures/a@2x.png",
    "two keys = one door",
]


@pytest.mark.parametrize("text", HIDE)
def test_what_is_hidden(text):
    assert SECRET not in masked(text) and HIDDEN in masked(text)
    assert masked(masked(text)) == masked(text)
    assert masked_tree({"data": {"urls": [text]}, "n": 3}) == {"data": {"urls": [masked(text)]}, "n": 3}


@pytest.mark.parametrize("text", STAY)
def test_what_stays(text):
    assert masked(text) == text


def test_a_stream_hides_what_is_written_a_line_or_several(monkeypatch):
    out = io.StringIO()
    stream = Masked(out)
    print(f"reading {HIDE[0]}", file=stream)
    stream.writelines([f"{HIDE[1]}\n", "done\n"])
    assert out.getvalue() == "reading http://me:***@host/a.tar\nhttps://***@host/a.tar\ndone\n"
    monkeypatch.setattr(sys, "argv", ["train", f"data.urls={HIDE[0]}"])
    with hidden_arguments():
        assert SECRET not in sys.argv[1]
    assert SECRET in sys.argv[1]


def test_shards_that_what_is_hidden_tells_apart_are_counted_apart(tmp_path):
    """A key may be a file's name; an index has neither it nor a password."""
    rows = {name: {f"{at}": sample(at) for at in range(n)} for name, n in (("one", 2), ("other", 3))}
    files = {f"/get?key={name}": Path(write_tar(tmp_path / f"{name}.tar", rows[name])).read_bytes() for name in rows}
    with serving(files) as web:
        urls = [web.address.replace("://", f"://me:{SECRET}@") + path for path in files]
        for _ in range(2):
            index = Indexer(folder=str(tmp_path / "index"), threads=1, count=reader.count)(urls)
            assert (index.urls, index.counts) == (urls, [2, 3])
        asked = len(web.sent)
        Indexer(folder=str(tmp_path / "index"), threads=1, count=reader.count)(urls)
        assert len(web.sent) == asked, "what was counted is known by its name"
    (kept,) = (tmp_path / "index").glob("*.json")
    assert SECRET not in kept.read_text() and "other" not in kept.read_text()


class Asking(Handler):
    """Serves those alone who know the password."""

    def answer(self, with_body):
        if self.headers.get("Authorization") == f"Basic {b64encode(f'me:{SECRET}'.encode()).decode()}":
            super().answer(with_body)
        else:
            self.send_error(401)


@pytest.fixture
def store(shapes):
    tar = (shapes / "shapes" / "train" / "00000.tar").read_bytes()
    with serving({"/set/00000.tar": tar}, handler=Asking) as web:
        yield web.address.replace("://", f"://me:{SECRET}@") + "/set/00000.tar"


def run(verb, typed, folder):
    """Exit code, and all that was printed."""
    own = {**environment(), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder)}
    command = [sys.executable, "-m", "open_kandinsky.cli", verb, *typed]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout + done.stderr


def told_in(folder):
    """The files below a folder that hold the password."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_a_training(store, shapes, tmp_path, sweep):
    where = [] if sweep else ["run_dir=run"]
    given = [o for o in overrides("clip", shapes, *where, f"data.urls='{store}'", "data.val_urls=null")]
    given = given if not sweep else [o for o in given if not o.startswith("run_dir=")]
    code, told = run("train", [*sweep, *given], tmp_path)
    assert code == 0, told
    assert SECRET not in told and told_in(tmp_path) == []
    assert any(tmp_path.rglob("weights.safetensors"))


@pytest.mark.slow
def test_precompute(store, system, tmp_path):
    typed = [f"urls='{store}'", "out=out", f"clip='{system}/clip'", f"movq='{system}/movq'"]
    code, told = run("precompute", typed, tmp_path)
    assert code == 0 and (tmp_path / "out" / "manifest.json").is_file(), told
    assert SECRET not in told and told_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["nobody", "wrong"])
def test_a_store_that_does_not_answer_is_one_message(store, shapes, system, tmp_path, answer):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://me:{SECRET}@127.0.0.1:{free.getsockname()[1]}/set/00000.tar"
    url = gone if answer == "nobody" else store.replace("me:", "you:")
    given = overrides("clip", shapes, "run_dir=run", f"data.urls='{url}'", "data.val_urls=null")
    for verb, typed in (("train", given), ("precompute", [f"urls='{url}'", "out=out", f"clip='{system}/clip'"])):
        code, told = run(verb, typed, tmp_path)
        lines = [line for line in told.splitlines() if line.startswith("open-kandinsky ")]
        assert code == 2 and len(lines) == 1 and "00000.tar" in lines[0], told
        assert "Traceback" not in told and SECRET not in told and told_in(tmp_path) == []
