"""A simulated schedule: nothing is trained, and the executed lines of the bookkeeping are counted."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from line_count import executed_lines

from cepdiff.sweeps import schedule as module
from cepdiff.sweeps.plan import Source
from cepdiff.sweeps.schedule import Schedule, was_killed
from cepdiff.sweeps.state import FAILED, FINISHED, WAITING

STAGES = ("behavior", "support", "critic", "guidance")


class SimulatedMachines:
    """Fails, kills and finishes runs at random; every run that works makes all stages that it did not take over."""

    def __init__(self, seed: int, slots: int, failures: float) -> None:
        self.random = random.Random(seed)
        self.slots = slots
        self.failures = failures
        self.running: list[str] = []
        self.stages: dict[str, int] = {}  # label -> number of finished stages
        self.starts: Counter[str] = Counter()
        self.made: Counter[tuple[str, str]] = Counter()  # (group of equal stages, stage) -> times it was made

    def has(self, label: str, stage: str) -> bool:
        return self.stages.get(label, 0) > STAGES.index(stage)

    def start(self, label: str, source: str | None) -> None:
        assert label not in self.running
        self.starts[label] += 1
        self.running.append(label)
        if source is not None:
            self.stages.setdefault(label, min(2, self.stages.get(source, 0)))

    def tick(self) -> list[tuple[str, int]]:
        """Advance every run; return those that ended."""
        ended = []
        for label in self.running[:]:
            chance = self.random.random()
            if chance < self.failures:
                ended.append((label, 1))
            elif chance < 2 * self.failures:
                ended.append((label, -9))
            else:
                before = self.stages.get(label, 0)
                self.stages[label] = before + 1
                if before < 2:
                    self.made[label.split("/")[0], STAGES[before]] += 1
                if before + 1 == len(STAGES):
                    ended.append((label, 0))
        for label, _ in ended:
            self.running.remove(label)
        return ended


def simulate(groups: int, each: int, failures: float = 0.03) -> tuple[Schedule, SimulatedMachines]:
    """Groups of runs that have behavior and support in common."""
    labels = [f"{group}/{index}" for group in range(groups) for index in range(each)]
    sources = {label: Source(f"{label.split('/')[0]}/0", "support", 2) for label in labels if not label.endswith("/0")}
    schedule, machines = Schedule(labels, sources), SimulatedMachines(0, 16, failures)
    while not schedule.over:
        for label in schedule.take(machines.slots - len(machines.running)):
            machines.start(label, schedule.source_of.get(label))
        for label, code in machines.tick():
            schedule.ended(label, code)
        schedule.look(machines.has)
        assert schedule.running == len(machines.running)
    return schedule, machines


def test_of_a_thousand_runs_none_is_lost_or_done_twice() -> None:
    schedule, machines = simulate(groups=100, each=10)
    counts = Counter(schedule.status.values())
    assert set(counts) == {FINISHED, FAILED}
    assert sum(counts.values()) == 1000
    assert 0 < counts[FAILED] < 300
    assert set(machines.starts) == set(schedule.status)  # a failed run ends none that waits for it
    assert max(machines.starts.values()) == 2  # killed once at most, and started again
    assert all(machines.stages[label] == len(STAGES) for label, now in schedule.status.items() if now == FINISHED)


def test_common_stages_are_made_once() -> None:
    _, machines = simulate(groups=100, each=10, failures=0.0)
    assert set(machines.made.values()) == {1}
    assert len(machines.made) == 200


def test_common_stages_are_made_once_also_if_runs_fail() -> None:
    """The failed run's stages are taken over, so each of them was finished once."""
    _, machines = simulate(groups=100, each=10)
    assert set(machines.made.values()) == {1}


@pytest.mark.parametrize("failures", [0.03, 0.5])
@pytest.mark.parametrize("one_group", [False, True])
def test_the_bookkeeping_is_linear(failures: float, one_group: bool) -> None:
    small, large = (
        executed_lines([module.__file__], lambda n=n: simulate(*((1, n) if one_group else (n // 10, 10)), failures))
        for n in (250, 1000)
    )
    assert 3.5 < large / small < 4.5


def test_the_runs_of_a_failed_one_wait_for_the_first_of_them() -> None:
    sources = {"b": Source("a", "behavior", 1), "c": Source("a", "critic", 3), "d": Source("a", "critic", 3)}
    schedule = Schedule("abcd", sources)
    assert schedule.take(9) == ["a"]
    assert schedule.ended("a", 2)
    assert schedule.take(9) == ["c"]  # it has the most in common with the others
    assert schedule.source_of == {"c": "a"}
    schedule.look(lambda label, stage: stage == "behavior")
    assert schedule.take(9) == ["b"]
    schedule.ended("b", 0)
    schedule.ended("c", 0)
    assert schedule.take(9) == ["d"]
    schedule.ended("d", 0)
    assert schedule.over
    assert schedule.source_of == {"b": "c", "c": "a", "d": "c"}
    assert schedule.status == {"a": FAILED, "b": FINISHED, "c": FINISHED, "d": FINISHED}


def test_a_killed_run_starts_again_and_its_dependents_still_wait() -> None:
    schedule = Schedule("ab", {"b": Source("a", "behavior", 1)}, retries=1)
    schedule.take(9)
    assert not schedule.ended("a", -9)
    assert schedule.status["b"] == WAITING
    assert schedule.take(9) == ["a"]
    assert schedule.ended("a", 137)  # its last attempt
    assert schedule.status["a"] == FAILED
    assert schedule.take(9) == ["b"]


def test_a_source_that_is_finished_needs_no_waiting() -> None:
    schedule = Schedule("ab", {"b": Source("a", "behavior", 1)}, finished="a")
    assert schedule.take(9) == ["b"]


@pytest.mark.parametrize(("code", "killed"), [(1, False), (2, False), (-9, True), (137, True), (143, True)])
def test_a_killed_process_is_told_from_a_failure(code: int, killed: bool) -> None:
    assert was_killed(code) == killed
