"""A finished stage whose `max_steps` is raised: trained on to the weights of a training of that length, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from density_runs import fit, said, same_weights, write_density

LONGER = ("--stages.guidance.max_steps", 33)
LONGER_PRIOR = ("--stages.behavior.max_steps", 33)
COSINE = ("--guidance.lr_schedule", "cosine")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_density(tmp_path_factory.mktemp("density"))


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run of 20 steps a stage, not to be changed."""
    assert fit(config, config.parent / "finished", "--guidance.warmup_steps", 25) == 0
    return config.parent / "finished"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def long(config: Path) -> Path:
    """A run with a guidance stage of 33 steps from the start."""
    assert fit(config, config.parent / "long", "--guidance.warmup_steps", 25, *LONGER) == 0
    return config.parent / "long"


def longer(config: Path, run_dir: Path, *arguments: object) -> int:
    return fit(config, run_dir, "--guidance.warmup_steps", 25, *arguments)


def test_the_last_trained_stage_goes_on_to_the_weights_of_a_long_training(
    config: Path, run: Path, long: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In other blocks (20, 25, ... against 0, 5, ... to 33), through a warm-up that ends at step 25."""
    short = (run / "results.json").read_bytes()
    capsys.readouterr()
    assert longer(config, run, *LONGER) == 0
    assert "guidance: going on from step 20 of 33" in capsys.readouterr().err
    assert same_weights(run, long, "guidance")
    last, expected = (torch.load(each / "guidance/last.ckpt", weights_only=True) for each in (run, long))
    assert last["optimizer_states"][0]["param_groups"] == expected["optimizer_states"][0]["param_groups"]
    assert (run / "results_earlier.json").read_bytes() == short
    assert [r["value"] for r in _rows(run)] == [r["value"] for r in _rows(long)]
    assert longer(config, run, *LONGER) == 0
    assert set(said(capsys).values()) >= {"finished earlier, skipped"}


def _rows(run: Path) -> list[dict[str, float]]:
    import json

    return list(json.loads((run / "results.json").read_text())["rows"])
