"""The page as a browser asks for it: blind, resumable, and closed to other sites."""

import http.client
import io
import json
import socket
import threading
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlencode

import pytest
from fixtures.compared import PROMPTS, gallery
from PIL import Image

from open_kandinsky.evaluation.human.comparison import Comparison
from open_kandinsky.evaluation.human.server import LARGEST, bind
from open_kandinsky.evaluation.human.votes import QUESTIONS, Votes, read_pairs

A, B = "our-own-system", "the-other-system"
HUES = {250: "a", 90: "b"}  # the red of a system's pictures, by which a test knows them


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return read_pairs(gallery(folder / A, 250), gallery(folder / B, 90))


class Browser:
    """Requests to one server, with the headers that a browser sends from the page itself."""

    def __init__(self, port):
        self.port, self.host = port, f"127.0.0.1:{port}"

    def __call__(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, {"Host": self.host} | headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def pair(self, judge, **more):
        status, _, body = self("GET", f"/pair?{urlencode({'judge': judge, **more})}")
        return status, json.loads(body)

    def vote(self, **fields):
        status, _, body = self("POST", "/vote", json.dumps(fields), **{"Content-Type": "application/json"})
        return status, json.loads(body)

    def system(self, picture):
        """Which system drew it, as its colour tells the test."""
        status, _, body = self("GET", f"/picture/{picture}")
        assert status == 200
        return HUES[Image.open(io.BytesIO(body)).getpixel((0, 0))[0]]


@contextmanager
def served(path, pairs, seed=0):
    """As `judge` serves it, on a port that is free, until the block ends."""
    votes = Votes(path, pairs)
    with bind(Comparison(pairs, votes, seed=seed), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Browser(server.server_port)
        finally:
            server.shutdown()
            thread.join()
            votes.close()


@pytest.fixture(scope="class")
def browser(tmp_path_factory, pairs):
    """One for all tests of a class that store no votes, or under names of their own."""
    with served(tmp_path_factory.mktemp("served") / "votes.sqlite", pairs) as browser:
        yield browser


def answered(browser, judge, choose, n=1):
    """Answer the next `n` pairs as `choose(question, left system, right system)` says; returns their views."""
    seen = []
    for _ in range(n):
        _, view = browser.pair(judge)
        pair = view["pair"]
        systems = {side: browser.system(pair[side]) for side in ("left", "right")}
        for question in QUESTIONS:
            status, _ = browser.vote(
                judge=judge, pair=pair["name"], question=question, answer=choose(question, systems)
            )
            assert status == 200
        seen.append(view)
    return seen


def side_of_a(_, systems):
    return "left" if systems["left"] == "a" else "right"


def test_fifty_who_come_at_once_are_all_answered(tmp_path, pairs):
    """Before any is: all connect, and send, and only then does the server begin to look."""
    votes = Votes(tmp_path / "votes.sqlite", pairs)
    with bind(Comparison(pairs, votes, seed=0), 0) as server:
        judges = [socket.create_connection(("127.0.0.1", server.server_port), timeout=30) for _ in range(50)]
        for at, judge in enumerate(judges):
            judge.sendall(
                f"GET /pair?judge=judge{at} HTTP/1.0\r\nHost: 127.0.0.1:{server.server_port}\r\n\r\n".encode()
            )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            answers = [b"".join(iter(partial(judge.recv, 65536), b"")) for judge in judges]
        finally:
            server.shutdown()
            thread.join()
            votes.close()
    assert [answer.split()[1] for answer in answers] == [b"200"] * 50


class TestBlind:
    def test_nothing_that_is_served_names_a_system(self, browser, pairs):
        """Page, pairs, pictures and refusals: neither the folders nor the files nor what generate wrote into them."""
        said = [browser("GET", path) for path in ("/", "/page.css", "/page.js", "/nothing", "/picture/nothing")]
        for at in range(len(pairs)):
            _, view = browser.pair("anna", at=at)
            said += [browser("GET", f"/pair?judge=anna&at={at}")]
            said += [browser("GET", f"/picture/{view['pair'][side]}") for side in ("left", "right")]
        hashes = [shown.sha256 for pair in pairs for shown in (pair.a, pair.b)]
        folder = str(pairs[0].a.folder.parent)
        secrets = [A, B, folder, "secret250", "secret90", "weights", "ddim", "tEXt", ".png", "manifest", *hashes]
        for _, headers, body in said:
            everything = f"{headers}{body.decode('latin-1')}"
            assert not [secret for secret in secrets if secret in everything]

    def test_names_of_pictures_are_other_ones_each_time(self, tmp_path, pairs):
        """So they cannot be worked out from the pictures, or learned from one run for the next."""
        names = []
        for _ in range(2):
            with served(tmp_path / "votes.sqlite", pairs) as browser:
                views = [browser.pair("anna", at=at)[1]["pair"] for at in range(len(pairs))]
                names += [view[key] for view in views for key in ("left", "right", "name")]
        assert len(set(names)) == len(names) == 6 * len(pairs)

    def test_a_picture_is_what_was_drawn(self, browser, pairs):
        _, view = browser.pair("anna", at=0)
        shown = next(p for p in pairs if p.prompt == view["pair"]["prompt"])
        _, headers, body = browser("GET", f"/picture/{view['pair']['left']}")
        image = Image.open(io.BytesIO(body))
        assert headers["Content-Type"] == "image/png" and image.info == {}
        assert image.size == Image.open(shown.a.folder / shown.a.file).size

    def test_each_pair_shows_both_systems(self, browser, pairs):
        for at in range(len(pairs)):
            pair = browser.pair("anna", at=at)[1]["pair"]
            assert {browser.system(pair["left"]), browser.system(pair["right"])} == {"a", "b"}

    def test_two_judges_see_other_orders_and_sides(self, browser, pairs):
        seen = {}
        for judge in ("anna", "ben"):
            views = [browser.pair(judge, at=at)[1]["pair"] for at in range(len(pairs))]
            seen[judge] = [(view["prompt"], browser.system(view["left"])) for view in views]
        assert sorted(p for p, _ in seen["anna"]) == sorted(p for p, _ in seen["ben"])
        assert [p for p, _ in seen["anna"]] != [p for p, _ in seen["ben"]]
        assert {side for judge in seen.values() for _, side in judge} == {"a", "b"}

    def test_a_page_that_is_loaded_again_shows_the_same(self, browser):
        assert browser.pair("anna") == browser.pair("anna")
        assert browser.pair("anna", at=2) == browser.pair(" anna ", at=2)


class TestVotes:
    def test_what_is_clicked_is_stored_for_the_system_that_was_there(self, tmp_path, pairs):
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            answered(browser, "anna", side_of_a, len(pairs))
            answered(browser, "ben", lambda question, _: "equal" if question == "looks" else "left", len(pairs))
        votes = Votes(tmp_path / "votes.sqlite", pairs)
        anna, ben = ([vote for vote in votes.counted() if vote.judge == judge] for judge in ("anna", "ben"))
        votes.close()
        assert len(anna) == len(ben) == 2 * len(pairs)
        assert {vote.answer for vote in anna} == {"a"} and {vote.on_left for vote in anna} == {"a", "b"}
        assert all(vote.answer == (vote.on_left if vote.question == "text" else "equal") for vote in ben)

    def test_a_judge_goes_on_where_they_stopped(self, tmp_path, pairs):
        """Also in the middle of a pair, and with a server that was started anew."""
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            first, second = answered(browser, "anna", side_of_a, 2)
            _, third = browser.pair("anna")
            browser.vote(judge="anna", pair=third["pair"]["name"], question="text", answer="equal")
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            _, view = browser.pair("anna")
            assert (view["at"], view["done"], view["total"]) == (2, 2, len(pairs))
            assert view["pair"]["prompt"] == third["pair"]["prompt"]
            assert view["pair"]["answers"] == {"text": "equal"}
            _, again = browser.pair("anna", at=0)
            assert again["pair"]["answers"].keys() == QUESTIONS.keys()
            assert browser.pair("ben")[1]["done"] == 0

    def test_after_the_last_pair_there_is_none(self, browser, pairs):
        answered(browser, "zoe", side_of_a, len(pairs))
        _, view = browser.pair("zoe")
        assert view["pair"] is view["at"] is None and view["done"] == view["total"] == len(pairs)

    def test_a_second_answer_counts_and_the_first_is_kept(self, tmp_path, pairs):
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            name = browser.pair("anna")[1]["pair"]["name"]
            for answer in ("left", "left", "right"):
                _, view = browser.vote(judge="anna", pair=name, question="text", answer=answer)
            assert view["pair"]["answers"] == {"text": "right"} and view["at"] == 0
        votes = Votes(tmp_path / "votes.sqlite", pairs)
        (counting,) = votes.counted()
        assert counting.answer != counting.on_left and votes.total() == 2
        votes.close()

    def test_judges_who_vote_at_once_lose_nothing(self, tmp_path, pairs):
        judges = [f"judge {i}" for i in range(6)]
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            threads = [threading.Thread(target=answered, args=(browser, j, side_of_a, len(pairs))) for j in judges]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert all(browser.pair(judge)[1]["done"] == len(pairs) for judge in judges)
        votes = Votes(tmp_path / "votes.sqlite", pairs)
        assert len(votes.counted()) == votes.total() == 2 * len(pairs) * len(judges)
        assert {vote.answer for vote in votes.counted()} == {"a"}
        votes.close()

    def test_a_page_from_before_the_server_was_started_anew_is_told_so(self, tmp_path, pairs):
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            old = browser.pair("anna")[1]["pair"]["name"]
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            status, said = browser.vote(judge="anna", pair=old, question="text", answer="left")
            assert status == 400 and "load it again" in said["error"]
            assert browser.pair("anna")[1]["pair"]["answers"] == {}

    def test_a_picture_that_was_changed_meanwhile_is_not_shown(self, tmp_path):
        pairs = read_pairs(gallery(tmp_path / A, 250), gallery(tmp_path / B, 90))
        with served(tmp_path / "votes.sqlite", pairs) as browser:
            pair = browser.pair("anna", at=0)[1]["pair"]
            for shown in (shown for pair in pairs for shown in (pair.a, pair.b)):
                (shown.folder / shown.file).write_bytes(b"another")
            status, _, body = browser("GET", f"/picture/{pair['left']}")
            assert status == 404 and b"changed" in body and str(tmp_path).encode() not in body


class TestPage:
    def test_it_asks_nobody_else_for_anything(self, browser):
        page, style, script = (browser("GET", path)[2].decode() for path in ("/", "/page.css", "/page.js"))
        assert not [word for word in ("http:", "https:", "//", "@import") if word in page + style]
        assert "http" not in script and "innerHTML" not in script  # a prompt is text, never markup
        assert "<script>" not in page and "style=" not in page and "onclick" not in page

    def test_its_headers_allow_nothing_else(self, browser):
        _, headers, _ = browser("GET", "/")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"

    def test_a_prompt_comes_as_it_is_and_as_json(self, browser, pairs):
        prompts = set()
        for at in range(len(pairs)):
            _, headers, body = browser("GET", f"/pair?judge=anna&at={at}")
            assert headers["Content-Type"] == "application/json"
            prompts.add(json.loads(body)["pair"]["prompt"])
        assert prompts == set(PROMPTS)


class TestClosed:
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:7861", "127.0.0.1.evil.example", "", "10.0.0.1"])
    def test_to_another_sites_name(self, browser, host):
        """A name that its owner lets lead to this machine: its page would be of the same origin."""
        assert browser("GET", "/pair?judge=anna", Host=host)[0] == 403
        assert browser("POST", "/vote", "{}", Host=host, **{"Content-Type": "application/json"})[0] == 403

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "LOCALHOST:9000"])
    def test_but_open_to_this_machines_own(self, browser, host):
        assert browser("GET", "/pair?judge=anna", Host=host)[0] == 200

    def test_to_other_machines(self, browser):
        """It listens on the loopback address alone: another address of this machine is one that nobody answers."""
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", browser.port), timeout=5):
            pass

    @pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
    def test_to_what_a_form_can_send(self, browser, kind):
        name = browser.pair("anna")[1]["pair"]["name"]
        body = json.dumps({"judge": "anna", "pair": name, "question": "text", "answer": "left"})
        assert browser("POST", "/vote", body, **{"Content-Type": kind})[0] == 415
        assert browser.pair("anna")[1]["pair"]["answers"] == {}

    def test_to_asking_whether_another_site_may(self, browser):
        status, headers, _ = browser("OPTIONS", "/vote", Origin="http://evil.example")
        assert status == 501 and not [name for name in headers if name.lower().startswith("access-control")]

    @pytest.mark.parametrize(
        "path",
        ["/../votes.sqlite", "/picture/../../votes.sqlite", "/picture/%2e%2e%2fvotes.sqlite", "/picture/00000.png"]
        + ["//etc/passwd", "/picture//etc/passwd", "/picture/", "/server.py", "/page.html", "/vote", "http://[/"],
    )
    def test_to_every_path_but_its_own(self, browser, path):
        assert browser("GET", path)[0] == 404

    def test_to_votes_that_are_too_long(self, browser):
        json_ = {"Content-Type": "application/json"}
        assert browser("POST", "/vote", "x" * (LARGEST + 1), **json_)[0] == 413
        assert browser("POST", "/vote", None, **json_, **{"Content-Length": "9" * 5000})[0] == 411
        assert browser("POST", "/vote", None, **json_, **{"Transfer-Encoding": "chunked"})[0] == 411
        assert browser.pair("anna")[0] == 200

    @pytest.mark.parametrize(
        "body",
        ["", "{", "[]", "null", "{}", '{"judge": "anna"}', "\ud800".encode("utf-8", "surrogatepass"), "[" * 4000]
        + ['{"judge": 1, "pair": "", "question": "text", "answer": "left"}'],
    )
    def test_to_what_is_no_vote(self, browser, body):
        status, _, said = browser("POST", "/vote", body, **{"Content-Type": "application/json"})
        assert status == 400 and json.loads(said)["error"].startswith("a vote is")

    @pytest.mark.parametrize(
        "wrong",
        [{"judge": ""}, {"judge": "x" * 61}, {"judge": "a\0b"}, {"pair": "\u00fc"}, {"answer": "a"}]
        + [{"question": "x"}, {"answer": "left'; DROP TABLE votes; --"}],
    )
    def test_to_answers_that_are_not_on_the_page(self, browser, wrong):
        name = browser.pair("anna")[1]["pair"]["name"]
        status, said = browser.vote(**{"judge": "anna", "pair": name, "question": "text", "answer": "left"} | wrong)
        assert status == 400 and said["error"]
        assert browser.pair("anna")[1]["pair"]["answers"] == {}

    @pytest.mark.parametrize("query", ["", "judge=", "judge=anna&at=6", "judge=anna&at=-1", "judge=anna&at=x"])
    def test_to_pairs_that_there_are_not(self, browser, query):
        assert browser("GET", f"/pair?{query}")[0] == 400


def test_a_port_that_is_taken_is_said_so(browser, tmp_path, pairs):
    votes = Votes(tmp_path / "other.sqlite", pairs)
    for port, said in ((browser.port, "in use"), (70_000, "port must be")):
        with pytest.raises(ValueError, match=f"port={port}: .*{said}"):
            bind(Comparison(pairs, votes, seed=0), port)
    votes.close()
