"""The benchmark of the choice of threads, in its short form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import threads


def test_the_choice_is_never_much_slower_than_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: 2)
    monkeypatch.setattr("cepdiff.runs.threads.TRIAL", 0.02)
    first = next(threads.parts(quick=True))
    monkeypatch.setattr(threads, "parts", lambda quick: iter([first]))
    before = torch.get_num_threads()
    output = tmp_path / "threads.json"
    code = threads.main(["--quick", "--rounds", "1", "--output", str(output)])
    torch.set_num_threads(before)
    rows = json.loads(output.read_text())["rows"]
    assert [row["busy"] for row in rows] == [0, 2]
    assert all(row["chosen"] in (1, 2) and row["default"] > 0 for row in rows)
    assert code == any(row["ratio"] > threads.PROMISE for row in rows)
    assert "promised is at most 1.1" in capsys.readouterr().out


def test_the_load_ends_with_the_benchmark() -> None:
    with threads.busy(1) as (process,):
        assert process.poll() is None
    assert process.returncode == -9
