"""A local HTTP server that drops connections, changes files, lies and refuses."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """The server's next responses; `requests` holds the Range header of each request."""

    url: str = ""
    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True  # whether it honours Range
    if_range: bool = True  # whether it honours If-Range
    drops: list[int] = field(default_factory=list)  # bytes after which each response breaks off
    statuses: list[int] = field(default_factory=list)  # error statuses before the first success
    announced: int | None = None  # a false Content-Length; 0 for none at all
    drip: int = 0  # bytes every 5 ms instead of all at once
    header_drips: int = 0  # lines of headers that come one every 5 ms
    gate: threading.Event | None = None  # the body comes when it is set
    requests: list[str | None] = field(default_factory=list)


@contextmanager
def running(state: Server) -> Iterator[Server]:
    """Serve `state.content` under every path of `state.url` while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(wanted)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            total, start = len(state.content), 0
            stale = state.if_range and self.headers.get("If-Range") not in (None, state.etag)
            if wanted and state.ranges and not stale:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start >= total:
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if state.announced != 0:
                self.send_header("Content-Length", str(state.announced or total - start))
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Type", "text/plain")
            with suppress(ConnectionError):  # the client may hang up
                for number in range(state.header_drips):
                    self.send_header(f"X-{number}", "more")
                    self.flush_headers()
                    time.sleep(0.005)
            self.end_headers()
            body = state.content[start:]
            if state.gate is not None:
                state.gate.wait(30)
            with suppress(ConnectionError):
                while state.drip and body:
                    self.wfile.write(body[: state.drip])
                    body = body[state.drip :]
                    time.sleep(0.005)
                self.wfile.write(body[: state.drops.pop(0)] if state.drops else body)

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield state
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
