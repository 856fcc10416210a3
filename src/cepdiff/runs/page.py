"""The report as one HTML page without a network: tables that sort, figures, videos, configurations."""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cepdiff import __version__
from cepdiff.runs.report import Section, training_seconds
from cepdiff.runs.results import Results
from cepdiff.runs.settings import ABSENT, configuration, count, keys_of, short_key, text
from cepdiff.runs.templates import rendered, template_text
from cepdiff.tables import CELL, Table, number

SHOWN = (".png", ".mp4")  # suffixes of files in a run folder that are shown
LARGEST = 4_000_000  # bytes of a run's figure or video that becomes part of the page
MOST = 40_000_000  # bytes of all of them


def page(sections: Sequence[Section], runs: Sequence[Results], output: Path) -> str:
    """The HTML page of a report whose figures are in `output`, where the page will be.

    Figures of the report are part of the page, and so are those of runs and their videos if they are small; others are
    linked by relative paths. Names and configurations are escaped: they may come from anybody.
    """
    files, linked = files_of(runs, output)
    script = template_text("report.js")
    hours = training_seconds(runs) / 3600
    return rendered(
        "report.html",
        summary=f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {hours:.1f} h of training",
        version=__version__,
        sections=[
            {
                "title": section.title,
                "tables": [plain_table(table) for table in section.tables],
                "figures": [shown(output / name, output, inline=True) for name in section.figures],
                "closing": section.closing,
            }
            for section in sections
        ],
        differences=differences(runs),
        anchors=[f"run-{index}" for index, _ in enumerate(runs, 1)],
        overview=plain_table(overview(runs)),
        runs=[
            {
                "name": str(run.folder),
                "table": plain_table(run.table()),
                "files": files[run.folder],
                "config": config(run),
            }
            for run in runs
        ],
        linked=linked,
        style=template_text("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def overview(runs: Sequence[Results]) -> Table:
    """A row per run."""
    lines = [["run", "data", "method", "beta", "seed", "training, s"]]
    for run in runs:
        beta = number(run.inverse_temperature, "g")
        seconds = number(sum(run.seconds.values()), ",.0f")
        lines.append([str(run.folder), run.dataset, run.method or ABSENT, beta, str(run.seed), seconds])
    return Table(lines, labels=3)


def differences(runs: Sequence[Results]) -> dict[str, Any] | None:
    """The keys in which the runs' configurations differ, a row per run; None if there is no such key."""
    values = [configuration(run.folder) for run in runs]
    known = keys_of(values)
    keys = [key for key in known if count(values, [key]) > 1]
    if not keys:
        return None
    lines = [["run", *(short_key(key, known) for key in keys)]]
    for run, found in zip(runs, values, strict=True):
        lines.append([str(run.folder), *(text(found[key]) if key in found else ABSENT for key in keys)])
    title = f"the {len(keys)} keys that differ, without those that only say where and how fast a run trains"
    table = plain_table(Table(lines, title, labels=len(lines[0])))
    for cell, key in zip(table["header"][1:], keys, strict=True):
        cell["title"] = key
    return table


def config(run: Results) -> str:
    """The text of a run's configuration; "" if it has none."""
    path = run.folder / "config.yaml"
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def plain_table(table: Table) -> dict[str, Any]:
    """A table as the template needs it: each cell's text, its number to sort by, and how it is shown."""
    names = {*range(table.labels), *([len(table.lines[0]) - 1] if table.remarks else [])}
    rows = [[plain_cell(cell, index in names) for index, cell in enumerate(line)] for line in table.lines]
    return {"title": table.title, "header": rows[0], "rows": rows[1:], "notes": list(table.notes)}


def plain_cell(cell: str, is_name: bool) -> dict[str, Any]:
    """A cell in plain values."""
    found = CELL.fullmatch(cell.strip())
    is_best = found is not None and found["mark"] is not None
    return {"text": cell.strip(), "title": "", "value": value_of(cell), "is_name": is_name, "is_best": is_best}


def value_of(cell: str) -> str | None:
    """The number that a cell begins with as JavaScript reads it, without its error and unit; None for text."""
    found = CELL.fullmatch(cell.strip())
    value = found["value"].removesuffix("%").replace(",", "") if found is not None else ""
    if value in ("inf", "-inf"):
        return value.replace("inf", "Infinity")
    return value if re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", value) else None


def files_of(runs: Sequence[Results], output: Path) -> tuple[dict[Path, list[dict[str, Any]]], int]:
    """Run folder -> its figures and videos, and the number of those that are linked."""
    left, linked = MOST, 0
    found: dict[Path, list[dict[str, Any]]] = {}
    for run in runs:
        found[run.folder] = []
        for path in media_in(run.folder):
            size = path.stat().st_size
            inline = size <= min(LARGEST, left)
            left, linked = left - size * inline, linked + (not inline)
            found[run.folder].append(shown(path, output, inline=inline))
    return found, linked


def media_in(folder: Path) -> Iterator[Path]:
    """The figures and videos in a run folder."""
    yield from (
        path for path in sorted(folder.iterdir()) if path.suffix in SHOWN and path.is_file() and path.name[0] != "."
    )


def shown(path: Path, output: Path, *, inline: bool) -> dict[str, Any]:
    """A figure or video: its content if `inline`, else its place relative to `output`."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if inline:
        source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    else:
        source = f"./{quote(Path(os.path.relpath(path.resolve(), output.resolve())).as_posix())}"
    return {"name": path.name, "source": source, "is_video": kind.startswith("video/")}
