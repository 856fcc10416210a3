"""The judgement of offline RL: rollouts and offline evidence of each guidance scale, as results and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cepdiff.bars import progress
from cepdiff.errors import RunError
from cepdiff.policy.diagnostics import Diagnostics
from cepdiff.policy.engines import run_by
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.problems.offline.environment import Evaluation
from cepdiff.problems.offline.report import plot_scores
from cepdiff.problems.offline.scores import leading_scale, score_metric
from cepdiff.rollout.envs import time_limit
from cepdiff.rollout.evaluation import evaluate
from cepdiff.rollout.mazes import draw_paths, episode_paths, maze_of
from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import ScoreRow
from cepdiff.runs.logs import Logs, values_table
from cepdiff.runs.processes import Processes
from cepdiff.runs.results import Results, Row
from cepdiff.runs.threads import settle_threads

LONG = 1000  # steps of an episode without a time limit, about
DRAWN_EPISODES = 8  # per scale, in a picture of a maze
COLUMNS = {
    "episodes": ("episodes", "d"),
    "mean_return": ("mean return", ".2f"),
    "normalized_score": ("normalized score", ".1f"),
    "success_rate": ("success rate, %", ".1f"),
    "one_step_return": ("one-step return", ".2f"),
    "one_step_score": ("one-step score", ".1f"),
    "one_step_error": ("one-step error", ".3f"),
    "offline_value": ("offline value", ".3f"),
    "inside_support": ("inside support", ".0%"),
    "effective_sample_size": ("effective sample size", ".1f"),
}


def score_rows(rows: Sequence[ScoreRow]) -> list[Row]:
    """Scores as results."""
    found = []
    for row in rows:
        scale, count = row.guidance_scale, row.episodes
        found.append(Row(scale, "episodes", count))
        scores = {
            "mean_return": (row.mean_return, row.standard_error),
            "normalized_score": (row.normalized_score, row.normalized_standard_error),
            "success_rate": (row.success_rate, row.success_standard_error),
        }
        found += [
            Row(scale, metric, value, error=error, count=count)
            for metric, (value, error) in scores.items()
            if value is not None
        ]
    return found


def offline_rows(found: Diagnostics) -> list[Row]:
    """Offline evidence as results: value, share inside the support, and effective sample size of weighted candidates.

    The value is the one that scales are ranked by.
    """
    shown = {
        "offline_value": "penalized_value",
        "inside_support": "inside_support",
        "effective_sample_size": "effective_sample_size",
    }
    return [
        Row(e.guidance_scale, metric, value)
        for e in found.scales
        for metric, name in shown.items()
        if (value := getattr(e, name)) is not None
    ]


def marks(rows: Sequence[ScoreRow], scales: Sequence[float], choice: float | None) -> dict[float, str]:
    """Remarks: the behavior policy (scale 0), the best scale if one is the best, and the offline choice."""
    best = leading_scale(score_rows(rows))
    named = {"behavior policy": 0.0, "best": best, "offline choice": choice}
    found = {scale: ", ".join(name for name, marked in named.items() if marked == scale) for scale in scales}
    return {scale: text for scale, text in found.items() if text}


def choose_rollout_threads(policy: GuidedPolicy, evaluation: Evaluation, processes: Processes) -> None:
    """Choose the number of threads by actions for as many observations as there are environments."""
    assert evaluation.environment is not None
    total = len(evaluation.scales) * evaluation.episodes
    rows = max(1, min(total, evaluation.max_envs))
    observations = torch.zeros(rows, policy.spec.observation_size, device=processes.device)
    scales = torch.full((rows,), max(evaluation.scales, default=0.0), device=processes.device)
    noise = torch.zeros(rows, policy.noise_size, device=processes.device)
    steps = (time_limit(evaluation.environment) or LONG) * -(-total // evaluation.max_envs)
    settle_threads(processes, "evaluation", lambda: policy.act(observations, guidance_scale=scales, noise=noise), steps)


def no_best(rows: Sequence[ScoreRow]) -> list[str]:
    """A note if several scales were rolled out and none is the best."""
    none = len(rows) > 1 and leading_scale(score_rows(rows)) is None
    return ["no scale is the best by more than the noise"] if none else []


def rollouts(policy: GuidedPolicy, evaluation: Evaluation, processes: Processes) -> list[EpisodeResult]:
    """Episodes of a policy on all processes, with a progress bar."""
    if evaluation.environment is None:
        raise RunError("there is no environment to evaluate in")
    total = len(evaluation.scales) * evaluation.episodes
    with progress(-(-total // processes.world), "evaluation", "episode", enabled=processes.shows_progress) as bar:
        return evaluate(
            run_by(policy, evaluation.engine),
            evaluation.environment,
            scales=evaluation.scales,
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            rank=processes.rank,
            world=processes.world,
            max_envs=evaluation.max_envs,
            num_workers=evaluation.num_workers,
            device=processes.device,
            on_progress=lambda done, _: bar.update(int(done) - bar.n),
        )


def draw(results: Results, policy: GuidedPolicy, evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draw figures of the scores and, in a maze, of some paths; return their files."""
    figures = [folder / "scores.png"]
    plot_scores([results], figures[0])
    assert evaluation.environment is not None
    layout = maze_of(evaluation.environment)
    if layout is not None:
        paths, goals = episode_paths(
            policy, evaluation.environment, scales=evaluation.scales, seed=evaluation.seed,
            episodes=min(evaluation.episodes, DRAWN_EPISODES), device=policy.device,
        )  # fmt: skip
        figures.append(folder / "paths.png")
        draw_paths(layout, paths, goals, figures[1])
    return figures


def log_scores(logs: Logs, results: Results, figures: Sequence[Path], step: int) -> None:
    """Log the results and figures; runs are compared by the score of each scale."""
    values = results.scalars()
    scores = {name: value for name, value in values.items() if name.split("/")[1] == score_metric(results)}
    texts = {"results": results.table().markdown(), "metrics": values_table(values)}
    logs.result("evaluation", scores, figures, step, texts=texts, others=values)
