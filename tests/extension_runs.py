"""The examples of docs/extending.md and of the tutorial of a critic in a working folder, with a small recipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.runs.results import Results
from docs_pages import EXTENDING, OWN_CRITIC, titled

RECIPE = """
data: {dataset: reacher-replay, normalize_observations: true, block_size: 5}
behavior: {batch_size: 8, net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}}
critic: {batch_size: 8, net: {hidden: [8]}}
guidance: {batch_size: 8, net: {hidden: [8]}}
solver: {num_steps: 3}
stages:
  behavior: {max_steps: 10}
  support: {max_rows: 100, num_actions: 2}
  critic: {max_steps: 10}
  guidance: {max_steps: 10}
evaluation: {episodes: 2, scales: [0, 1, 2]}
trainer: {progress_bar: false}
"""
SKIPPED = "finished earlier, skipped"
TRUST = ("--trust_sources", ".")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with every example of the page and a small recipe; forgets the examples' modules afterwards."""
    for title, text in titled(EXTENDING, OWN_CRITIC).items():
        (tmp_path / title).write_text(text)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def arguments(extension: str, run: str, *more: str) -> list[str]:
    return ["fit", "--config", "recipe.yaml", "--config", f"{extension}.yaml", "--run_dir", run, *more]


def fit(extension: str, run: str, *more: str) -> int:
    """The command in this process."""
    return main(arguments(extension, run, *more))


def forget(name: str) -> None:
    """Forget an edited file's module, so that it is imported again as by a new command."""
    sys.modules.pop(name, None)


def weights(run: str, stage: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(Path(run) / stage / "final.ckpt", weights_only=True)["state_dict"]
    return found


def returns(path: str) -> dict[float, float]:
    return Results.read(Path(path)).values("mean_return")
