"""Figures that need no display, written aside and renamed; matplotlib is imported when one is drawn.

No figure is wider than a page, so that its text is readable there. The background is white: a card on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError
from cepdiff.files import check_output, written_aside

PAGE = 8.5  # inches: the width of a figure at the most; text of 10 points has 13 pixels if a page shows it at 800
TALLEST = 40.0  # inches
STYLE: Any = {  # of rcParams
    "savefig.dpi": 150,
    "figure.titlesize": 11,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "errorbar.capsize": 3,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.constrained_layout.h_pad": 0.08,  # inches; also the margin of the card
    "figure.constrained_layout.w_pad": 0.08,
}
GUIDE: Mapping[str, Any] = {"color": "0.4", "linestyle": "--", "linewidth": 1.0, "zorder": 1}  # a line to compare with


@contextmanager
def styled() -> Iterator[None]:
    """Draw in `STYLE`, whatever the user's own settings are; also a decorator, `@styled()`."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure (inches), at most `PAGE` wide and `TALLEST` high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(width, PAGE), min(height, TALLEST)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """Return a figure and `count` panels of that size (inches), or as wide as a page has room for."""
    columns = max(1, min(columns, count))  # in a row
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
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def legend_above(axes: Any, *others: Any, columns: int = 2) -> None:
    """Draw the legend of a panel, with the lines of `others` on the same place, above it, where it hides nothing.

    Lines without a label are left out.
    """
    lines = [line for panel in (axes, *others) for line in panel.get_lines() if line.get_label()[0] != "_"]
    tight = {"borderaxespad": 0.2, "borderpad": 0.2, "columnspacing": 1.0, "handlelength": 1.5, "handletextpad": 0.5}
    axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, **tight)


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
        figure.savefig(file, format=path.suffix[1:] or "png")
