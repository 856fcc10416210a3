"""What a dataset holds, in numbers, and what a user should know before training on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cepdiff.data.arrays import RawArrays
from cepdiff.data.buffer import TransitionBuffer, action_bounds, equal_rows, rows_beyond
from cepdiff.data.source import load_dataset
from cepdiff.data.tasks import TASKS, Task, horizon_for_env, normalized_score, references_for_env


@dataclass(frozen=True)
class Finding:
    """One line of a check; `level` is "info" or "warning"."""

    level: str
    name: str
    message: str


def describe(raw: RawArrays, task: Task | None = None) -> dict[str, Any]:
    """The facts of a dataset as plain values for JSON; None where unknown.

    Reference returns are the metadata's, else the task's, else those of the environment. Actions beyond the
    bounds are counted, not refused.
    """
    low, high = action_bounds(raw)
    beyond = rows_beyond(raw.actions, low, high)
    found_low, found_high = raw.actions.min(axis=0), raw.actions.max(axis=0)
    wide = (np.minimum(low, found_low), np.maximum(high, found_high)) if len(beyond) else (low, high)
    buffer = TransitionBuffer.from_arrays(raw, *(bound.tolist() for bound in wide))
    returns, complete = (tensor.numpy() for tensor in buffer.episode_returns())
    lengths = (buffer.episode_ends - buffer.episode_starts).numpy()
    follows = buffer.episode_index[1:] == buffer.episode_index[:-1]
    jumps = follows & (buffer.next_index[:-1] >= len(buffer))
    same = equal_rows(raw.observations[1:], raw.observations[:-1]) & equal_rows(raw.actions[1:], raw.actions[:-1])
    spread = raw.observations.max(axis=0) - raw.observations.min(axis=0)
    statistics = {
        "mean": float(returns.mean()),
        "p90": float(np.quantile(returns, 0.9)),
        "max": float(returns.max()),
    }
    references = _references(raw, task)
    env_id = raw.metadata.get("env_id", None if task is None else task.env_id)
    return {
        "source": raw.source,
        "env_id": env_id,
        "rows": len(buffer),
        "observation_size": buffer.states.shape[1],
        "action_size": buffer.actions.shape[1],
        "episodes": buffer.num_episodes,
        "complete_episodes": int(complete.sum()),
        "terminals": int(raw.terminals.sum()),
        "timeouts": int(raw.timeouts.sum()),
        "episode_length": {
            "min": int(lengths.min()),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "horizon": raw.metadata.get("horizon", task.horizon if task else horizon_for_env(str(env_id))),
        "returns": statistics,
        "normalized_returns": references
        and {name: normalized_score(value, *references) for name, value in statistics.items()},
        "rewards": {"min": float(raw.rewards.min()), "max": float(raw.rewards.max())},
        "actions": {"min": float(found_low.min()), "max": float(found_high.max())},
        "action_low": low.tolist(),
        "action_high": high.tolist(),
        "rows_beyond_bounds": len(beyond),
        "has_next_observations": raw.next_observations is not None,
        "unknown_successors": len(buffer) - len(buffer.transitions),
        "successor_jumps": int(jumps.sum()),
        "duplicate_rows": int((same & follows.numpy()).sum()),
        "constant_observations": np.flatnonzero(spread == 0).tolist(),
        "content_hash": buffer.content_hash,
    }


def check(dataset: str, dataset_dir: str | Path | None = None) -> list[Finding]:
    """What is worth knowing about a dataset which can be trained on; nothing is downloaded.

    Raises `CepdiffError` where it cannot be trained on.
    """
    raw = load_dataset(dataset, dataset_dir, allow_download=False)
    TransitionBuffer.from_arrays(raw)  # refuses actions beyond the bounds, which `describe` only counts
    facts = describe(raw, TASKS.get(dataset))
    rows, episodes = facts["rows"], facts["episodes"]
    findings = [
        Finding("info", "rows", f"{rows:,} rows in {episodes:,} episodes, {facts['complete_episodes']:,} complete"),
        Finding("info", "ends", f"{facts['terminals']:,} terminals, {facts['timeouts']:,} timeouts"),
        Finding("info", "successors", f"{facts['unknown_successors']:,} rows have no known successor"),
    ]

    def warn(name: str, condition: bool, message: str) -> None:
        if condition:
            findings.append(Finding("warning", name, message))

    longest, horizon = facts["episode_length"]["max"], facts["horizon"]
    warn("ends", facts["complete_episodes"] == 0, "no terminal and no timeout: all rows are one cut episode")
    warn(
        "horizon",
        horizon is not None and longest > horizon,
        f"an episode has {longest:,} steps, but its limit is {horizon}: timeouts are missing",
    )
    warn(
        "returns",
        episodes > 1 and facts["rewards"]["min"] == facts["rewards"]["max"],
        "all rewards are equal: there is nothing to learn from them",
    )
    warn(
        "successors",
        facts["successor_jumps"] > 0,
        f"{facts['successor_jumps']:,} rows have another next observation than the following row, yet no end is set",
    )
    warn(
        "duplicates",
        facts["duplicate_rows"] > 0,
        f"{facts['duplicate_rows']:,} rows repeat the observation and action of the row before",
    )
    constant = facts["constant_observations"]
    warn("observations", len(constant) > 0, f"dimensions {', '.join(map(str, constant))} never change")
    warn("environment", facts["env_id"] is None, "no environment is named: give it with --data.env_id")
    return findings


def _references(raw: RawArrays, task: Task | None) -> tuple[float, float] | None:
    low, high = raw.metadata.get("reference_min"), raw.metadata.get("reference_max")
    if low is not None and high is not None:
        return float(low), float(high)
    if task is not None:
        return task.reference_min, task.reference_max
    return references_for_env(str(raw.metadata.get("env_id")))
