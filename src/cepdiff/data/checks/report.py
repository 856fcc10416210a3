"""Facts and findings about a dataset, to read before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cepdiff.data.checks.defects import findings_of
from cepdiff.data.checks.findings import Finding, info
from cepdiff.data.rl.arrays import OPTIONAL, REQUIRED, RawArrays
from cepdiff.data.rl.buffer import Bounds, TransitionBuffer, action_bounds, equal_rows, rows_beyond
from cepdiff.data.rl.episodes import episodes_of
from cepdiff.data.rl.rewards import usable_scaling
from cepdiff.data.rl.settings import env_id_of, horizon_of, references_of, settings_of
from cepdiff.data.rl.source import load_dataset, local_files
from cepdiff.data.rl.tasks import TASKS, Task, normalized_score


def describe(raw: RawArrays, task: Task | None = None) -> dict[str, Any]:
    """Return the facts about a dataset as plain values for JSON; None if unknown.

    Actions out of bounds are counted, not refused.
    """
    low, high = action_bounds(raw)
    beyond = rows_beyond(raw.actions, low, high)
    found_low, found_high = raw.actions.min(axis=0), raw.actions.max(axis=0)
    wide = (np.minimum(low, found_low), np.maximum(high, found_high)) if len(beyond) else (low, high)
    buffer = TransitionBuffer.from_arrays(raw, *(bound.tolist() for bound in wide))
    returns, complete = (tensor.numpy() for tensor in buffer.episode_returns())
    lengths = (buffer.episode_ends - buffer.episode_starts).numpy()
    follows = buffer.episode_index[1:] == buffer.episode_index[:-1]
    same = equal_rows(raw.observations[1:], raw.observations[:-1]) & equal_rows(raw.actions[1:], raw.actions[:-1])
    spread = raw.observations.max(axis=0) - raw.observations.min(axis=0)
    statistics = {"mean": float(returns.mean()), "p90": float(np.quantile(returns, 0.9)), "max": float(returns.max())}
    references = references_of(None, task, raw.metadata)
    return {
        "source": raw.source,
        "env_id": env_id_of(None, task, raw.metadata),
        "rows": len(buffer),
        "observation_size": buffer.states.shape[1],
        "action_size": buffer.actions.shape[1],
        "episodes": buffer.num_episodes,
        "complete_episodes": int(complete.sum()),
        "terminals": int(raw.terminals.sum()),
        "timeouts": int(raw.timeouts.sum()),
        "episode_length": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
        "horizon": horizon_of(None, task, raw.metadata),
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
        "successor_jumps": int(episodes_of(raw).breaks.sum()),
        "duplicate_rows": int((same & follows.numpy()).sum()),
        "constant_observations": np.flatnonzero(spread == 0).tolist(),
        "content_hash": buffer.content_hash,
    }


def check(
    dataset: str,
    dataset_dir: str | Path | None = None,
    plot: Path | None = None,
    reward_rule: str | None = None,
    env_id: str | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> list[Finding]:
    """Return the findings about a dataset, without downloading it; with `plot`, write a figure as PNG.

    The last four arguments are as those of `OfflineDataModule`.

    Raises `CepdiffError` if it cannot be used for training.
    """
    raw = load_dataset(dataset, dataset_dir, allow_download=False)
    task = TASKS.get(dataset)
    settings = settings_of(env_id, task, raw.metadata)
    # As in `fit`: raises for actions out of bounds, which findings_of only counts, and if no stage can use the rows.
    buffer = TransitionBuffer.from_arrays(raw, action_low, action_high)
    scaling = usable_scaling(reward_rule or settings.reward_rule, buffer)
    origin = "given as --reward_rule" if reward_rule else settings.origin
    findings = findings_of(raw, task, env_id, action_low, action_high)
    found = [*findings, info("reward rule", f"{scaling}, {origin}")]
    for file in local_files(dataset, dataset_dir):
        found += file_findings(file)
    if plot is not None:
        from cepdiff.data.checks.plots import plot_data

        plot_data(raw, plot, task)
    return found


def file_findings(path: Path) -> list[Finding]:
    """Return findings that only the file shows: float64 arrays and missing checksums."""
    import h5py

    found: list[Finding] = []
    if path.suffix == ".npz":
        return found  # zip archives have checksums
    with h5py.File(path, "r") as file:
        stored = {name: file[name] for name in (*REQUIRED, *OPTIONAL) if name in file}
        wide = [name for name, item in stored.items() if item.dtype == np.float64]
        # gzip streams end with a checksum, so a flipped bit is noticed.
        unguarded = [name for name, item in stored.items() if item.compression != "gzip" and not item.fletcher32]
    if wide:
        handling = "read as float32, with a relative rounding error of at most 6e-8"
        found.append(info("float64", f"{', '.join(wide)} are stored as float64", handling))
    if unguarded:
        message = f"{', '.join(unguarded)} have no checksum"
        handling = "a flipped bit is only noticed if it makes a number infinite or an action too large"
        found.append(info("checksum", message, handling))
    return found
