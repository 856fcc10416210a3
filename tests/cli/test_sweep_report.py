"""Three tasks by three seeds: swept, reported, and every statistic computed again by hand from the runs' results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, write_buffer

from cepdiff.cli import main

TASKS, SEEDS = ("easy", "fair", "hard"), (0, 1, 2)


@pytest.mark.slow
def test_a_sweep_of_three_tasks_and_three_seeds(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    for index, task in enumerate(TASKS):
        reference = {
            "metadata/reference_min": np.float64(0.0),
            "metadata/reference_max": np.float64(20.0 * (index + 1)),
        }
        write_buffer(tmp_path / f"{task}.hdf5", **reference)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("DATASET", str(tmp_path / "easy.hdf5")))
    files = ", ".join(str(tmp_path / f"{task}.hdf5") for task in TASKS)
    (tmp_path / "sweep.yaml").write_text(
        f"configs: [tiny.yaml]\nfolder: {tmp_path}/sweep\naxes: {{data.dataset: [{files}], seed: [0..2]}}\n"
        "local: {slots: 2}\n"
    )
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--evaluation.episodes", "1"]) == 0
    report = tmp_path / "report"
    assert main(["report", str(tmp_path / "sweep"), "--scale", "1", "--output", str(report)]) == 0

    scores = np.empty((3, 3))
    for path in (tmp_path / "sweep" / "runs").glob("*/results.json"):
        found = json.loads(path.read_text())
        (score,) = [r["value"] for r in found["rows"] if r["metric"] == "normalized_score" and r["scale"] == 1.0]
        scores[TASKS.index(found["dataset"]), found["seed"]] = score
    assert (scores.std(1) > 0).all()  # the seeds differ
    facts = json.loads((report / "report.json").read_text())
    (section,) = [part for part in facts["sections"] if "statistics" in part]
    rows = {row["task"]: row for row in section["scores"]}
    for task, values in zip(TASKS, scores, strict=True):
        assert rows[task]["seeds"] == 3
        assert rows[task]["mean"] == pytest.approx(values.mean())
        assert rows[task]["standard_error"] == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    (statistics,) = section["statistics"].values()
    ordered = np.sort(scores, axis=None)
    by_hand = {
        "interquartile mean": ordered[2:7].mean(),
        "median": np.median(scores.mean(1)),
        "mean": scores.mean(),
        "optimality gap": np.maximum(100.0 - scores, 0.0).mean(),
    }
    assert {name: found["value"] for name, found in statistics.items()} == pytest.approx(by_hand)
    for found in statistics.values():
        assert found["low"] <= found["value"] <= found["high"]
