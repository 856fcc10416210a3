"""Download a file: resumable, with retries, size checks and an atomic rename."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepdiff.errors import DataError

_CHUNK_BYTES = 1 << 20
_MAX_WAIT = 60.0
_NETWORK_ERRORS = (ConnectionError, TimeoutError, ssl.SSLError)
# Temporary failures of the server.
_RETRIED_STATUS = (408, 416, 425, 429, *range(500, 600))


def download(
    url: str,
    target: str | Path,
    *,
    retries: int = 5,
    progress: bool = True,
    timeout: float = 30.0,
    backoff: float = 1.0,
) -> Path:
    """Download `url` to `target` and return `target`, which only exists once complete.

    Bytes go to `target.part`; a later call resumes there unless the server's file has changed. Failures are retried
    after `backoff` * 1, 2, 4, ... seconds, at most `retries` times without a new byte. `timeout` is in seconds.

    Raises `DataError` if the server cannot be reached, refuses (4xx), or sends a size other than announced.
    """
    fetch = _Fetch(url, Path(target), progress, timeout)
    by_hand = f"download it by hand to {fetch.target}"
    failures, furthest = 0, -1
    while True:
        if fetch.received > furthest >= 0:
            failures = 0
        furthest = max(furthest, fetch.received)
        try:
            fetch.target.parent.mkdir(parents=True, exist_ok=True)
            fetch.run()
            return fetch.target
        except urllib.error.HTTPError as error:
            if error.code not in _RETRIED_STATUS:
                raise DataError(f"{url}: the server answered {error.code} {error.reason}; {by_hand}") from error
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, *_NETWORK_ERRORS) as error:
            cause = getattr(error, "reason", error)
            reason = str(cause) or type(error).__name__
            if isinstance(cause, socket.gaierror):  # no network or no such server: retrying does not help
                failures = retries
        except OSError as error:
            raise DataError(f"{fetch.target}: cannot be written ({error.strerror or error})") from error
        except ValueError as error:  # not a URL
            raise DataError(f"{url}: cannot be downloaded ({error}); {by_hand}") from error
        if failures >= retries:
            raise DataError(f"{url}: cannot be downloaded ({reason}); {by_hand}")
        wait = min(backoff * 2**failures, _MAX_WAIT)
        if progress:
            print(f"{fetch.target.name}: {reason}; retrying in {wait:g} s", file=sys.stderr)
        time.sleep(wait)
        failures += 1


@dataclass
class _Fetch:
    """Attempts to download one target; their state is in the part file and its note."""

    url: str
    target: Path
    progress: bool
    timeout: float

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        """Records which version of the server's file the part belongs to."""
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Make one attempt: resume the part and rename it to the target."""
        before = self._read_note()
        offset = self.received if before else 0
        request = urllib.request.Request(self.url)
        if offset:
            request.add_header("Range", f"bytes={offset}-")
            if before.get("validator"):
                request.add_header("If-Range", before["validator"])
        try:
            response = urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is not shorter than the file: start over
                self.discard()
            raise
        with response:
            start, total = _extent(response)
            now = {"validator": _validator(response), "size": total}
            if start and (start != offset or now != before):
                self.discard()
                raise ConnectionError("the file on the server has changed since the download began")
            self.note.write_text(json.dumps(now))
            self._receive(response, start, total)
        size = self.received
        if total is not None and size != total:
            if size > total:
                self.discard()
            raise ConnectionError(f"received {size} of {total} bytes")
        self.part.replace(self.target)
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete what has been received."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _read_note(self) -> dict[str, Any]:
        """The note; empty if there is none or it is damaged."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _receive(self, response: Any, start: int, total: int | None) -> None:
        from tqdm import tqdm

        scale: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        bar = tqdm(desc=self.target.name, initial=start, total=total, disable=not self.progress, **scale)
        with self.part.open("ab" if start else "wb") as file, bar:
            try:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
            finally:
                file.flush()
                os.fsync(file.fileno())


def _extent(response: Any) -> tuple[int, int | None]:
    """Return (offset of the first byte sent, size of the whole file or None)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise ConnectionError("the server sent part of the file without a valid Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, None if length is None else int(length)


def _validator(response: Any) -> str | None:
    """Return the version of the file: its strong ETag, else its date."""
    etag, date = response.headers.get("ETag"), response.headers.get("Last-Modified")
    name = etag if etag and not etag.startswith("W/") else date
    return None if name is None else str(name)
