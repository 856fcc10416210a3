"""The folder of a sweep: what has been done is read from the run folders themselves, whoever carried the runs out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cepdiff.errors import CepdiffError, RunError
from cepdiff.files import write_json
from cepdiff.runs.folder import LOCK, RunFolder, differences
from cepdiff.runs.results import Results
from cepdiff.runs.search import SWEEP, SWEEP_FORMAT
from cepdiff.sweeps.plan import Plan, PlannedRun, comparable

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"
REASON = 4096  # bytes at the end of a log in which its error is looked for


class SweepFolder:
    """`runs/LABEL` (run folders), `logs/LABEL.log` (what the runs print) and `sweep.json` (the plan)."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.record = self.path / SWEEP
        self.jobs = self.path / "jobs"

    def run(self, label: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / "runs" / label)

    def log(self, label: str) -> Path:
        """The file with what a run printed."""
        return self.path / "logs" / f"{label}.log"

    def check(self, plan: Plan) -> None:
        """Raise RunError unless the folder is new, empty, or of this sweep with the same values or fewer."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another --folder")
        if not self.record.is_file():
            foreign = [entry.name for entry in self.path.iterdir() if entry.name != LOCK] if self.path.exists() else []
            if foreign:
                raise RunError(f"{self.path} is no folder of a sweep (it holds {foreign[0]}); choose another --folder")
            return
        advice = "choose another --folder, or undo the change"
        try:
            known = json.loads(self.record.read_text(encoding="utf-8"))
            before = {run["label"]: run["settings"] for run in known["runs"]}
            if known["format"] != SWEEP_FORMAT:
                raise RunError(f"{self.record} was written by another version of cepdiff; choose another --folder")
            changes = differences(known["recipe"], plan.recipe)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{self.record} is damaged ({error}); choose another --folder, or delete it") from error
        if changes:
            raise RunError(f"{self.path} is of another sweep: {changes[0]}; {advice}")
        planned = {run.label for run in plan.runs}
        if missing := [label for label in before if label not in planned]:
            raise RunError(f"{self.path} is of another sweep: it has a run {missing[0]}, and the axes do not; {advice}")

    def known_settings(self) -> list[dict[str, Any]]:
        """The settings of all runs in the folder; `check` says whether they are of this sweep."""
        if not self.record.is_file():
            return []
        with suppress(ValueError, KeyError, TypeError):  # `check` complains
            return [dict(run["settings"]) for run in json.loads(self.record.read_text(encoding="utf-8"))["runs"]]
        return []

    def write(self, plan: Plan, status: Mapping[str, str]) -> None:
        """Write `sweep.json`."""
        runs = [
            {"label": run.label, "folder": f"runs/{run.label}", "settings": run.settings, "status": status[run.label]}
            for run in plan.runs
        ]
        write_json(self.record, {"format": SWEEP_FORMAT, "recipe": plan.recipe, "axes": plan.axes, "runs": runs})

    def finished(self, run: PlannedRun) -> bool:
        """True if the run has results of just this configuration; if in doubt, `cepdiff fit` finds out."""
        folder = self.run(run.label)
        try:
            if not folder.results.is_file():
                return False
            Results.read(folder.results)
            values = yaml.load(folder.config.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (CepdiffError, OSError, yaml.YAMLError):
            return False
        return isinstance(values, dict) and comparable(values, run.apart) == run.values

    def stages_done(self, label: str, stages: Sequence[str]) -> int:
        """Number of those stages, in order, that the run has finished."""
        folder = self.run(label)
        for count, stage in enumerate(stages):
            if not self.has(folder, stage):
                return count
        return len(stages)

    @staticmethod
    def has(folder: RunFolder, stage: str) -> bool:
        """True if a run has finished a stage."""
        with suppress(CepdiffError):  # a damaged record: the run itself says so
            return folder.stage(stage).done
        return False

    def reason(self, label: str) -> str:
        """The last error that a run printed, "" if there is none."""
        try:
            with self.log(label).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - REASON))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line for line in reversed(lines) if line.startswith("cepdiff: ")), "").removeprefix("cepdiff: ")


def in_numbers(counts: Mapping[str, int]) -> str:
    """Number of runs by status in words, for those that there are."""
    names = (FINISHED, FAILED, STOPPED, RUNNING, WAITING)
    return ", ".join(f"{counts[name]} {name}" for name in names if counts.get(name))
