"""The benchmark of worker processes, in its short form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rollouts


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    output = tmp_path / "rollouts.json"
    arguments = ["--tasks", "hopper", "--workers", "2", "--episodes", "4", "--steps", "3", "--rounds", "1"]
    rollouts.main([*arguments, "--output", str(output)])
    torch.set_num_threads(before)
    rows = json.loads(output.read_text())["rows"]
    assert [row["policy"] for row in rows] == ["recipe, 15 steps", "one step"]
    for row in rows:
        (alone,), (shared,) = row["seconds"]["0"], row["seconds"]["2"]
        assert row["times faster"]["2"] == pytest.approx(alone / shared)
    assert "hopper, one step" in capsys.readouterr().out


def test_different_results_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "rollout", lambda *_, num_workers, **__: [num_workers])
    with pytest.raises(AssertionError, match="2 workers give other results"):
        rollouts.measured(None, None, [0, 2], 4, 1)  # type: ignore[arg-type]
