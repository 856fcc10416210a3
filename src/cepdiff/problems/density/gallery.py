"""Pictures of samples: grids of images, and their hues next to those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepdiff.data.images.energies import from_bytes
from cepdiff.energy.sample_metrics import image_hues
from cepdiff.figures import PAGE, new_figure, new_panels, save_figure, shared_legend, styled
from cepdiff.policy.images import tiled
from cepdiff.problems.density.judges import EnergyJudge

SHOWN_HEADS = 20
SHOWN_HUES = 6  # heads side by side
BINS = 36
ABREAST = 3  # grids side by side


def shown_heads(count: int, most: int = SHOWN_HEADS) -> list[int]:
    """The heads that figures show: all, or `most` evenly spaced."""
    shown = min(count, most)
    return [index * count // shown for index in range(shown)]


@styled()
def plot_grids(
    grids: Sequence[tuple[str, Tensor, Sequence[str]]], path: Path, title: str, inches: float = 0.35
) -> None:
    """Up to three grids side by side: each a title, images (H, M, C, H, W) uint8, and names of their rows or none.

    An image has `inches`, or less if the page is full. Rows are named at the left, and where their names change.
    """
    columns = min(len(grids), ABREAST)
    width = max(images.shape[1] for _, images, _ in grids)
    height = max(len(images) for _, images, _ in grids)
    inches = min(inches, (PAGE - 0.7 - 0.3 * columns) / (columns * width))
    figure, panels = new_panels(len(grids), ABREAST, inches * width + 0.3, inches * height + 0.35)
    for index, (axes, (name, images, rows)) in enumerate(zip(panels, grids, strict=True)):
        axes.imshow(tiled(images).permute(1, 2, 0).numpy(), interpolation="nearest")
        size = images.shape[-2] + 1
        named = rows if index % columns == 0 or rows != grids[index - 1][2] else [""] * len(rows)
        axes.set_yticks([size * row + size / 2 for row in range(len(rows))], named)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.set_title(name)
    figure.suptitle(title)
    save_figure(figure, path)


@styled()
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
    figure = new_figure(2.0 * len(heads) + 1.0, 1.2 * len(samples) + 1.0)
    panels = figure.subplots(len(samples), len(heads), squeeze=False, sharex=True)
    for row, (scale, images) in zip(panels, samples.items(), strict=True):
        for axes, head in zip(row, heads, strict=True):
            ones = torch.ones_like(judge.hues)
            for label, hues, weights, style in (
                ("guided samples", image_hues(from_bytes(images[head])), None, {"color": "tab:blue", "fill": True}),
                ("reweighted data", judge.hues, judge.weights(head, scale), {"color": "black", "linewidth": 1.0}),
                ("data", judge.hues, ones, {"color": "tab:gray", "linestyle": ":"}),
            ):
                edges = [index / BINS for index in range(BINS + 1)]
                axes.stairs(histogram(hues, weights), edges, label=label, **style)
            axes.set_yticks([])
        row[0].set_ylabel(f"scale {scale:g}")
    for axes, head in zip(panels[0], heads, strict=True):
        axes.set_title(f"hue {names[head]}")
    for axes in panels[-1]:
        axes.set_xticks([0.0, 0.5, 1.0], ["0", "½", "1"])
        axes.set_xlabel("hue (turns)")
    figure.supylabel("share of images", fontsize=10)
    shared_legend(figure, [panels[0][0]])
    figure.suptitle(title)
    save_figure(figure, path)


def histogram(hues: Tensor, weights: Tensor | None) -> Any:
    """Density in each of the bins of [0, 1)."""
    bins = (hues * BINS).long().clamp(max=BINS - 1)
    masses = torch.ones_like(hues) if weights is None else weights
    counts = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, masses.double())
    return (counts * BINS / counts.sum()).numpy()
