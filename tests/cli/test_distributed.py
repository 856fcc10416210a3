"""Two processes match one: with Lightning's own launcher, and as two nodes under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cepdiff.cli import main

STAGES = ("behavior", "critic", "guidance")


def environment() -> dict[str, str]:
    """One thread per process, no variables of another launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    """A free port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def assert_same_run(first: Path, second: Path) -> None:
    """Weights agree up to float32 summation order; support and number of episodes are the same."""
    for stage in STAGES:
        a, b = (torch.load(run / stage / "final.ckpt", weights_only=True)["state_dict"] for run in (first, second))
        # CEP ignores a constant: the last bias's gradient is rounding noise, which Adam scales up to its learning rate.
        for name in a.keys() - {"net.net.rest.1.bias"}:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5, msg=f"{stage}: {name}")
    a, b = (np.load(run / "support" / "actions.npy") for run in (first, second))
    np.testing.assert_allclose(a, b, atol=1e-3)
    a, b = (json.loads((run / "results.json").read_text())["rows"] for run in (first, second))
    for row, other in zip(a, b, strict=True):
        assert (row["scale"], row["metric"]) == (other["scale"], other["metric"])
        if row["metric"] == "episodes":
            assert row["value"] == other["value"]
        if row["metric"] == "mean_return":
            assert row["value"] == pytest.approx(other["value"], rel=0.2)
    assert {"episodes", "mean_return"} <= {row["metric"] for row in a}


@pytest.mark.slow
def test_two_processes_equal_one(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--evaluation.every_n_steps", "10", "--evaluation.episodes", "3", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", str(config), "--run_dir", str(one), *options]) == 0
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(two), *options]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best") == 1  # only one process prints the table
    assert_same_run(one, two)
    # With every stage finished, the support, the results and their table still work on two processes.
    (two / "results.json").unlink()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished earlier, skipped") == 4
    assert (two / "results.json").exists()


@pytest.mark.slow
def test_two_nodes_under_torchrun_equal_one_process(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["fit", "--config", str(config), "--run_dir", str(one)]) == 0
    port = free_port()
    nodes = []
    for rank in (0, 1):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}"]
        launcher += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
        command = ["-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(two), "--trainer.num_nodes", "2"]
        command += ["--trainer.devices", "1", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
        nodes.append(
            subprocess.Popen(
                launcher + command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert_same_run(one, two)


@pytest.mark.slow
def test_bad_input_on_two_processes_ends_all_of_them(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(tmp_path / "run")]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        [*command, "--behavior.batch_size", "15"], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "batch_size 15 cannot be shared equally by 2 processes" in done.stderr


@pytest.mark.slow
def test_a_signal_to_two_processes_stops_both_and_they_go_on(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--stage", "behavior", "--stages.behavior.max_steps", "800", "--stages.behavior.checkpoint_every", "20"]
    assert main(["fit", "--config", str(config), "--run_dir", str(one), *options]) == 0
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(two), *options]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    for _ in range(1200):
        if (two / "behavior" / "last.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # to all of them, as a scheduler does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert not (two / "behavior" / "final.ckpt").exists()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(run / "behavior" / "final.ckpt", weights_only=True)["state_dict"] for run in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)
