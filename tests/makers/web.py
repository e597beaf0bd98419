"""A web server of this machine that serves bytes, by ranges or not, and fails as it is told."""

import re
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        web = self.server.web
        body = web.files.get(self.path)
        fault = web.fault(self.path, with_body)
        if body is None or isinstance(fault, int):
            self.send_error(fault or 404)
            return
        start, stop = self.wanted(len(body)) if web.ranges else (0, len(body))
        if fault == "slow":
            time.sleep(web.patience)
        self.send_response(206 if web.ranges and "Range" in self.headers else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            web.sent.append((self.path, stop - start))
            with suppress(OSError):  # one that was not waited for has gone
                self.wfile.write(body[start : (start + stop) // 2 if fault == "cut" else stop])
            self.close_connection = fault is not None

    def wanted(self, size):
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (0, size) if asked is None else (int(asked[1]), min(int(asked[2]) + 1, size))

    def log_message(self, *args):
        pass


@contextmanager
def serving(files, *, ranges=True, fault=lambda path, with_body: None, patience=3.0, handler=Handler):
    """`files`: path -> bytes; `fault`: None, a status, "cut" or "slow" for a request. `sent` has each body's length."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}"
    server.web = SimpleNamespace(files=files, ranges=ranges, fault=fault, patience=patience, sent=[], address=address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
