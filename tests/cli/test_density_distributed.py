"""Two processes on a density match one: contrasts and averages run over the global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cepdiff.cli import main

TINY = """
data: {class_path: cepdiff.data.densities.datamodule.EnergyDataModule, dataset: rings, num_points: 1000, block_size: 5}
behavior:
  net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}
  average_targets: true
  learning_rate: 3.0e-3
  batch_size: 16
guidance: {batch_size: 16, times_per_step: 2, net: {width: 16, depth: 1}}
solver: {num_steps: 2}
stages: {behavior: {max_steps: 20}, guidance: {max_steps: 20}}
evaluation: {num_samples: 65, floor_repeats: 2}
trainer: {progress_bar: false}
"""
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of a few steps on the rings."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "tiny.yaml"


def on_two_processes(config: Path, run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with Lightning's own launcher: one thread per process, no variables of another launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(run_dir)]
    return subprocess.run(
        [*command, *TWO, *arguments],
        env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_equal_one(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["fit", "--config", str(config), "--run_dir", str(one), "--trainer.accelerator", "cpu"]) == 0
    done = on_two_processes(config, two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guidance scale") == 1  # only one process prints the table
    for stage in ("behavior", "guidance"):
        a, b = (torch.load(run / stage / "final.ckpt", weights_only=True)["state_dict"] for run in (one, two))
        # CEP ignores a constant: the last bias's gradient is rounding noise, which Adam scales up to its learning rate.
        for name in a.keys() - {"net.output.1.bias"}:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=f"{stage}: {name}")
    ours, theirs = (np.load(run / "samples.npz") for run in (one, two))
    assert list(ours) == list(theirs)
    for name in ours:  # 65 guided samples from two processes, in the same order as from one
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3, err_msg=name)
    first, second = (json.loads((run / "results.json").read_text())["rows"] for run in (one, two))
    for row, other in zip(first, second, strict=True):
        assert (row["scale"], row["metric"]) == (other["scale"], other["metric"])
        assert (row["value"], row["floor"]) == pytest.approx((other["value"], other["floor"]), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--guidance.batch_size", "15"], "guidance.batch_size 15 cannot be shared equally by 2 processes"),
        (["--data.dataset", "BAD"], "energies are NaN or infinite in row 1"),
    ],
)
def test_bad_input_ends_both_with_one_line(config: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    bad = tmp_path / "bad.npz"
    np.savez(bad, points=np.arange(6.0).reshape(3, 2), energies=np.array([0.0, np.nan, 1.0]))
    done = on_two_processes(config, tmp_path / "run", *(str(bad) if word == "BAD" else word for word in arguments))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("cepdiff:")]
    assert len(lines) == 1, done.stderr
    assert expected in lines[0]
    assert "Traceback" not in done.stderr
