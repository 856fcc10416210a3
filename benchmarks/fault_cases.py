"""Run each fault in its own process, with limits, and judge it by what a user sees."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

import cepdiff
from cepdiff.cli import main

LONGEST_LINE = 1200  # characters of a clear line
MEMORY = 6 << 30  # bytes of address space that a case may use on top
FILE_SIZE = 1 << 30  # bytes
CANARY = "executed"  # a file of this name in a case's folder: foreign code ran


@dataclass(frozen=True)
class Verdict:
    """The outcome of a case: "line", "valid", "traceback", "silent" or "hang"; `detail` is for the report."""

    outcome: str
    detail: str = ""
    executions: int = 0
    leftovers: int = 0

    @property
    def bad(self) -> bool:
        """True for an outcome that must never happen."""
        return self.outcome in ("traceback", "silent", "hang") or bool(self.executions or self.leftovers)


@dataclass(frozen=True)
class Case:
    """A fault: `run` makes it in an empty folder and judges how the commands react."""

    name: str
    run: Callable[[Path], Verdict]


@dataclass(frozen=True)
class Part:
    """A part of the campaign.

    Args:
        name: row of the table.
        count: number of cases in the full campaign.
        quick: number of cases in the short form.
        seconds: limit of CPU time (four times as much wall clock); a case that takes longer counts as "hang".
        prepare: writes the shared files to a folder, in its own process.
        cases: (that folder, seed, number) -> cases; a seed always gives the same cases.
    """

    name: str
    count: int
    quick: int
    seconds: int
    prepare: Callable[[Path], None]
    cases: Callable[[Path, int, int], list[Case]]


@dataclass(frozen=True)
class Called:
    """A finished command: its exit code (None after an exception, `error`) and what it printed."""

    code: int | None
    out: str
    err: str
    error: str = ""

    @property
    def kind(self) -> str:
        """ "valid" for exit code 0, "line" for a clear refusal, else "traceback"."""
        if self.error or "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code == 0:
            return "valid"
        if self.code == 2 or (self.code == 1 and re.search("NaN|infinite|diverged", self.line)):
            return "line" if self.line else "traceback"
        return "traceback"  # an unforeseen error prints one line too, but counts as a traceback

    @property
    def line(self) -> str:
        """The error line; "" unless it is the last line, the only one that begins with `cepdiff:`, and short."""
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]
        found = [line for line in lines if line.startswith("cepdiff:")]
        return found[0] if len(found) == 1 and found[0] == lines[-1] and len(found[0]) <= LONGEST_LINE else ""

    @property
    def detail(self) -> str:
        """One line for the report."""
        last = self.err.replace("\r", "\n").splitlines()[-3:]
        return (
            self.error or self.line or f"exit code {self.code}, {len(self.err)} characters: {' | '.join(last)[-300:]}"
        )


def call(*arguments: object) -> Called:
    """Run `cepdiff` with these arguments in this process, which was forked for one case."""
    sys.stdout.flush()
    sys.stderr.flush()
    starts = [os.fstat(stream).st_size for stream in (1, 2)]
    code, error = None, ""
    words = [str(argument) for argument in arguments]
    sys.argv = [str(Path(cepdiff.__file__).with_name("__main__.py")), *words]  # Lightning's launcher repeats it
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException as found:  # a user would see anything else as a traceback
        error = described(found)
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = (read_from(stream, start) for stream, start in zip((1, 2), starts, strict=True))
    if "--json" in words and code == 2:  # the line is in an object
        err += f"cepdiff: {json.loads(out)['error']}"
    return Called(code, out, err, error)


def read_from(stream: int, start: int) -> str:
    """Read an open file from `start` on."""
    size = os.fstat(stream).st_size
    return os.pread(stream, size - start, start).decode(errors="replace")


def described(error: BaseException) -> str:
    """Type, message and last frame of the package, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}cepdiff{os.sep}" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = " ".join(str(error).split())
    return f"{type(error).__name__} at {place}: {text[:300]}"


def random_of(part: str, seed: int, index: int) -> np.random.Generator:
    """The random generator of one case."""
    return np.random.default_rng([seed, zlib.crc32(part.encode()), index])


def chosen(part: str, pool: Sequence[Case], seed: int, count: int) -> list[Case]:
    """Draw `count` cases of a pool in random order; all of them if there are fewer."""
    order = random_of(part, seed, 0).permutation(len(pool))
    return [pool[index] for index in order[:count]]


def judge(cases: Sequence[Case], folder: Path, seconds: int, workers: int) -> Iterator[tuple[int, Verdict]]:
    """Run cases, `workers` at a time; yields (index, verdict) as they end."""
    waiting = list(enumerate(cases))[::-1]
    running: dict[int, tuple[int, Path, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            index, case = waiting.pop()
            place = folder / str(index)
            place.mkdir(parents=True)
            running[start(partial(case.run, place), place, seconds)] = index, place, time.monotonic()
        for pid, (index, place, since) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = time.monotonic() - since > 4 * seconds
            if not ended and late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if ended or late:
                del running[pid]
                yield index, verdict_of(place, None if late and not ended else status, seconds)
                remove(place)
        time.sleep(0.002)


def start(run: Callable[[], Verdict], place: Path, seconds: int) -> int:
    """Fork a process that writes `run`'s verdict beside its folder; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(place.with_suffix(f".{name}"), os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(place)
        try:
            verdict = run()
        except BaseException as error:
            verdict = Verdict("traceback", f"in the campaign itself: {described(error)}")
        place.with_suffix(".json").write_text(json.dumps(asdict(verdict)))
    finally:
        os._exit(0)


def verdict_of(place: Path, status: int | None, seconds: int) -> Verdict:
    """The verdict that a process wrote, else one by its exit status; `status` is None if it took too long."""
    written = place.with_suffix(".json")
    if written.exists():
        verdict = Verdict(**json.loads(written.read_text()))
    elif status is None or os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        verdict = Verdict("hang", f"not finished after {seconds} s of CPU time or {4 * seconds} s")
    else:
        verdict = Verdict("traceback", f"the process died of signal {os.WTERMSIG(status)}")
    ran = len(list(place.rglob(CANARY)))
    return Verdict(verdict.outcome, verdict.detail, verdict.executions + ran, verdict.leftovers)


def remove(place: Path) -> None:
    """Delete a case's folder, whatever its permissions are, and the files beside it."""
    for folder in [place, *(path for path in place.rglob("*") if path.is_dir() and not path.is_symlink())]:
        folder.chmod(0o700)
    shutil.rmtree(place, ignore_errors=True)
    for suffix in (".out", ".err", ".json"):
        place.with_suffix(suffix).unlink(missing_ok=True)
