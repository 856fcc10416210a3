"""Figure of a dataset: returns, episode lengths and the distribution of actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cepdiff.data.rl.arrays import FloatArray, RawArrays, blocks
from cepdiff.data.rl.episodes import episodes_of
from cepdiff.data.rl.settings import horizon_of, references_of
from cepdiff.data.rl.tasks import Task
from cepdiff.figures import legend_above, new_figure, save_figure, styled

BINS = 50


def action_histogram(actions: FloatArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(fractions (A, `BINS`) of the rows of actions (N, A), common bin edges (`BINS` + 1,))."""
    low, high = float(actions.min()), float(actions.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.zeros((actions.shape[1], BINS))
    for part in blocks(len(actions)):
        counts += [np.histogram(column, edges)[0] for column in actions[part].T]
    return counts / len(actions), edges


@styled()
def plot_data(raw: RawArrays, path: Path, task: Task | None = None) -> None:
    """Write a PNG to `path`: histograms of returns and episode lengths, and a heat map with one row per action."""
    figure = new_figure(8.5, 3.0)
    left, middle, right = figure.subplots(1, 3)
    episodes, horizon = episodes_of(raw), horizon_of(None, task, raw.metadata)
    references = dict(zip(("score 0", "score 100"), references_of(None, task, raw.metadata) or (), strict=False))
    _histogram(left, episodes.returns(raw.rewards), "return", references)
    _histogram(middle, episodes.lengths, "length in steps", {} if horizon is None else {"limit": horizon})
    shares, edges = action_histogram(raw.actions)
    dimensions = np.arange(len(shares) + 1) - 0.5
    drawn = right.pcolormesh(edges, dimensions, shares, cmap="viridis", vmin=0)
    figure.colorbar(drawn, ax=right, label="fraction of rows")
    right.set_xlabel("action")
    right.set_ylabel("dimension of the action")
    right.yaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{Path(raw.source).name}: {len(raw):,} rows, {len(episodes.lengths):,} episodes")
    save_figure(figure, path)


def _histogram(axes: Any, values: npt.NDArray[Any], label: str, lines: dict[str, float]) -> None:
    axes.hist(values, bins=BINS, color="tab:blue")
    for (name, value), style in zip(lines.items(), (":", "--"), strict=False):
        axes.axvline(value, color="black", linestyle=style, label=name)
    if lines:
        legend_above(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("episodes")
