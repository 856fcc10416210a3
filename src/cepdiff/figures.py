"""Figures that need no display, written aside and renamed; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError
from cepdiff.files import check_output, written_aside

LARGEST = 40.0  # inches


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of at most `LARGEST` inches a side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(width, LARGEST), min(height, LARGEST)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure and `count` panels of that size (inches) in rows of at most `columns`."""
    columns = max(1, min(columns, count))
    rows = -(-count // columns)
    figure = new_figure(width * columns + 0.5, height * rows + 0.7)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


def shared_legend(figure: Any, panels: list[Any], columns: int = 4) -> None:
    """Draw one legend below all panels, each label once."""
    entries: Mapping[str, Any] = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )


def check_figure(path: Path) -> None:
    """Raise what `save_figure` would, before the figure is drawn."""
    from matplotlib.backend_bases import FigureCanvasBase

    suffix = path.suffix[1:].lower()
    if suffix and suffix not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"{path} ends with '{path.suffix}'; expected .png, .pdf, .svg or another of Matplotlib's")
    check_output(path)


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure; the suffix of `path` chooses the format, PNG if there is none."""
    with written_aside(path) as file:
        figure.savefig(file, dpi=120, format=path.suffix[1:] or "png")
