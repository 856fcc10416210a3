"""Pictures of samples: grids of images, and their hues next to those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.images.energies import from_bytes
from cepdiff.energy.sample_metrics import image_hues
from cepdiff.figures import new_figure, save_figure
from cepdiff.policy.images import tiled
from cepdiff.problems.density.judges import EnergyJudge

SHOWN_HEADS = 20
BINS = 36


def shown_heads(count: int) -> list[int]:
    """The heads that figures show: all, or some evenly spaced."""
    shown = min(count, SHOWN_HEADS)
    return [index * count // shown for index in range(shown)]


def plot_grids(
    grids: Sequence[tuple[str, Tensor, Sequence[str]]], path: Path, title: str, inches: float = 0.35
) -> None:
    """Grids side by side: each a title, images (H, M, C, H, W) uint8 of `inches`, and names of their rows or none."""
    widths = [images.shape[1] for _, images, _ in grids]
    height = max(len(images) for _, images, _ in grids)
    figure = new_figure(inches * sum(widths) + 0.3 * len(grids) + 0.7, inches * height + 0.9)
    panels = figure.subplots(1, len(grids), squeeze=False, width_ratios=widths)[0]
    for axes, (name, images, rows) in zip(panels, grids, strict=True):
        axes.imshow(tiled(images).permute(1, 2, 0).numpy(), interpolation="nearest")
        size = images.shape[-2] + 1
        axes.set_yticks([size * row + size / 2 for row in range(len(rows))], rows, fontsize=7)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def plot_hues(
    samples: Mapping[float, Tensor],
    heads: Sequence[int],
    judge: EnergyJudge,
    names: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Histograms of the hues of samples (H, M, C, H, W) uint8, of the data and of the reweighted data.

    One row per guidance scale, one column per head of `heads`.
    """
    assert judge.hues is not None
    figure = new_figure(2.0 * len(heads) + 1.0, 1.3 * len(samples) + 1.0)
    panels = figure.subplots(len(samples), len(heads), squeeze=False, sharex=True)
    for row, (scale, images) in zip(panels, samples.items(), strict=True):
        for axes, head in zip(row, heads, strict=True):
            ones = torch.ones_like(judge.hues)
            for hues, weights, style in (
                (image_hues(from_bytes(images[head])), None, {"color": "tab:blue", "fill": True, "label": "samples"}),
                (judge.hues, judge.weights(head, scale), {"color": "black", "label": "reweighted data"}),
                (judge.hues, ones, {"color": "tab:gray", "linestyle": ":", "label": "data"}),
            ):
                axes.stairs(histogram(hues, weights), [index / BINS for index in range(BINS + 1)], **style)
            axes.set_yticks([])
        row[0].set_ylabel(f"scale {scale:g}", fontsize=8)
    for axes, head in zip(panels[0], heads, strict=True):
        axes.set_title(f"head {names[head]}", fontsize=9)
    panels[-1][0].set_xlabel("hue", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def histogram(hues: Tensor, weights: Tensor | None) -> Any:
    """Density in each of the bins of [0, 1)."""
    bins = (hues * BINS).long().clamp(max=BINS - 1)
    masses = torch.ones_like(hues) if weights is None else weights
    counts = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, masses.double())
    return (counts * BINS / counts.sum()).numpy()
