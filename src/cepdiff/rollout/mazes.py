"""Mazes drawn from above: where a buffer has been, and the paths of episodes at several guidance scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from cepdiff.envs.layouts import Layout
from cepdiff.figures import new_panels, save_figure, shared_legend, styled
from cepdiff.rollout.envs import Env, EnvSpec, make_env
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.types import Policy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Path2D = NDArray[np.float64]  # (L, 2)


def maze_of(env_spec: EnvSpec) -> Layout | None:
    """Make the environment and return its maze, or None if it has none."""
    with closing(make_env(env_spec)) as env:
        return layout_of(env)


def layout_of(env: Env) -> Layout | None:
    """Return the maze of an environment, or None if it has none."""
    layout = getattr(env.unwrapped, "layout", None)
    return layout if isinstance(layout, Layout) else None


def episode_paths(
    policy: Policy,
    env_spec: EnvSpec,
    *,
    scales: Sequence[float],
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[dict[float, list[Path2D]], list[NDArray[np.float64]]]:
    """Positions of the first `episodes` episodes of `rollout` at each scale, and the goal of each episode.

    Each path (L, 2) holds the positions before each of the L steps of its episode.
    """
    plan = [Episode(index, scale) for scale in scales for index in range(episodes)]
    paths: list[list[NDArray[np.float64]]] = [[] for _ in plan]
    goals: list[NDArray[np.float64]] = [np.zeros(2)] * len(plan)

    def note(envs: SyncVectorEnv) -> None:
        for slot, env in enumerate(envs.envs):  # as many environments as episodes: slot i runs episode i
            inner: Any = env.unwrapped
            paths[slot].append(inner.data.qpos[:2].copy())
            goals[slot] = inner.goal

    results = rollout(policy, env_spec, plan, seed=seed, max_envs=len(plan), device=device, on_step=note)
    found: dict[float, list[Path2D]] = {scale: [] for scale in scales}
    for episode, path, result in zip(plan, paths, results, strict=True):
        found[episode.guidance_scale].append(np.array(path[: result.length]))
    return found, goals[:episodes]


@styled()
def draw_paths(
    layout: Layout, paths: Mapping[float, Sequence[Path2D]], goals: Sequence[NDArray[np.float64]], path: Path
) -> None:
    """Draw a panel per guidance scale; each episode keeps its colour."""
    figure, panels = new_panels(len(paths), 4, 3.5, 3.7)
    for axes, (scale, episodes) in zip(panels, paths.items(), strict=True):
        draw_maze(axes, layout)
        axes.set_title(f"guidance scale {scale:g}")
        for index, (way, goal) in enumerate(zip(episodes, goals, strict=True)):
            colour = f"C{index % 10}"
            axes.plot(way[:, 0], way[:, 1], color=colour, linewidth=0.8, alpha=0.8)
            axes.plot(*way[0], "o", color=colour, markersize=4)
            axes.plot(*goal, "x", color=colour, markersize=7)
    for label, style in (("path of an episode", "-"), ("start", "o"), ("goal", "x")):
        panels[0].plot([], [], style, color="0.2", label=label)
    shared_legend(figure, panels)
    save_figure(figure, path)


@styled()
def draw_visits(layout: Layout, positions: NDArray[np.floating], path: Path, title: str = "") -> None:
    """Draw how often `positions` (N, 2) visit each part of a maze, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    figure, (axes,) = new_panels(1, 1, 4.8, 3.9)
    low, high = layout.bounds()
    bins = [max(int((high[i] - low[i]) / layout.cell_size * 16), 1) for i in (0, 1)]
    counts, x, y = np.histogram2d(positions[:, 0], positions[:, 1], bins, range=list(zip(low, high, strict=True)))
    mesh = axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), norm=LogNorm(), cmap="viridis")
    draw_maze(axes, layout)
    axes.set_title(title)
    figure.colorbar(mesh, label="visits of a square", shrink=0.8)
    save_figure(figure, path)


def draw_maze(axes: Axes, layout: Layout) -> None:
    """Draw the walls in observed coordinates, with equal axes."""
    from matplotlib.patches import Rectangle

    half = layout.cell_size / 2
    for x, y in layout.wall_centers():
        axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, color="0.6", linewidth=0, antialiased=False))
    low, high = layout.bounds()
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set(aspect="equal", xlabel="x", ylabel="y")
