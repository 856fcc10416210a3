"""Download a file: resumable, bounded in size and time, checked, and renamed only then."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import shutil
import socket
import ssl
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff.errors import DataError, OutputError
from cepdiff.files import check_output, write_json

MAX_BYTES = 10 * 10**9  # for a file of unknown size; D4RL's largest has 0.75 GB
MIN_RATE = 1000  # bytes per second
_CHUNK_BYTES = 1 << 20
_MAX_WAIT = 60.0
_NETWORK_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError)
# Retrying does not help: no network, no such server or local file, or not the server it claims to be.
_LASTING_ERRORS = (socket.gaierror, ssl.SSLCertVerificationError, FileNotFoundError)
# Temporary failures of the server.
_RETRIED_STATUS = (408, 416, 425, 429, *range(500, 600))


def download(
    url: str,
    target: str | Path,
    *,
    size: int | None = None,
    check: Callable[[Path], None] = lambda part: None,
    retries: int = 5,
    progress: bool = True,
    timeout: float = 30.0,
    backoff: float = 1.0,
) -> Path:
    """Download `url` to `target` and return `target`, which only exists once complete and checked.

    Bytes go to `target.part`; a later call resumes there unless the server's file has changed. Failures are retried
    after `backoff` * 1, 2, 4, ... seconds, at most `retries` times without progress and 20 times as often in total.
    `timeout` is in seconds; less than `MIN_RATE` over twice that time is a failure.

    `size` is the file's size in bytes, if known; otherwise at most `MAX_BYTES` are received. `check` gets the
    complete part and raises `DataError` if it is the wrong file, which is then deleted. One process at a time may
    download to the same target.

    Raises `DataError` if the server cannot be reached, refuses (4xx), or sends something else; `OutputError` if the
    file cannot be written or the disk is too small for it.
    """
    fetch = _Fetch(url, Path(target), size, check, progress, timeout)
    check_output(fetch.target)
    failures, attempts, furthest = 0, 0, fetch.received
    while True:
        if fetch.received >= furthest + MIN_RATE * fetch.window:
            failures, furthest = 0, fetch.received
        attempts += 1
        try:
            fetch.run()
            return fetch.target
        except DataError as error:
            raise DataError(f"{url}: {error}") from error
        except urllib.error.HTTPError as error:
            if error.code not in _RETRIED_STATUS:
                raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, *_NETWORK_ERRORS) as error:
            cause = getattr(error, "reason", error)
            reason = str(cause) or type(error).__name__
            if isinstance(cause, _LASTING_ERRORS):
                failures = retries
        except OSError as error:
            raise OutputError(f"{fetch.target}: cannot be written ({error.strerror or error})") from error
        except ValueError as error:  # not a URL
            raise DataError(f"{url}: cannot be downloaded ({error})") from error
        if failures >= retries or attempts >= 20 * retries:
            raise DataError(f"{url}: cannot be downloaded ({reason})")
        wait = min(backoff * 2**failures, _MAX_WAIT)
        if progress:
            print(f"{fetch.target.name}: {reason}; retrying in {wait:g} s", file=sys.stderr)
        time.sleep(wait)
        failures += 1


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DataError(f"the server redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class _Fetch:
    """Attempts to download one target; their state is in the part file and its note."""

    url: str
    target: Path
    size: int | None
    check: Callable[[Path], None]
    progress: bool
    timeout: float

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        """Records the address and the version of the file that the part belongs to."""
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def window(self) -> float:
        """Seconds over which the rate is measured."""
        return 2 * self.timeout

    @property
    def received(self) -> int:
        """Size of the part in bytes; 0 for a link, which may lead anywhere."""
        try:
            found = self.part.lstat()
        except FileNotFoundError:
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0

    def run(self) -> None:
        """Make one attempt: resume the part, check it and rename it to the target."""
        before = self._read_note()
        if before.get("url") != self.url:  # another mirror's part, whose file may differ
            before = {}
        offset = self.received if before else 0
        request = urllib.request.Request(self.url)
        if offset:
            request.add_header("Range", f"bytes={offset}-")
            if before.get("validator"):
                request.add_header("If-Range", before["validator"])
        try:
            response = self._open(request)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is not shorter than the file: start over
                self.discard()
            raise
        with response:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            start, total = _extent(response)
            now = {"url": self.url, "validator": _validator(response), "size": total}
            if start and (start != offset or now != before):
                self.discard()
                raise ConnectionError("the file on the server has changed since the download began")
            limit = self._limit(start, total, response.headers.get_content_type())
            write_json(self.note, now)
            self._receive(response, start, total, limit)
        expected = total if self.size is None else self.size
        if expected is not None and self.received != expected:
            raise ConnectionError(f"received {self.received} of {expected} bytes")
        try:
            self.check(self.part)
        except DataError:
            self.discard()
            raise
        self.part.replace(self.target)
        self.note.unlink(missing_ok=True)

    def _open(self, request: urllib.request.Request) -> Any:
        """Wait for the response's headers; a server that sends them too slowly is given up after the window."""
        answers: queue.Queue[Any] = queue.Queue()

        def ask() -> None:
            try:
                answers.put(urllib.request.build_opener(_NoDowngrade).open(request, timeout=self.timeout))
            except Exception as error:  # raised again below
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=self.window)
        except queue.Empty:
            raise ConnectionError(f"the server did not answer in {self.window:.0f} s") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def discard(self) -> None:
        """Delete what has been received."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _limit(self, start: int, total: int | None, kind: str) -> int:
        """The most bytes that the whole file may have."""
        free = shutil.disk_usage(self.target.parent).free
        if total is None:  # the server does not say: leave half of the disk
            return self.size or min(MAX_BYTES, start + free // 2)
        if total != self.size if self.size is not None else total > MAX_BYTES:
            expected = f"at most {MAX_BYTES:,}" if self.size is None else f"{self.size:,}"
            raise DataError(f"the server offers {total:,} bytes of {kind}; expected {expected}")
        if total - start > free:
            raise OutputError(
                f"{self.target}: needs {total - start:,} bytes, but {free:,} are free; choose another dataset folder"
            )
        return total

    def _read_note(self) -> dict[str, Any]:
        """The note; empty if there is none or it is damaged."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _receive(self, response: Any, start: int, total: int | None, limit: int) -> None:
        from tqdm import tqdm

        scale: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        bar = tqdm(desc=self.target.name, initial=start, total=total, disable=not self.progress, **scale)
        whole, since, counted = start, time.monotonic(), 0
        with self._open_part(start) as file, bar:
            try:
                while chunk := response.read1(_CHUNK_BYTES):  # returns what has arrived, however little
                    whole, counted = whole + len(chunk), counted + len(chunk)
                    if whole > limit:
                        self.discard()
                        raise DataError(f"the server sends more than {limit:,} bytes")
                    file.write(chunk)
                    bar.update(len(chunk))
                    elapsed = time.monotonic() - since
                    if elapsed > self.window:
                        if counted < MIN_RATE * elapsed:
                            raise ConnectionError(f"the server sent {counted:,} bytes in {elapsed:.0f} s")
                        since, counted = time.monotonic(), 0
            finally:
                file.flush()
                os.fsync(file.fileno())

    def _open_part(self, start: int) -> Any:
        """Append to the part, or begin a new one; never write through a link."""
        flags = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        if start:
            return os.fdopen(os.open(self.part, flags | os.O_APPEND), "ab")
        self.part.unlink(missing_ok=True)
        return os.fdopen(os.open(self.part, flags | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def _extent(response: Any) -> tuple[int, int | None]:
    """Return (offset of the first byte sent, size of the whole file or None)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise ConnectionError("the server sent part of the file without a valid Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length and length.isdecimal() else None


def _validator(response: Any) -> str | None:
    """Return the version of the file: its strong ETag, else its date."""
    etag, date = response.headers.get("ETag"), response.headers.get("Last-Modified")
    name = etag if etag and not etag.startswith("W/") else date
    return None if name is None else str(name)
