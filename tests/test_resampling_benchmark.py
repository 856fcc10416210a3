"""The benchmark of resampling, with few samples: its lines, its file, and the order of the methods."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import resampling

NUMBER = r"[-+]?\d+\.\d+"


def test_resampling_mends_what_the_multiplied_gradient_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["guided", "resampled, guided candidates"]
    few = ["--samples", "200", "--scales", "10", "--counts", "16", "--num_solver_steps", "8"]
    resampling.main([*few, "--dims", "2", "--methods", *methods, "--output", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "resampling.json").read_text())
    assert [record["method"] for record in found["records"]] == methods
    assert found["settings"]["samples"] == 200
    guided, resampled = found["records"]
    assert resampled["multiple"] < guided["multiple"]
    assert abs(resampled["energy"]) < abs(guided["energy"])
    assert guided["effective_sample_size"] is None
    assert 1.0 < resampled["effective_sample_size"] < 16.0
    assert re.fullmatch(rf"  2-D  s   10  exact    guided +K  16 +{NUMBER} x floor  energy +{NUMBER}", lines[0])
    assert lines[1].endswith(f"ESS {resampled['effective_sample_size']:5.1f}")
