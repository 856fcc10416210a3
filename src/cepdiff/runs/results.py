"""The results of a run: one row per guidance scale, head and metric, in one file, for any problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cepdiff import __version__
from cepdiff.errors import RunError
from cepdiff.files import file_hash
from cepdiff.runs.folder import FINAL, FORMAT, StageFolder, differences
from cepdiff.schema import typed
from cepdiff.seals import read_sealed, write_sealed
from cepdiff.tables import Table, finite, number

SAMPLES = ".npz"  # suffix of files of samples, which reports read


@dataclass(frozen=True)
class Row:
    """One number of a run.

    Args:
        scale: guidance scale.
        metric: its name, a key of `Results.columns` if it is to be shown.
        value: the number; NaN if nothing was measured.
        head: name of the energy that guided; "" for the only one, or for the mean over all heads.
        error: standard error of `value`, None for one sample.
        count: number of samples that `value` is the mean of, if it has a standard error.
        floor: value that exact samples have, if the metric is a distance to them; `floor_error` its deviation.
    """

    scale: float
    metric: str
    value: float = math.nan
    head: str = ""
    error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    count: int | None = None

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
        notes: lines under the table.
        about: other facts for the report, plain values.
        seconds: wall clock of each stage.
        made_from: the record of the evaluation.
        sources: folders with the user's own classes.
        files: name -> hash of each file of samples that was written with the results.
        folder: of the run; not in the file.
        file: that they were written to or read from; not in the file.
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
    notes: Sequence[str] = field(default_factory=list)
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    made_from: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    file: Path = Path()

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
            errors = [math.nan if row.count == 1 else row.error for row in rows]
            values = [number(row.value, form, error) for row, error in zip(rows, errors, strict=True)]
            columns.append([title, *values, number(self.real.get(metric), form)])
            if any(row.floor is not None for row in rows):
                floors = [number(row.floor, form, row.floor_error) for row in rows]
                columns.append(["noise floor", *floors, "-"])
                columns.append(["multiple", *(number(row.multiple, ".2f") for row in rows), "-"])
        if self.marks:
            columns.append(["", *(self.marks.get(scale, "") for scale in self.scales), ""])
        lines = [list(line) for line in zip(*columns, strict=True)]
        return Table(lines if self.real else lines[:-1], self.title, self.notes, remarks=bool(self.marks))

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
        plain = {key: value for key, value in vars(self).items() if key not in ("rows", "marks", "folder", "file")}
        rows = [row.to_json() for row in self.rows]
        marks = {str(scale): mark for scale, mark in self.marks.items()}
        write_sealed(path, {"format": FORMAT, "cepdiff": __version__, **plain, "marks": marks, "rows": rows})

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read the results in a file; raises RunError if it is damaged, was changed, or is of another version."""
        try:
            content = read_sealed(path, FORMAT)
            if content is None:
                raise RunError(f"{path} was written by another version of cepdiff; delete it to evaluate again")
            fields = {key: value for key, value in content.items() if key not in ("format", "cepdiff")}
            rows = typed(list[dict[str, Any]], fields["rows"], "rows")
            found = typed(cls, {**fields, "rows": [_row(row) for row in rows]})
            columns = {metric: (title, form) for metric, (title, form) in found.columns.items()}
            found = replace(found, columns=columns, folder=path.parent, file=path)
            found.table()
            return found
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged, or was changed after it was made ({error}); delete it and run the same "
                "`cepdiff fit` again"
            ) from error

    def check_folder(self) -> None:
        """Raise RunError if the checkpoints or samples in the folder are not those that the results are for."""
        for stage in self.seconds:
            judged, record = self.made_from.get(f"{stage}_checkpoint"), StageFolder(self.folder, stage).record()
            weights = {} if record is None else record.files
            if judged is not None and weights.get(FINAL, judged) != judged:
                raise RunError(
                    f"{self.folder}: the results are not of the {stage} stage there; run the same `cepdiff fit` again"
                )
        for name, known in self.files.items():
            if (file := self.folder / name).is_file() and file_hash(file) != known:
                raise RunError(f"{file} was changed or swapped after it was made; run the same `cepdiff fit` again")


def with_inverse_temperatures(
    rows: Sequence[Row], columns: Mapping[str, Sequence[str]], inverse_temperature: float
) -> tuple[list[Row], dict[str, Sequence[str]]]:
    """`rows` and `columns` with the inverse temperature s beta of each guidance scale as the first column."""
    temperatures = [Row(s, "inverse_temperature", s * inverse_temperature) for s in sorted({row.scale for row in rows})]
    return [*temperatures, *rows], {"inverse_temperature": ("inverse temperature", "g"), **columns}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's fields before the check, without nulls and without the multiple, which follows from the others."""
    return {key: value for key, value in row.items() if value is not None and key != "multiple"}


def are_finished(path: Path, made_from: Mapping[str, Any], files: Iterable[Path] = ()) -> bool:
    """True if `path` has results for exactly this record, and all `files` exist, with unchanged samples."""
    if not path.is_file() or not all(file.is_file() for file in files):
        return False
    found = Results.read(path)
    whole = all(found.files.get(file.name) == file_hash(file) for file in files if file.suffix == SAMPLES)
    return whole and not differences(found.made_from, made_from)


def hashes_of(files: Iterable[Path]) -> dict[str, str]:
    """Name -> hash of the samples among `files`; figures are not hashed, as nothing reads them."""
    return {file.name: file_hash(file) for file in files if file.suffix == SAMPLES}
