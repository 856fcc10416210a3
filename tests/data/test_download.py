"""Downloads from a local server that drops connections, changes files, lies and refuses."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from local_server import Server, running

from cepdiff.data.rl import download as module
from cepdiff.data.rl.download import download
from cepdiff.errors import DataError, OutputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHANGED = np.random.default_rng(1).bytes(3_000_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server(content=CONTENT)) as state:
        yield state


def fetch(server: Server, folder: Path, **options: object) -> Path:
    settings = {"progress": False, "backoff": 0.001, "timeout": 5.0, **options}
    return download(f"{server.url}/data.hdf5", folder / "new" / "data.hdf5", **settings)  # type: ignore[arg-type]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "new").iterdir())


def test_plain(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch(server, tmp_path, progress=True)
    assert path.read_bytes() == CONTENT
    assert left_over(tmp_path) == ["data.hdf5"]
    assert "data.hdf5: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("etag", ['"one"', None])
def test_a_dropped_connection_is_resumed(server: Server, tmp_path: Path, etag: str | None) -> None:
    server.etag = etag
    server.drops = [1_000_000, 500_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-", "bytes=1500000-"]
    assert left_over(tmp_path) == ["data.hdf5"]


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000_000]
    with pytest.raises(DataError, match=r"received 1000000 of 3000000 bytes\)"):
        fetch(server, tmp_path, retries=0)
    assert left_over(tmp_path) == ["data.hdf5.part", "data.hdf5.part.json"]
    assert fetch(server, tmp_path, retries=0).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-"]


def test_progress_renews_the_retries(server: Server, tmp_path: Path) -> None:
    server.drops = [300_000] * 8
    assert fetch(server, tmp_path, retries=1).read_bytes() == CONTENT
    assert len(server.requests) == 9


def test_drops_without_progress_end(server: Server, tmp_path: Path) -> None:
    server.drops = [0] * 10
    with pytest.raises(DataError, match="received 0 of 3000000"):
        fetch(server, tmp_path, retries=3)
    assert len(server.requests) == 4


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_changed_file_starts_again(server: Server, tmp_path: Path, if_range: bool, etag: str | None) -> None:
    server.drops = [1_000_000]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    server.content, server.etag, server.if_range = CHANGED, etag, if_range
    assert fetch(server, tmp_path).read_bytes() == CHANGED
    assert len(server.requests) == (2 if if_range else 3)  # a server that honours If-Range sends everything at once
    assert left_over(tmp_path) == ["data.hdf5"]


def test_a_shorter_file_starts_again(server: Server, tmp_path: Path) -> None:
    server.drops = [1_000_000]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    server.content, server.if_range = CHANGED[:500_000], False
    assert fetch(server, tmp_path).read_bytes() == CHANGED[:500_000]


def test_a_part_without_its_note_is_not_trusted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "data.hdf5.part").write_bytes(b"x" * 1000)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    (tmp_path / "new" / "data.hdf5.part").write_bytes(b"x" * 1000)
    (tmp_path / "new" / "data.hdf5.part.json").write_text("{torn")
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [1_000_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000000-"]


def test_sizes_are_checked(server: Server, tmp_path: Path) -> None:
    server.announced = len(CONTENT) + 5
    with pytest.raises(DataError, match="received 3000000 of 3000005"):
        fetch(server, tmp_path, retries=1)
    assert not (tmp_path / "new" / "data.hdf5").exists()


def test_server_errors_are_retried_and_refusals_are_not(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(DataError, match=r"the server answered 404 Not Found"):
        fetch(server, tmp_path)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "url", ["http://no-such-host.invalid/x.hdf5", "http://127.0.0.1:9/x.hdf5", "nonsense:/x", "no url"]
)
def test_out_of_reach(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError) as caught:
        download(url, tmp_path / "x.hdf5", progress=False, retries=1, backoff=0.001)
    message = str(caught.value)
    assert message.startswith(url)
    assert "\n" not in message


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(server, tmp_path)


def test_the_note_names_the_version(server: Server, tmp_path: Path) -> None:
    server.drops = [10]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    note = json.loads((tmp_path / "new" / "data.hdf5.part.json").read_text())
    assert note == {"url": f"{server.url}/data.hdf5", "validator": '"one"', "size": len(CONTENT)}


def test_a_drip_is_given_up(server: Server, tmp_path: Path) -> None:
    """Each attempt receives something, but less than `MIN_RATE`: that is no progress."""
    server.drip = 2
    with pytest.raises(DataError, match=r"the server sent \d\d? bytes in 0 s\)"):
        fetch(server, tmp_path, retries=2, timeout=0.05)
    assert len(server.requests) == 3


def test_headers_that_never_end_are_given_up(server: Server, tmp_path: Path) -> None:
    server.header_drips = 60
    with pytest.raises(DataError, match=r"the server did not answer in 0 s\)"):
        fetch(server, tmp_path, retries=1, timeout=0.05)
    assert len(server.requests) == 2


@pytest.mark.parametrize("size", [None, 100_000])
def test_a_body_without_end_is_cut(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    server.announced = 0
    with pytest.raises(DataError, match="the server sends more than 100,000 bytes"):
        fetch(server, tmp_path, size=size)
    assert (left_over(tmp_path), len(server.requests)) == ([], 1)


def test_without_a_length_half_of_the_disk_stays_free(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 40_000))  # type: ignore[attr-defined]
    server.announced = 0
    with pytest.raises(DataError, match="the server sends more than 20,000 bytes"):
        fetch(server, tmp_path)
    server.announced = None
    with pytest.raises(OutputError, match=r"data.hdf5: needs 3,000,000 bytes, but 40,000 are free"):
        fetch(server, tmp_path)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(("size", "expected"), [(None, "at most 1,000"), (1000, "1,000"), (4_000_000, "4,000,000")])
def test_an_offer_of_another_size_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None, expected: str
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=f"the server offers 3,000,000 bytes of text/plain; expected {expected}$"):
        fetch(server, tmp_path, size=size)
    assert (left_over(tmp_path), len(server.requests)) == ([], 1)


def test_what_is_not_the_file_is_deleted(server: Server, tmp_path: Path) -> None:
    def check(part: Path) -> None:
        assert part.read_bytes() == CONTENT  # also what was resumed
        raise DataError("received a cat")

    server.drops = [1_000_000]
    with pytest.raises(DataError, match=r"data.hdf5: received a cat$"):
        fetch(server, tmp_path, check=check)
    assert (left_over(tmp_path), len(server.requests)) == ([], 2)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["data.hdf5.part", "data.hdf5.part.json"])
def test_links_are_replaced_not_followed(server: Server, tmp_path: Path, name: str, hard: bool) -> None:
    server.drops = [1_000_000]
    with pytest.raises(DataError):
        fetch(server, tmp_path, retries=0)
    victim, link = tmp_path / "victim", tmp_path / "new" / name
    link.rename(victim)
    before = victim.read_bytes()
    link.hardlink_to(victim) if hard else link.symlink_to(victim)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert victim.read_bytes() == before
    assert left_over(tmp_path) == ["data.hdf5"]
    assert not (tmp_path / "new" / "data.hdf5").is_symlink()


def test_a_dangling_link_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "data.hdf5").symlink_to(tmp_path / "elsewhere")
    assert not fetch(server, tmp_path).is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_in_the_way_is_seen_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / "new" / "data.hdf5").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"data.hdf5: is a folder"):
        fetch(server, tmp_path)
    assert server.requests == []


def test_no_redirect_to_plain_http() -> None:
    handler, request = module._NoDowngrade(), urllib.request.Request("https://a.org/x")
    arguments = (request, None, 302, "Found", {})
    assert handler.redirect_request(*arguments, "https://b.org/x").full_url == "https://b.org/x"
    with pytest.raises(DataError, match=r"redirects to http://b.org/x, which is not encrypted"):
        handler.redirect_request(*arguments, "http://b.org/x")
    plain = urllib.request.Request("http://a.org/x")
    assert handler.redirect_request(plain, None, 302, "Found", {}, "http://b.org/x").full_url == "http://b.org/x"
