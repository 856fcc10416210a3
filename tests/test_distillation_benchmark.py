"""`benchmarks/distillation.py` with few steps: its tables, its file, and the numbers in them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

SMALL = """
data: {dataset: reacher-replay, normalize_observations: true, block_size: 5}
behavior: {batch_size: 8, net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}}
critic: {batch_size: 8, net: {hidden: [8]}}
guidance: {batch_size: 8, net: {hidden: [8]}}
distillation: {batch_size: 8, net: {width: 8, depth: 1}}
solver: {num_steps: 3}
stages:
  behavior: {max_steps: 5}
  support: {max_rows: 100, num_actions: 2}
  critic: {max_steps: 5}
  guidance: {max_steps: 5}
evaluation: {episodes: 1, scales: [0, 2]}
trainer: {accelerator: cpu, progress_bar: false}
"""


def test_error_scores_and_times_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    few = ("--steps", 5, "--actions", 50, "--states", 20, "--rounds", 2, "--output", tmp_path)
    arguments = ("--config", tmp_path / "small.yaml", "--run_dir", tmp_path / "run", *few)
    importlib.import_module("distillation").main([str(argument) for argument in arguments])
    record = json.loads((tmp_path / "distillation.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["scale"] for row in record["errors"]] == [0.0, 2.0]
    assert all(row["error"] > 0 < row["spread"] for row in record["errors"])
    for row in record["scores"]:
        for name, metric in (("sampler", "normalized_score"), ("one_step", "one_step_score")):
            same = {"scale": row["scale"], "metric": metric}
            (found,) = [found for found in results["rows"] if found.items() >= same.items()]
            assert row[name] == [found["value"], found["error"]]
    assert [(row["rows"], row["engine"]) for row in record["latency"]] == [(1, "torch"), (10, "torch")]
    assert all(row["ratio"] == pytest.approx(row["sampler"] / row["one_step"]) for row in record["latency"])
    shown = capsys.readouterr().out
    for title in ("error / spread", "normalized score", "one step [ms]", "the distillation stage took"):
        assert title in shown
