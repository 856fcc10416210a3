"""Signals, a full disk and a deleted folder in the middle of a run: one line, also in the stages without a Trainer."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cepdiff.callbacks.stopping import ASKING, Interrupted, StopSignals
from cepdiff.errors import CepdiffError, LostProcessError, OutputError, RunError
from cepdiff.files import written_aside
from cepdiff.runs.fit import in_one_line
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.stage import StoppedError


@pytest.fixture(autouse=True)
def _not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder in use."""
    found = RunFolder(tmp_path / "run")
    found.path.mkdir()
    found.keep("seed: 0")
    return found


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_ends_the_command_and_its_handlers_are_gone(folder: RunFolder, number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in ASKING}
    with pytest.raises(StoppedError, match="run the same command to go on") as stopped, in_one_line(folder):
        send(number)
    by = "Ctrl-C" if number == signal.SIGINT else f"signal {number}"
    assert str(stopped.value).startswith(f"stopped by {by}; what has been finished is kept in {folder.path}; run the")
    assert stopped.value.exit_code == 128 + number
    assert {each: signal.getsignal(each) for each in ASKING} == before


def test_without_a_signal_to_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")  # as on Windows
    with StopSignals().handled():
        pass


def test_a_handler_of_a_library_in_c_does_not_hide_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    known, restored = signal.signal, []

    def foreign(number: int, handler: object) -> object:
        restored.append(handler)
        known(number, handler)  # type: ignore[arg-type]
        return None  # as for a handler that Python has not set

    monkeypatch.setattr(signal, "signal", foreign)
    with StopSignals().handled():
        pass
    assert set(restored[-len(ASKING) :]) == {signal.SIG_DFL}
    monkeypatch.undo()
    known(signal.SIGINT, signal.default_int_handler)


def test_a_signal_is_no_failure_to_be_handled(folder: RunFolder) -> None:
    """`except Exception` around a torn file would give wrong advice; nothing half written stays."""

    def write() -> None:
        with suppress(Exception), written_aside(folder.path / "figure.png") as file:
            file.write(b"half")
            send(signal.SIGTERM)

    with pytest.raises(StoppedError), in_one_line(folder):
        write()
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


def test_a_second_signal_does_not_disturb_the_first(folder: RunFolder) -> None:
    def clean_up() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            send(signal.SIGTERM)
            cleaned.append(True)

    cleaned: list[bool] = []
    with pytest.raises(StoppedError, match="signal 15"), in_one_line(folder):
        clean_up()
    assert cleaned


def test_a_signal_that_a_library_swallowed_is_found_at_the_next_stage() -> None:
    signals = StopSignals()
    with signals.handled(), suppress(KeyboardInterrupt):
        send(signal.SIGTERM)
    with pytest.raises(Interrupted):
        signals.check()


def test_a_deferred_signal_waits_for_the_end_of_its_block() -> None:
    def work() -> None:
        with signals.handled(deferred=True):
            send(signal.SIGHUP)
            reached.append("end of the block")
        reached.append("after it")

    signals, reached = StopSignals(), list[str]()
    with pytest.raises(Interrupted), signals.handled():
        work()
    assert reached == ["end of the block"]


def test_a_deferred_signal_is_answered_once_and_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with StopSignals().handled(deferred=True, answer="critic: stopping after this block"):
            send(signal.SIGINT)
            send(signal.SIGINT)
            shown.append(capfd.readouterr().err)

    shown: list[str] = []
    with pytest.raises(Interrupted):
        work()
    assert shown == ["\ncritic: stopping after this block\n"]


def test_an_ignored_signal_stays_ignored(folder: RunFolder) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with in_one_line(folder) as signals:
            send(signal.SIGHUP)
        assert signals.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_of_the_users_leaves_signals_alone(folder: RunFolder) -> None:
    def work() -> None:
        with in_one_line(folder):
            done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_torch() -> None:
    """As torch.save raises it: an error of its own while it handles the first."""
    try:
        full()
    except OSError:
        raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904


@pytest.mark.parametrize("fail", [full, full_in_torch])
def test_a_full_disk_gets_one_line(folder: RunFolder, fail: Callable[[], None]) -> None:
    expected = r"last\.ckpt: cannot be written \(No space left on device\)"
    with pytest.raises(OutputError, match=expected), in_one_line(folder), written_aside(folder.path / "last.ckpt"):
        fail()


def test_a_disk_that_is_full_for_a_library_gets_one_line(folder: RunFolder) -> None:
    with pytest.raises(OutputError, match=r"run: cannot be written \(No space.*run the same"), in_one_line(folder):
        full()


def test_other_failures_are_not_taken_for_a_full_disk(folder: RunFolder) -> None:
    with pytest.raises(FileNotFoundError), in_one_line(folder):
        Path("a file of the user's that is missing").read_bytes()
    with pytest.raises(RuntimeError, match="other"), written_aside(folder.path / "last.ckpt"):
        raise RuntimeError("other")


@pytest.mark.parametrize("kind", [str, os.fsencode])
def test_a_deleted_folder_gets_one_line(folder: RunFolder, kind: Callable[[Path], str | bytes]) -> None:
    shutil.rmtree(folder.path)
    with pytest.raises(RunError, match="was deleted while this command ran"), in_one_line(folder):
        os.stat(kind(folder.path / "logs" / "events"))  # noqa: PTH116  (TensorBoard's names are bytes)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (
            RuntimeError("[/x/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer"),
            LostProcessError,
        ),
        (RuntimeError("CUDA out of memory"), RuntimeError),
        (CepdiffError("a mistake"), CepdiffError),
    ],
)
def test_a_lost_process_is_told_from_a_failure(failure: Exception, expected: type[Exception]) -> None:
    processes = Processes(TrainerSettings(accelerator="cpu"))
    with pytest.raises(expected) as caught, processes.together():
        raise failure
    assert type(caught.value) is expected
