"""Run folders with a few numbers in them, and what `cepdiff report` writes about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from cepdiff.cli import main
from cepdiff.problems.density.samples import COLUMNS as DISTANCES
from cepdiff.problems.density.samples import EXACT, GUIDED, write_samples
from cepdiff.problems.offline.judge import COLUMNS as SCORES
from cepdiff.runs.results import Results, Row

NUM_POINTS = 50


def write_density(
    folder: Path,
    dataset: str,
    method: str,
    multiple: float,
    *,
    beta: float = 3.0,
    seed: int = 0,
    scale: float = 1.0,
    seconds: Mapping[str, float] | None = None,
    made_from: Mapping[str, str] | None = None,
    num_points: int = NUM_POINTS,
) -> Path:
    """A finished run; sliced W2 is `multiple` floors of 0.5, energy distance twice as many floors of 0.25."""
    rows = [
        Row(scale, "sliced_wasserstein", 0.5 * multiple, floor=0.5, floor_error=0.1),
        Row(scale, "energy_distance", 0.5 * multiple, floor=0.25, floor_error=0.1),
    ]
    Results(
        problem="cepdiff.problems.density.points.PointDensity",
        dataset=dataset,
        seed=seed,
        title=f"{dataset}, {method}, beta {beta:g}, seed {seed}",
        rows=rows,
        columns=DISTANCES,
        method=method,
        inverse_temperature=beta,
        seconds=seconds or {"behavior": 10.0, "guidance": 5.0},
        made_from=made_from or {},
    ).write(folder / "results.json")
    points = torch.linspace(-1.0, 1.0, 2 * num_points).reshape(-1, 2)
    samples = {"data": points, EXACT.format(scale): points, GUIDED.format(scale): -points}
    write_samples(folder / "samples.npz", samples | {"energies": points[:, 0]})
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def write_policy(
    folder: Path,
    task: str,
    scores: Mapping[float, float],
    choice: float | None,
    *,
    seed: int = 0,
    normalized: bool = True,
    episodes: int = 10,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A finished run of offline RL; returns are ten times the scores. `config` is its configuration."""
    rows = []
    for scale, score in scores.items():
        if episodes:
            rows += [Row(scale, "episodes", episodes), Row(scale, "mean_return", 10 * score, error=1.0)]
        if episodes and normalized:
            rows.append(Row(scale, "normalized_score", score, error=0.1))
        if choice is not None:
            rows += [Row(scale, "offline_value", 1.0), Row(scale, "inside_support", 0.9)]
    Results(
        problem="cepdiff.problems.offline.problem.OfflineRL",
        dataset=task,
        seed=seed,
        title=f"{task}, seed {seed}",
        rows=rows,
        columns=SCORES,
        method="CEP",
        inverse_temperature=3.0,
        about={"offline_choice": choice},
        seconds={"behavior": 10.0, "support": 1.0, "critic": 5.0, "guidance": 5.0},
    ).write(folder / "results.json")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "run_dir": str(folder), **config}))
    return folder


def report(output: Path, *folders: Path) -> int:
    """The command in this process."""
    return main(["report", *map(str, folders), "--output", str(output)])


def read(output: Path) -> dict[str, Any]:
    """The report as plain Python objects."""
    content: dict[str, Any] = json.loads((output / "report.json").read_text())
    return content


def section(output: Path, title: str) -> dict[str, Any]:
    """The section with this title, as plain Python objects."""
    (found,) = [section for section in read(output)["sections"] if section["title"] == title]
    return dict(found)


def cells(line: str) -> list[str]:
    """The cells of a Markdown line."""
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def markdown_table(page: str, title: str) -> dict[str, list[str]]:
    """Lines of the table below `title`, header included, by their first cell."""
    rows = page.split(f"**{title}**\n\n")[1].split("\n\n")[0].splitlines()
    return {cells(row)[0]: cells(row)[1:] for row in rows if not row.startswith("| ---")}
