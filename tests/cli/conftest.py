"""A configuration of a few steps on a small buffer, shared by all tests of the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.cli import main

TINY = """
data: {dataset: DATASET, env_id: InvertedPendulum-v5, action_low: -3, action_high: 3, block_size: 5}
behavior: {net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}, batch_size: 16}
critic: {net: {hidden: [8]}, batch_size: 16}
guidance: {net: {hidden: [8]}, batch_size: 16}
solver: {num_steps: 2}
stages:
  behavior: {max_steps: 20, checkpoint_every: 10}
  support: {num_actions: 3, chunk_size: 32}
  critic: {max_steps: 20}
  guidance: {max_steps: 20}
evaluation: {scales: [0, 1], episodes: 2}
trainer: {progress_bar: false}
"""


def write_buffer(path: Path, **changes: np.ndarray) -> Path:
    """100 rows with InvertedPendulum's sizes, in ten episodes of unequal rewards."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(100, 4)).astype(np.float32),
        "actions": rng.uniform(-3, 3, size=(100, 1)).astype(np.float32),
        "rewards": rng.normal(size=100).astype(np.float32),
        "terminals": np.arange(100) % 10 == 9,
        "timeouts": np.zeros(100, dtype=bool),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


@pytest.fixture(autouse=True)
def show_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is raised, so that a test which meets one shows where."""
    monkeypatch.setenv("CEPDIFF_TRACEBACK", "1")


@pytest.fixture
def make_buffer() -> Callable[..., Path]:
    """`write_buffer`."""
    return write_buffer


def write_config(folder: Path) -> Path:
    """A configuration of a few steps on a small buffer."""
    buffer = write_buffer(folder / "buffer.hdf5")
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("DATASET", str(buffer)))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """`write_config`."""
    return write_config(tmp_path)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration and its finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    config, run = write_config(folder), folder / "run"
    assert main(["fit", "--config", str(config), "--run_dir", str(run)]) == 0
    return config, run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A private copy of the module's finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
