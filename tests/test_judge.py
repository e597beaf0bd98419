"""The verb: a page until it is stopped, however that is, and then results."""

import json
import multiprocessing
import os
import signal
import time
import urllib.request

import pytest
from fixtures.compared import gallery
from fixtures.ports import free_port

from open_kandinsky.config import compose
from open_kandinsky.judge import judge


@pytest.fixture
def asked(tmp_path):
    """The verb's overrides for two galleries, with others after them."""
    gallery(tmp_path / "ours", 250), gallery(tmp_path / "theirs", 90)
    given = {"a": "ours", "b": "theirs", "votes": "votes.sqlite"}
    return lambda *more: [*(f"{key}='{tmp_path / name}'" for key, name in given.items()), *more]


def run(overrides):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are deaf to Ctrl-C
    return judge(compose.compose("judge", overrides))


def vote(url, judge, answer):
    """The first question of the next pair."""
    with urllib.request.urlopen(f"{url}pair?judge={judge}") as answered:
        pair = json.load(answered)["pair"]["name"]
    body = json.dumps({"judge": judge, "pair": pair, "question": "text", "answer": answer}).encode()
    request = urllib.request.Request(f"{url}vote", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request).close()


def wait_for(capfd):
    """What is printed first."""
    for _ in range(500):
        if said := capfd.readouterr().out:
            return said
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_every_vote_is_there_however_the_page_is_stopped(asked, tmp_path, capfd, stop):
    port = free_port()
    process = multiprocessing.get_context("fork").Process(target=run, args=[asked(f"port={port}")])
    process.start()
    url = f"http://127.0.0.1:{port}/"
    assert wait_for(capfd) == f"6 pairs to judge at {url}\n"
    vote(url, "anna", "equal")
    vote(url, "anna", "left")
    os.kill(process.pid, stop)
    process.join()
    if stop == signal.SIGINT:
        assert process.exitcode == 0 and capfd.readouterr().out.endswith("votes.sqlite: 1 votes\n")
    run(asked("show=results", f"out='{tmp_path / 'results.json'}'"))
    assert "1 votes of 1 judges on 1 pairs" in capfd.readouterr().out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["a"] == str(tmp_path / "ours") and written["asked"] == 6
    assert (written["votes"], written["replaced"]) == (1, 1)
    assert written["questions"]["text"]["equal"] == 0 and written["questions"]["looks"]["win_rate"] is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["show=table"], "show=table: page or results"),
        (["out=x.json"], "out=x.json is read with show=results"),
        (["show=results"], "votes.sqlite: no such file"),
    ],
)
def test_what_cannot_be_is_said(asked, more, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run(asked(*more))
    assert not (tmp_path / "votes.sqlite").exists()


def test_results_are_not_written_over(asked, tmp_path):
    (tmp_path / "votes.sqlite").touch()
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        run(asked("show=results", f"out='{tmp_path / 'results.json'}'"))
    with pytest.raises(ValueError, match="no votes yet"):
        run(asked("show=results"))
    assert (tmp_path / "results.json").read_text() == "mine"
