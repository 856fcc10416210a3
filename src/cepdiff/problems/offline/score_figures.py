"""Figures of statistics over tasks and seeds: points with intervals, and performance profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cepdiff.figures import new_figure, new_panels, save_figure, shared_legend, styled
from cepdiff.runs.statistics import CONFIDENCE, Array, Estimate


@styled()
def plot_statistics(found: Mapping[str, Mapping[str, Estimate]], chosen: str, path: Path) -> None:
    """A panel per statistic, with a point and its interval for each setting (none for one seed)."""
    settings = list(found)
    names = list(found[settings[0]])
    figure, panels = new_panels(len(names), len(names), 2.6, 0.6 + 0.35 * len(settings))
    for axes, name in zip(panels, names, strict=True):
        for place, setting in enumerate(settings):
            here, color = found[setting][name], f"C{place % 10}"
            if here.low is not None and here.high is not None:
                axes.plot(
                    [here.low, here.high], [place] * 2, color=color, alpha=0.4, linewidth=7, solid_capstyle="butt"
                )
            axes.plot(here.value, place, color=color, marker="o", linestyle="none")
        axes.set_yticks(range(len(settings)), settings if axes is panels[0] else [""] * len(settings))
        axes.set_ylim(len(settings) - 0.5, -0.5)
        axes.set(xlabel="normalised score" if name != "optimality gap" else "points below 100")
        axes.set_title(f"{name} {'↓' if name == 'optimality gap' else '↑'}")
        axes.grid(axis="x")
    intervals = intervals_of(here for estimates in found.values() for here in estimates.values())
    figure.suptitle(f"{chosen}{intervals}")
    save_figure(figure, path)


@styled()
def plot_profiles(thresholds: Array, found: Mapping[str, Sequence[Estimate]], chosen: str, path: Path) -> None:
    """The share of runs above each score, a line per setting, with pointwise intervals."""
    figure = new_figure(6.0, 4.2)
    axes = figure.subplots()
    for place, (setting, curve) in enumerate(found.items()):
        color = f"C{place % 10}"
        axes.plot(thresholds, [here.value for here in curve], color=color, label=setting)
        bounds = [(here.low, here.high) for here in curve if here.low is not None]
        if bounds:
            axes.fill_between(thresholds, *zip(*bounds, strict=True), color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="normalised score τ", ylabel="share of runs with a score above τ", ylim=(-0.02, 1.02))
    intervals = intervals_of(here for curve in found.values() for here in curve)
    axes.set_title(f"performance profiles, {chosen}{intervals}")
    axes.grid()
    shared_legend(figure, [axes], 2)
    save_figure(figure, path)


def intervals_of(found: Iterable[Estimate]) -> str:
    """The meaning of bars and bands for a title; "" if there are none."""
    return f"; {CONFIDENCE:.0%} bootstrap intervals" if any(here.low is not None for here in found) else ""
