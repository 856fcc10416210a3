"""A sweep of 1,000 runs whose engine trains nothing: runs fail and are killed, and the sweep itself breaks off."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from line_count import executed_lines

from cepdiff.runs.results import Results
from cepdiff.sweeps import schedule, state, sweep
from cepdiff.sweeps.engine import Engine, Job
from cepdiff.sweeps.plan import Plan, PlannedRun
from cepdiff.sweeps.settings import SweepSettings
from cepdiff.sweeps.state import FAILED, FINISHED, SweepFolder
from cepdiff.sweeps.sweep import Sweep

COUNTED = {module.__file__ for module in (schedule, state, sweep)}


class PowerCutError(Exception):
    """The end of the machine that the sweep itself runs on."""


class Simulated(Engine):
    """Sixteen runs at a time, each of which finishes, fails or is killed at the next look, by chance."""

    def __init__(self, results: str, seed: int, most: int | None = None) -> None:
        self.results = results
        self.random = random.Random(seed)
        self.left = most
        self.running: dict[str, Job] = {}
        self.starts: Counter[str] = Counter()
        self.finished: set[str] = set()

    @property
    def free(self) -> int:
        return 16 - len(self.running)

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            assert job.label not in self.running
            assert job.label not in self.finished
            self.starts[job.label] += 1
            self.running[job.label] = job
        assert self.free >= 0

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        if self.left is not None and len(self.finished) >= self.left:
            raise PowerCutError
        ended = [(label, self.random.choices([0, 1, -9], [20, 1, 2])[0]) for label in self.running]
        for label, code in ended:
            job = self.running.pop(label)
            if code == 0:
                folder = Path(job.arguments[-1])
                folder.mkdir(exist_ok=True)
                (folder / "config.yaml").write_text(yaml.safe_dump({"seed": int(label.partition("=")[2])}))
                (folder / "results.json").write_text(self.results)
                self.finished.add(label)
        return ended

    def close(self) -> None:
        self.running = {}


@pytest.fixture
def results(tmp_path: Path) -> str:
    """The results of a run."""
    Results("p", "d", 0, "t", [], {}).write(tmp_path / "results.json")
    return (tmp_path / "results.json").read_text()


def sweep_of(count: int, folder: Path) -> Sweep:
    """Runs without configurations; groups of ten have a stage in common."""
    runs = [
        PlannedRun(f"seed={i}", {"seed": i}, [], {"seed": i}, frozenset(), {"behavior": f"{i // 10}"})
        for i in range(count)
    ]
    return Sweep(SweepSettings({}), Plan({}, {"seed": list(range(count))}, runs), SweepFolder(folder))


def test_nothing_is_lost_or_done_twice(tmp_path: Path, results: str) -> None:
    engine = Simulated(results, 0, most=400)
    with pytest.raises(PowerCutError):
        sweep_of(1000, tmp_path / "sweep").carry_out(engine)
    before = engine.finished
    assert 400 <= len(before) < 420
    engine = Simulated(results, 1)
    status = sweep_of(1000, tmp_path / "sweep").carry_out(engine)
    counts = Counter(status.values())
    assert set(counts) == {FINISHED, FAILED}
    assert sum(counts.values()) == 1000
    assert 0 < counts[FAILED] < 100
    assert not before & set(engine.starts)
    assert before | set(engine.starts) == set(status)
    assert max(engine.starts.values()) == 2  # killed and started again
    assert {label for label, now in status.items() if now == FINISHED} == before | engine.finished
    known = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["runs"]
    assert {run["label"]: run["status"] for run in known} == status
    last = Simulated(results, 2)
    sweep_of(1000, tmp_path / "sweep").carry_out(last)
    assert set(last.starts) == {label for label, now in status.items() if now == FAILED}


def test_the_bookkeeping_is_linear(tmp_path: Path, results: str) -> None:
    def cost(count: int) -> int:
        folder = tmp_path / f"{count}"
        return executed_lines(COUNTED, lambda: sweep_of(count, folder).carry_out(Simulated(results, 0)))

    small, large = cost(100), cost(400)
    assert 3.5 < large / small < 4.5
