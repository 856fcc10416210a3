"""Carry out a sweep: the plan, an engine, progress, and a table of what became of every run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from tqdm import tqdm

from cepdiff.bars import progress
from cepdiff.callbacks.stopping import Interrupted, StopSignals
from cepdiff.errors import shortened
from cepdiff.runs.folder import held
from cepdiff.runs.stage import StoppedError
from cepdiff.sweeps.engine import Engine, Job, environment
from cepdiff.sweeps.plan import Plan, PlannedRun, Source, share
from cepdiff.sweeps.schedule import Schedule, was_killed
from cepdiff.sweeps.settings import SweepSettings
from cepdiff.sweeps.state import FAILED, FINISHED, RUNNING, STOPPED, SweepFolder, in_numbers
from cepdiff.tables import Table

PATIENCE = 1.0  # seconds between looks at runs that others wait for
WRITTEN_EVERY = 30.0  # seconds between writes of sweep.json, which has all runs


class Sweep:
    """A plan and its folder.

    Args:
        settings: the content of SWEEP.yaml.
        plan: its runs.
        folder: where they are.

    Raises RunError if the folder is of something else.
    """

    def __init__(self, settings: SweepSettings, plan: Plan, folder: SweepFolder) -> None:
        folder.check(plan)
        self.settings = settings
        self.plan = plan
        self.folder = folder
        self.runs = {run.label: run for run in plan.runs}
        self.finished = {run.label for run in plan.runs if folder.finished(run)}
        known = {run.label: folder.stages_done(run.label, list(run.stages)) for run in plan.runs}
        known |= {label: len(self.runs[label].stages) + 1 for label in self.finished}
        self.known = known
        self.sources: dict[str, Source] = share(plan.runs, known)

    def table(self) -> Table:
        """The runs, how far they are, and what they take from each other."""
        lines = [["run", "done", "takes over"]]
        for label, run in self.runs.items():
            source, stages = self.sources.get(label), list(run.stages)
            done = FINISHED if label in self.finished else ", ".join(stages[: self.known[label]]) or "-"
            taken = f"{', '.join(stages[: source.depth])} of {source.label}" if source else "-"
            lines.append([label, done, "-" if label in self.finished else taken])
        left = len(self.runs) - len(self.finished)
        each = self.settings.resources
        where = f"engine {self.settings.engine}; cores per run: {each.cpus}, GPUs per run: {each.gpus:g}"
        notes = [f"{len(self.runs)} runs, {left} to do; {where}", f"folder {self.folder.path}"]
        return Table(lines, notes=notes, labels=3)

    def carry_out(self, engine: Engine, failed: Collection[str] = ()) -> dict[str, str]:
        """Carry out what is left, but for runs that `failed` before; return the status of each run.

        A failed run does not end the others. Raises StoppedError on a signal, when all runs have stopped.
        """
        schedule = Schedule(self.runs, self.sources, self.finished, self.settings.retries, failed)
        signals = StopSignals()
        with held(self.folder.path):
            self.folder.write(self.plan, schedule.status)
            try:
                with signals.handled(), engine:
                    self._loop(schedule, engine)
            except Interrupted as error:
                raise StoppedError(error.number) from None
            finally:
                status = {label: STOPPED if now == RUNNING else now for label, now in schedule.status.items()}
                self.folder.write(self.plan, status)
        return status

    def job(self, run: PlannedRun, source: str | None) -> Job:
        """The command line of a run; every engine starts the same one."""
        target, log = self.folder.run(run.label), self.folder.log(run.label)
        target.path.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        reuse = []
        if source is not None and self.folder.run(source).config.is_file():  # there is none if it failed too early
            reuse = ["--reuse", str(self.folder.run(source).path)]
        arguments = ["fit", *run.arguments, *reuse, "--run_dir", str(target.path)]
        return Job(run.label, arguments, str(log), self.settings.resources.cpus, str(Path.cwd()), environment())

    def _loop(self, schedule: Schedule, engine: Engine) -> None:
        looked = written = time.monotonic()
        with progress(len(self.runs), "sweep", "run", initial=len(self.finished)) as bar:
            while not schedule.over:
                labels = schedule.take(engine.free)
                if labels:
                    engine.start([self.job(self.runs[label], schedule.source_of.get(label)) for label in labels])
                    bar.set_postfix_str(in_numbers(schedule.counts), refresh=True)
                ended = engine.poll(PATIENCE)
                for label, code in ended:
                    last = schedule.ended(label, code)
                    tqdm.write(f"{label}: {self._outcome(label, code, last)}", file=sys.stderr)
                    bar.update(int(last))
                bar.set_postfix_str(in_numbers(schedule.counts), refresh=bool(ended))
                now = time.monotonic()
                if now - looked > PATIENCE:
                    schedule.look(lambda label, stage: self.folder.has(self.folder.run(label), stage))
                    looked = now
                if now - written > WRITTEN_EVERY:
                    self.folder.write(self.plan, schedule.status)
                    written = time.monotonic()

    def _outcome(self, label: str, code: int, last: bool) -> str:
        if code == 0:
            return FINISHED
        how = f"killed (code {code})" if was_killed(code) else f"failed with exit code {code}"
        return f"{how}; {self.folder.log(label) if last else 'it starts again'}"


def outcome(folder: SweepFolder, runs: Sequence[str], status: dict[str, str]) -> Table:
    """What became of every run: its status, and for one that failed its error and its log."""
    lines = [["run", "status", "", "log"]]
    for label in runs:
        failed = status[label] == FAILED
        reason = shortened(folder.reason(label) or "killed, or see the log", 100) if failed else ""
        lines.append([label, status[label], reason, str(folder.log(label)) if failed else ""])
    return Table(lines, notes=[in_numbers(Counter(status.values())), f"runs {folder.path / 'runs'}"], labels=4)
