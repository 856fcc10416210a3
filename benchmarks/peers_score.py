"""Scores of the peers' policies, in the environments and episodes in which `cepdiff fit` scores its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.files import write_json
from cepdiff.problems.offline.environment import Evaluation, EvaluationSettings, evaluation_of
from cepdiff.rollout.evaluation import evaluate
from cepdiff.rollout.scores import ScoreRow, summarize


class ScriptPolicy:
    """A deterministic policy in a TorchScript file, observations (B, S) to actions (B, A)."""

    noise_size = 0

    def __init__(self, path: Path, action_size: int) -> None:
        self.action_size = action_size
        load: Any = torch.jit.load  # has no type information
        self.script = load(str(path))

    @torch.no_grad()
    def act(self, observations: Tensor, *, guidance_scale: float | Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A); guidance scale and noise are ignored."""
        actions: Tensor = self.script(observations)
        return actions


@cache
def evaluation_on(dataset: str, folder: str, episodes: int) -> tuple[Evaluation, int]:
    """The environment of a buffer, as `cepdiff fit` chooses it, and its number of actions."""
    data = OfflineDataModule(dataset, dataset_dir=folder)
    data.prepare_data()
    data.setup()
    found = evaluation_of(data, EvaluationSettings(scales=[0.0], episodes=episodes), seed=0)
    if found.reference is None:
        raise SystemExit(f"no reference returns are known for {dataset}, so there is no normalised score to compare")
    return found, data.spec.action_size


def score(policy: Path, dataset: str, data: Path, episodes: int, seed: int) -> ScoreRow:
    """Score of one policy, over episodes with the starts of a run of `cepdiff fit` with this seed."""
    found, action_size = evaluation_on(dataset, str(data), episodes)
    assert found.environment is not None
    results = evaluate(ScriptPolicy(policy, action_size), found.environment, scales=[0.0], episodes=episodes, seed=seed)
    return summarize(results, found.reference)[0]


def score_run(folder: Path, data: Path, episodes: int) -> None:
    """Score a run's checkpoints and write `scores.json`; those scored already with as many episodes are kept."""
    training = json.loads((folder / "training.json").read_text())
    path = folder / "scores.json"
    known: Sequence[dict[str, Any]] = json.loads(path.read_text())["checkpoints"] if path.is_file() else ()
    scored = {(row["minutes"], row["steps"], row["episodes"]): row for row in known}
    rows = []
    for checkpoint in training["checkpoints"]:
        minutes, steps = checkpoint["minutes"], checkpoint["steps"]
        row = scored.get((minutes, steps, episodes))
        if row is None:
            policy = folder / f"policy_{minutes:g}.pt"
            found = score(policy, training["dataset"], data, episodes, training["seed"])
            row = {"minutes": minutes, "steps": steps, **vars(found)}
            print(f"{training['dataset']} {training['algorithm']} seed {training['seed']}: {minutes:g} min, "
                  f"{found.score:.1f}", flush=True)  # fmt: skip
        rows.append(row)
        write_json(path, {"checkpoints": rows})


def score_all(args: Any) -> None:
    """Score every run in the output folder."""
    torch.set_num_threads(1)
    for training in sorted(args.output.glob("*/*/*/training.json")):
        score_run(training.parent, args.data, args.episodes)
