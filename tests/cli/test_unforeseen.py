"""The command line's last resort: an error that nobody foresaw is one line, with a report file."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cepdiff.cli import fit, main

Failing = Callable[[Exception], tuple[int, str]]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Failing:
    """`failing(error)` runs a command that raises it, in an empty folder; returns the exit code and stderr."""

    def failing(error: Exception) -> tuple[int, str]:
        def run(args: object) -> int:
            raise error

        monkeypatch.delenv("CEPDIFF_TRACEBACK", raising=False)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(fit, "run", run)
        return main(["fit"]), capsys.readouterr().err

    return failing


def test_an_unforeseen_error_is_one_line_with_a_report(failing: Failing, tmp_path: Path) -> None:
    code, shown = failing(KeyError("a\nb"))
    (report,) = tmp_path.glob("cepdiff-error-*.txt")
    assert code == 1
    assert shown == f"cepdiff: KeyError: 'a\\nb'; details are in {report}\n"
    text = report.read_text()
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text
    assert "torch " in text


def test_a_path_that_cannot_be_used_is_bad_input(failing: Failing, tmp_path: Path) -> None:
    code, shown = failing(OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300))
    assert (code, shown) == (2, f"cepdiff: {'a' * 200}: File name too long; choose another path\n")
    assert not list(tmp_path.glob("cepdiff-error-*"))


def test_the_report_is_never_in_the_home_folder(failing: Failing, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    _, shown = failing(ValueError("x"))
    assert str(tmp_path / "temporary" / "cepdiff-error-") in shown
    assert not list(tmp_path.glob("cepdiff-error-*"))


def test_other_ranks_are_quiet(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert failing(ValueError("x")) == (1, "")


def allocate() -> Exception:
    """torch's own error."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


def overflow() -> Exception:
    """torch's own error for a size beyond 64 bits of bytes."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, 2**10)
    return caught.value


@pytest.mark.parametrize("error", [MemoryError, allocate, overflow, torch.OutOfMemoryError])
def test_memory_that_runs_out_gets_advice_and_no_report(
    failing: Failing, tmp_path: Path, error: Callable[..., Exception]
) -> None:
    found = error("CUDA out of memory") if isinstance(error, type) else error()
    code, shown = failing(found)
    assert code == 1
    assert shown.startswith("cepdiff: not enough memory (")
    assert "choose a smaller" in shown
    assert not list(tmp_path.glob("cepdiff-error-*"))


def test_a_full_disk_is_named(failing: Failing, tmp_path: Path) -> None:
    code, shown = failing(OSError(errno.ENOSPC, "No space left on device", "some/file"))
    assert (code, shown.count("\n")) == (1, 1)
    assert "No space left on device: some/file; make room" in shown
    assert not list(tmp_path.glob("cepdiff-error-*"))


def test_a_reader_that_has_left_is_no_error(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        stream.write("never read")
        assert failing(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (141, "")


def test_output_to_a_full_device_is_reported(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("CEPDIFF_TRACEBACK")
    with Path("/dev/full").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["data", "list"]) == 1
    shown = capsys.readouterr().err
    assert shown == "cepdiff: No space left on device: the output; make room and run the same command again\n"


def test_tracebacks_can_be_asked_for(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monkeypatch, "delenv", lambda *args, **options: None)
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())
