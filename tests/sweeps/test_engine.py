"""The process of a run, by a stand-in for Python that only sleeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from cepdiff.sweeps import engine
from cepdiff.sweeps.engine import KILLED, Job, carry_out, end_groups, launch

PYTHON = sys.executable  # the real one
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that notes its id and that of a child, and never ends."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\nsleep 1000 &\necho "$! $$ $OMP_NUM_THREADS $SLURM_PROCID $MINE"\nwait\n')
    script.chmod(0o755)
    monkeypatch.setattr(engine.sys, "executable", str(script))
    monkeypatch.setenv("SLURM_PROCID", "3")
    return Job("a", ["fit"], str(tmp_path / "log"), 2, str(tmp_path), {"MINE": "yes"})


def noted(job: Job) -> list[str]:
    """The words that the job printed."""
    until = time.monotonic() + 30
    while not (words := Path(job.log).read_text().split() if Path(job.log).exists() else []):
        assert time.monotonic() < until
        time.sleep(0.01)
    return words


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # no Linux, or it has just ended
        return sys.platform != "linux"
    return state != "Z"  # ended, and nobody asked how


def assert_gone(pid: int) -> None:
    until = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def time_limit() -> Iterator[None]:
    """SIGUSR2 raises an exception, as submitit does at the time limit."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise RuntimeError("timed out")

    before = signal.signal(signal.SIGUSR2, handle)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_a_time_limit_stops_the_run_and_counts_as_killed(job: Job, time_limit: None) -> None:
    def limit() -> None:
        noted(job)
        time.sleep(0.5)  # the run may print before the call that starts it returns
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=limit, daemon=True).start()
    assert carry_out(job) == KILLED
    for pid in noted(job)[:2]:
        assert_gone(int(pid))


def test_a_run_has_its_threads_and_not_the_ranks_of_the_job_around_it(job: Job) -> None:
    process = launch(job)
    child, parent, *variables = noted(job)
    assert int(parent) == process.pid
    assert variables == ["2", "yes"]  # no SLURM_PROCID
    end_groups([process])
    assert process.returncode == -signal.SIGTERM
    assert_gone(int(child))


def test_a_run_that_does_not_listen_is_killed(job: Job) -> None:
    script = Path(sys.executable)
    script.write_text(script.read_text().replace("#!/bin/sh\n", "#!/bin/sh\ntrap '' TERM\n"))
    process = launch(job)
    child = int(noted(job)[0])
    end_groups([process], seconds=0.1)
    assert process.returncode == -signal.SIGKILL
    assert_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="a request to Linux")
def test_a_run_ends_with_the_process_that_started_it(job: Job) -> None:
    code = (
        "import signal, sys; from cepdiff.sweeps.engine import Job, launch; sys.executable = sys.argv[1]; "
        "launch(Job('a', [], sys.argv[2], 1, '.')); signal.pause()"
    )
    starter = subprocess.Popen([PYTHON, "-c", code, sys.executable, job.log])
    pid = int(noted(job)[1])
    starter.kill()
    starter.wait()
    assert_gone(pid)
    os.kill(int(noted(job)[0]), signal.SIGKILL)  # its own child lives on: DDP's watch their parent
