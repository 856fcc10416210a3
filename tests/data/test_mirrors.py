"""D4RL's files from mirrors: local servers that are down, slow, or have something else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from local_server import Server, running

from cepdiff.cli import main
from cepdiff.data.rl import mirrors, published
from cepdiff.data.rl.mirrors import addresses, fetch, minari_counterpart
from cepdiff.data.rl.task import Task
from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError, DataError, OutputError

DOWN = "http://127.0.0.1:9"
QUICK = {"backoff": 0.001, "timeout": 0.2}
CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
FILE = "hopper_medium-v2.hdf5"

Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda **state: stack.enter_context(running(Server(**state)))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "COPIES", ())
    monkeypatch.delenv("D4RL_DATASET_URL", raising=False)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    """hopper-medium-v2, whose own server is down and whose file is `CONTENT`."""
    url = f"{DOWN}/gym_mujoco_v2/{FILE}"
    facts = published.Published(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(published, "_table", lambda: {url: facts})
    return replace(TASKS["hopper-medium-v2"], url=url)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_order_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "COPIES", ("https://copy.org/d4rl",))
    monkeypatch.setenv("D4RL_DATASET_URL", "file:///mnt/d4rl/, https://b.org https://a.org/x")
    task = TASKS["hopper-medium-v2"]
    assert addresses(task, ["https://a.org/x/"]) == [
        f"https://a.org/x/{FILE}",
        f"file:///mnt/d4rl/{FILE}",
        f"https://b.org/{FILE}",
        f"https://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/{FILE}",
        f"https://copy.org/d4rl/{FILE}",
    ]


@pytest.mark.parametrize("mirror", ["/mnt/d4rl", "ftp://a.org/d4rl", "https:d4rl", "a.org"])
def test_what_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    with pytest.raises(ConfigError, match=f"the mirror '{mirror}' is not the address of a folder; expected one like"):
        addresses(TASKS["hopper-medium-v2"], [mirror])
    monkeypatch.setenv("D4RL_DATASET_URL", mirror)
    with pytest.raises(ConfigError, match="not the address"):
        addresses(TASKS["hopper-medium-v2"])


def test_down_then_wrong_then_good(
    serve: Serve, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong, short, good = serve(content=OTHER), serve(content=CONTENT[:-1]), serve(content=CONTENT)
    monkeypatch.setenv("D4RL_DATASET_URL", f"{short.url} {good.url}")
    path = fetch(task, tmp_path / FILE, [DOWN, wrong.url], **QUICK)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == [FILE]
    assert [len(server.requests) for server in (wrong, short, good)] == [1, 1, 1]
    lines = [line for line in capsys.readouterr().err.splitlines() if "; trying " in line]
    assert lines[0].startswith(f"{DOWN}/{FILE}: cannot be downloaded (")
    assert lines[0].endswith(f"; trying {wrong.url}/{FILE}")
    assert "received a file of 300,000 bytes with SHA-256" in lines[1]
    assert "the server offers 299,999 bytes of text/plain; expected 300,000; trying" in lines[2]
    assert len(lines) == 3


def test_a_slow_mirror_is_left(serve: Serve, task: Task, tmp_path: Path) -> None:
    slow, good = serve(content=CONTENT, drip=2), serve(content=CONTENT)
    assert fetch(task, tmp_path / FILE, [slow.url, good.url], backoff=0.001, timeout=0.1).read_bytes() == CONTENT
    assert (len(slow.requests), len(good.requests)) == (3, 1)


def test_the_next_mirror_does_not_continue_the_part_of_the_last(serve: Serve, task: Task, tmp_path: Path) -> None:
    """Both send no version and the same size: the bytes of the first must not begin the file of the second."""
    broken = serve(content=OTHER, etag=None, drops=[100_000, 0, 0, 0])
    good = serve(content=CONTENT, etag=None)
    assert fetch(task, tmp_path / FILE, [broken.url, good.url], **QUICK).read_bytes() == CONTENT
    assert broken.requests == [None, *["bytes=100000-"] * 3]
    assert good.requests == [None]


def test_a_torn_download_goes_on_at_its_own_mirror(serve: Serve, task: Task, tmp_path: Path) -> None:
    server = serve(content=CONTENT, drops=[100_000, 0, 0, 0])
    with pytest.raises(DataError, match="received 100000 of 300000 bytes"):
        fetch(task, tmp_path / FILE, [server.url], **QUICK)
    assert names(tmp_path) == [f"{FILE}.part", f"{FILE}.part.json"]
    server.drops = []
    assert fetch(task, tmp_path / FILE, [server.url], **QUICK).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=100000-"


def test_without_a_network_the_message_names_all_ways(task: Task, tmp_path: Path) -> None:
    path = tmp_path / FILE
    refused = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    with pytest.raises(DataError) as caught:
        fetch(task, path, **QUICK)
    assert str(caught.value) == (
        f"{FILE}: not at any address (127.0.0.1:9: cannot be downloaded ({refused})). "
        f"Copy {task.url} to {path} by hand, name another mirror in $D4RL_DATASET_URL, record your own with "
        "`cepdiff collect`, or take minari:mujoco/hopper/medium-v0, which has other data"
    )
    assert names(tmp_path) == []
    kitchen = replace(TASKS["kitchen-mixed-v0"], url=task.url)
    with pytest.raises(DataError, match=r"by hand, name another mirror .*, record your own with `cepdiff collect`$"):
        fetch(kitchen, path, **QUICK)


CHILD = """
import json, sys
from dataclasses import replace
from pathlib import Path
from cepdiff.data.rl import mirrors
from cepdiff.data.rl.tasks import TASKS

url, path = sys.argv[1:]
mirrors.COPIES = ()
print(mirrors.fetch(replace(TASKS["maze2d-umaze-v1"], url=url), Path(path)).stat().st_size)
"""


def test_two_processes_download_a_file_once(serve: Serve, tmp_path: Path, make_file: Callable[..., Path]) -> None:
    content = make_file(observations=np.zeros((10, 4)), actions=np.zeros((10, 2))).read_bytes()
    gate = threading.Event()
    server = serve(content=content, gate=gate)
    url, path = f"{server.url}/x.hdf5", tmp_path / "new" / "x.hdf5"
    first = threading.Thread(target=fetch, args=(replace(TASKS["maze2d-umaze-v1"], url=url), path))
    first.start()
    try:
        while not server.requests:
            time.sleep(0.01)
        command = [sys.executable, "-c", CHILD, url, str(path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        assert child.stderr.readline() == "x.hdf5: another process is downloading it; waiting for it\n"
        assert names(path.parent) == [".x.hdf5.lock", "x.hdf5.part", "x.hdf5.part.json"]
    finally:
        gate.set()
        first.join()
    assert child.communicate(timeout=30)[0] == f"{len(content)}\n"
    assert child.returncode == 0
    assert len(server.requests) == 1
    assert path.read_bytes() == content
    assert names(path.parent) == ["x.hdf5"]


def test_a_lock_that_cannot_be_made(task: Task, tmp_path: Path) -> None:
    (tmp_path / f".{FILE}.lock").mkdir()
    with pytest.raises(OutputError, match=rf"\.{FILE}\.lock: cannot be locked \("):
        fetch(task, tmp_path / FILE, **QUICK)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hopper-medium-v2", "mujoco/hopper/medium-v0"),
        ("ant-expert-v0", "mujoco/ant/expert-v0"),
        ("hopper-medium-replay-v2", None),
        ("walker2d-medium-expert-v2", None),
        ("antmaze-umaze-v2", "D4RL/antmaze/umaze-v1"),
        ("antmaze-large-diverse-v0", "D4RL/antmaze/large-diverse-v1"),
        ("antmaze-eval-umaze-v0", None),
        ("maze2d-open-dense-v0", "D4RL/pointmaze/open-dense-v2"),
        ("maze2d-eval-large-v1", None),
        ("relocate-cloned-v1", "D4RL/relocate/cloned-v2"),
        ("kitchen-partial-v0", None),
        ("reacher-replay", None),
    ],
)
def test_counterparts_in_minari(name: str, expected: str | None) -> None:
    assert minari_counterpart(TASKS[name]) == expected


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make_file: Callable[..., Path]
) -> None:
    shared, home = tmp_path / "shared", tmp_path / "home"
    shared.mkdir()
    content = make_file(observations=np.zeros((10, 4)), actions=np.zeros((10, 2)))
    content.rename(shared / "maze2d-umaze-sparse-v1.hdf5")
    words = ["--mirror", (tmp_path / "none").as_uri(), "--mirror", shared.as_uri(), "--dataset_dir", str(home)]
    assert main(["data", "download", "maze2d-umaze-v1", *words]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{home}/maze2d-umaze-sparse-v1.hdf5\n"
    assert "none/maze2d-umaze-sparse-v1.hdf5: cannot be downloaded" in captured.err
    assert main(["data", "download", "maze2d-open-v0", "--mirror", "shared", "--dataset_dir", str(home)]) == 2
    assert "the mirror 'shared' is not the address of a folder" in capsys.readouterr().err
    assert main(["data", "info", "maze2d-umaze-v1", "--json", "--dataset_dir", str(home)]) == 0
    assert json.loads(capsys.readouterr().out)["task"]["minari_counterpart"] == "D4RL/pointmaze/umaze-v2"
