"""The judges' page and its data over HTTP, on this machine only.

GET  /                      the page, and the two files that it loads
GET  /pair?judge=J[&at=N]   `Comparison.view` as JSON
GET  /picture/NAME          a PNG
POST /vote                  {judge, pair, question, answer} as JSON; the answer is the pair's view
"""

import json
import re
import sqlite3
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from open_kandinsky.core.errors import UserError
from open_kandinsky.evaluation.human.comparison import Comparison

LOOPBACK = "127.0.0.1"
HOSTS = {LOOPBACK, "localhost"}  # any port: it may be another at the near end of an ssh tunnel
LARGEST = 4096  # bytes of a vote
FILES = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
WAITING = 256  # connections that wait to be answered; more are refused by the system
FIELDS = ("judge", "pair", "question", "answer")


def bind(comparison: Comparison, port: int) -> ThreadingHTTPServer:
    """A server bound to `port` (0: any that is free), which answers in serve_forever; ValueError where the port cannot
    be had."""
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(Handler, comparison))
        server.socket.listen(WAITING)  # socketserver's own 5 are fewer than a page's pictures
        return server
    except (OSError, OverflowError) as error:
        raise UserError(f"port={port}: {error}; choose another, or 0 for any that is free") from error


class Handler(BaseHTTPRequestHandler):
    """The answer to one request."""

    server_version, sys_version = "judge", ""
    timeout = 30  # seconds for a request to arrive

    def __init__(self, comparison: Comparison, *args: Any) -> None:
        self.comparison = comparison
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send one of FILES, a pair or a picture; no name in a request is ever used as a path."""
        path, _, query = self.path.partition("?")
        if not self.is_local():
            self.refuse(HTTPStatus.FORBIDDEN, "only for this machine")
        elif path in FILES:
            file = Path(__file__).with_name(FILES[path])
            self.answer(HTTPStatus.OK, file.read_bytes(), f"{KINDS[file.suffix]}; charset=utf-8")
        elif path == "/pair":
            self.give_pair({name: values[0] for name, values in parse_qs(query).items()})
        elif path.startswith("/picture/"):
            self.give_picture(path.removeprefix("/picture/"))
        else:
            self.refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        """Take a vote. A page of another site cannot send one: browsers ask before they send JSON across sites."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length):
            return self.refuse(HTTPStatus.LENGTH_REQUIRED, "how long is it?")
        body = self.rfile.read(min(int(length), LARGEST + 1))  # a refusal may not arrive where the body was not read
        if not self.is_local():
            self.refuse(HTTPStatus.FORBIDDEN, "only for this machine")
        elif self.path != "/vote":
            self.refuse(HTTPStatus.NOT_FOUND, "no such page")
        elif self.headers.get_content_type() != "application/json":
            self.refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a vote is JSON")
        elif len(body) > LARGEST:
            self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a vote has at most {LARGEST} bytes")
        else:
            self.take_vote(body)

    def is_local(self) -> bool:
        """Whether the request names this machine as its host: another site's name may lead here, too."""
        return self.headers.get("Host", "").partition(":")[0].lower() in HOSTS

    def give_pair(self, query: dict[str, str]) -> None:
        try:
            view = self.comparison.view(query.get("judge", ""), int(query["at"]) if "at" in query else None)
        except ValueError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        else:
            self.say(HTTPStatus.OK, view)

    def give_picture(self, name: str) -> None:
        try:
            png = self.comparison.picture(name)
        except (ValueError, OSError):  # the message would name the folder
            png = None
        if png is None:
            self.refuse(HTTPStatus.NOT_FOUND, "no such picture, or it was changed")
        else:
            self.answer(HTTPStatus.OK, png, "image/png", cache="private, max-age=86400, immutable")

    def take_vote(self, body: bytes) -> None:
        try:
            self.say(HTTPStatus.OK, self.comparison.vote(**fields(body)))
        except ValueError as error:
            self.refuse(HTTPStatus.BAD_REQUEST, str(error))
        except sqlite3.Error as error:
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the vote was not stored: {error}")

    def refuse(self, status: HTTPStatus, why: str) -> None:
        self.say(status, {"error": why})

    def say(self, status: HTTPStatus, what: dict[str, Any]) -> None:
        self.answer(status, json.dumps(what).encode(), "application/json")

    def answer(self, status: HTTPStatus, body: bytes, kind: str, cache: str = "no-store") -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": cache}
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        with suppress(ConnectionError):  # a browser that has gone on to the next page
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal says where the page is, and stays readable."""


def fields(body: bytes) -> dict[str, str]:
    """The four texts of a vote, from JSON; ValueError for anything else."""
    try:
        vote = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"a vote is JSON ({error})") from error
    if not isinstance(vote, dict) or set(vote) != set(FIELDS) or not all(isinstance(v, str) for v in vote.values()):
        raise UserError(f"a vote is an object of the texts {', '.join(FIELDS)}")
    return vote
