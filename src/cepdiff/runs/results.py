"""The results of a run: one row per guidance scale, head and metric, in one file, for any problem."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from cepdiff import __version__
from cepdiff.errors import RunError
from cepdiff.files import write_json
from cepdiff.runs.folder import FORMAT, differences
from cepdiff.tables import Table, finite, number


@dataclass(frozen=True)
class Row:
    """One number of a run.

    Args:
        scale: guidance scale.
        metric: its name, a key of `Results.columns` if it is to be shown.
        value: the number; NaN if nothing was measured.
        head: name of the energy that guided; "" for the only one, or for the mean over all heads.
        error: standard error of `value`.
        floor: value that exact samples have, if the metric is a distance to them; `floor_error` its deviation.
    """

    scale: float
    metric: str
    value: float
    head: str = ""
    error: float | None = None
    floor: float | None = None
    floor_error: float | None = None

    @property
    def multiple(self) -> float | None:
        """`value` as a multiple of the noise floor: about 1 if they cannot be told apart. Infinite at a floor of 0."""
        if self.floor is None:
            return None
        return self.value / self.floor if self.floor else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for NaN and infinity."""
        plain = {key: finite(value) if isinstance(value, float) else value for key, value in vars(self).items()}
        return {**plain, "multiple": finite(self.multiple)}


@dataclass(frozen=True)
class Results:
    """All results of a run.

    Args:
        problem: class path of the problem, which compares runs in `cepdiff report`.
        dataset: short name of the data.
        seed: of the run.
        title: above the table.
        rows: the numbers.
        columns: metric -> (title, format), in the order of the table; other metrics are kept, and not shown.
        method: class of the guidance objective, "" if there is none; `inverse_temperature` is its beta.
        marks: guidance scale -> remark at the end of its line.
        real: metrics of real data, for a last line.
        about: other facts for the report, plain values.
        seconds: wall clock of each stage.
        made_from: the record of the evaluation.
        sources: folders with the user's own classes.
        folder: of the run; not in the file.
    """

    problem: str
    dataset: str
    seed: int
    title: str
    rows: Sequence[Row]
    columns: Mapping[str, Sequence[str]]
    method: str = ""
    inverse_temperature: float | None = None
    marks: Mapping[float, str] = field(default_factory=dict)
    real: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = ()
    folder: Path = Path()

    @property
    def scales(self) -> list[float]:
        """Guidance scales, ascending."""
        return sorted({row.scale for row in self.rows})

    def row(self, scale: float, metric: str, head: str = "") -> Row | None:
        """The row of a scale and metric; None if there is none."""
        found = (row for row in self.rows if (row.scale, row.metric, row.head) == (scale, metric, head))
        return next(found, None)

    def values(self, metric: str) -> dict[float, float]:
        """Guidance scale -> value, for the scales that were measured."""
        found = {row.scale: row.value for row in self.rows if row.metric == metric and not row.head}
        return {scale: found[scale] for scale in sorted(found) if not math.isnan(found[scale])}

    def table(self) -> Table:
        """One line per guidance scale: a column per metric, with the noise floor and its multiple if there is one."""
        columns = [["guidance scale", *(f"{scale:g}" for scale in self.scales), "real data"]]
        for metric, (title, form) in self.columns.items():
            rows = [self.row(scale, metric) or Row(scale, metric, math.nan) for scale in self.scales]
            if all(math.isnan(row.value) for row in rows):
                continue
            values = [number(row.value, form, row.error) for row in rows]
            columns.append([title, *values, number(self.real.get(metric), form)])
            if any(row.floor is not None for row in rows):
                floors = [number(row.floor, form, row.floor_error) for row in rows]
                columns.append(["noise floor", *floors, "-"])
                columns.append(["multiple", *(number(row.multiple, ".2f") for row in rows), "-"])
        if self.marks:
            columns.append(["", *(self.marks.get(scale, "") for scale in self.scales), ""])
        lines = [list(line) for line in zip(*columns, strict=True)]
        return Table(lines if self.real else lines[:-1], self.title, remarks=bool(self.marks))

    def scalars(self) -> dict[str, float]:
        """TensorBoard names and values."""
        shown = [row for row in self.rows if not row.head and not math.isnan(row.value)]
        found = {
            f"eval/{row.metric}{part}/s={row.scale}": value
            for row in shown
            for part, value in {
                "": row.value, "_floor": row.floor, "_floor_error": row.floor_error, "_multiple": row.multiple
            }.items()
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        plain = {key: value for key, value in vars(self).items() if key not in ("rows", "marks", "folder")}
        rows = [row.to_json() for row in self.rows]
        marks = {f"{scale:g}": mark for scale, mark in self.marks.items()}
        write_json(path, {"format": FORMAT, "cepdiff": __version__, **plain, "marks": marks, "rows": rows})

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in a file; raises RunError if it is damaged or of another version."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise RunError(f"{path} was written by another version of cepdiff; delete it to evaluate again")
            rows = [Row(**{key: _value(key, row[key]) for key in Row.__annotations__}) for row in content["rows"]]
            marks = {float(scale): str(mark) for scale, mark in content["marks"].items()}
            columns = {str(metric): (str(title), str(form)) for metric, (title, form) in content["columns"].items()}
            kept = {
                key: content[key] for key in cls.__annotations__ if key not in ("rows", "marks", "columns", "folder")
            }
            found = cls(**kept, rows=rows, marks=marks, columns=columns, folder=path.parent)
            found.table()
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is damaged; delete it and run the same `cepdiff fit` again") from error


def _value(key: str, value: Any) -> Any:
    """A field of a row as it was before JSON."""
    if key in ("metric", "head"):
        return str(value)
    if value is None:
        return math.nan if key == "value" else None
    if not math.isfinite(found := float(value)):
        raise ValueError(f"{key} is {value}")
    return found


def are_finished(path: Path, made_from: Mapping[str, Any], files: Iterable[Path] = ()) -> bool:
    """True if `path` has the results of just this record, and all `files` are there and whole."""
    if not path.is_file() or not all(is_zipfile(file) if file.suffix == ".npz" else file.exists() for file in files):
        return False
    return not differences(Results.read(path).made_from, made_from)
