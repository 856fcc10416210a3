"""CPU threads of stages: limits, the choice by measurement, and what it must leave as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.runs import threads
from cepdiff.runs.folder import StageFolder
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.threads import VARIABLE, allowed_cores, choose_threads, settle_threads


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """Restore torch's number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_group(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (root / name / file.replace("__", ".")).write_text(text)


def test_quotas_of_control_groups_limit_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    groups, second, first = tmp_path / "cgroup", tmp_path / "second", tmp_path / "first"
    assert allowed_cores(tmp_path / "missing", second) == 16
    write_group(second, "a/b", cpu__max="max 100000\n")
    groups.write_text("0::/a/b\n")
    assert allowed_cores(groups, second) == 16
    write_group(second, "a", cpu__max="350000 100000\n")  # a parent's limit holds too
    assert allowed_cores(groups, second) == 3
    write_group(second, "a/b", cpu__max="50000 100000\n")
    assert allowed_cores(groups, second) == 1
    write_group(first, "cpu,cpuacct/box", cpu__cfs_quota_us="-1\n")
    write_group(first, "cpu,cpuacct", **{"cpu.cfs_quota_us": "800000\n", "cpu.cfs_period_us": "100000\n"})
    groups.write_text("3:memory:/box\n4:cpu,cpuacct:/box\n")
    assert allowed_cores(groups, first) == 8


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Replaces the stopwatch: seconds of a call by its number of threads; the list gets the number of each call."""

    def replace(**seconds: float) -> list[int]:
        asked: list[int] = []

        def seconds_on(count: int, trial: threads.Trial) -> float:
            asked.append(count)
            return seconds[f"on_{count}"]

        monkeypatch.setattr(threads, "seconds_on", seconds_on)
        return asked

    return replace


@pytest.mark.parametrize(
    ("seconds", "calls", "chosen", "reason"),
    [
        ({"on_1": 0.2, "on_2": 0.11, "on_4": 0.07, "on_6": 0.068}, 1000, 4, "because 6 take 0.97 times"),
        ({"on_1": 0.2, "on_2": 0.11, "on_4": 0.07, "on_6": 0.05}, 1000, 6, "0.71 times"),
        ({"on_1": 0.2, "on_2": 0.186}, 1000, 1, "because 2 take 0.93 times"),
        ({"on_1": 0.2, "on_2": 9.0}, 1000, 1, "because 2 take 45.00 times"),
        ({"on_1": 0.2}, 99, 1, "the work is short"),
    ],
)
def test_more_threads_are_used_as_long_as_they_help(
    seconds: dict[str, float], calls: int, chosen: int, reason: str, clock: Callable[..., list[int]]
) -> None:
    asked = clock(**seconds)
    before = torch.get_num_threads()
    found, why = choose_threads(lambda: None, calls, 6)
    assert (found, reason in why) == (chosen, True), why
    assert torch.get_num_threads() == before
    assert sum(seconds[f"on_{count}"] for count in asked) < 12  # the trial is short


def test_given_numbers_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("measured")

    monkeypatch.setenv(VARIABLE, "1")
    settle_threads(Processes(TrainerSettings("cpu")), "x", never, 1e9)
    monkeypatch.delenv(VARIABLE)
    before = torch.get_num_threads()
    settle_threads(Processes(TrainerSettings("cpu", num_threads=before)), "x", never, 1e9)
    monkeypatch.setattr(threads, "allowed_cores", lambda: 3)
    folder = StageFolder(tmp_path, "x")
    folder.claim({})
    folder.keep_threads(4)
    settle_threads(Processes(TrainerSettings("cpu")), "x", never, 1e9, folder)
    assert torch.get_num_threads() == 3


def test_trial_steps_change_nothing_and_a_resumed_stage_keeps_the_number(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose threads are measured, in two commands, equals one with a given number, noise and averages too."""
    options = ("--behavior.ema_decay", "0.9", "--trainer.accelerator", "cpu")
    command = ["fit", "--config", str(config), *options, "--run_dir"]
    assert main([*command, str(tmp_path / "given"), "--trainer.num_threads", "1"]) == 0
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(threads, "SHORT", 0.0)
    monkeypatch.setattr(threads, "allowed_cores", lambda: 2)
    calls: list[str] = []

    def one_wins(trial: threads.Trial, few: int, more: int) -> float:
        for count in (few, more, few):
            threads.seconds_on(count, trial)
        calls.append("measured")
        return 1.5

    monkeypatch.setattr(threads, "compared", one_wins)
    before = torch.get_num_threads()
    assert main([*command, str(tmp_path / "found"), "--stage", "behavior"]) == 0
    assert len(calls) == 1
    assert StageFolder(tmp_path / "found", "behavior").num_threads == 1
    assert "behavior: 1 of 2 CPU threads, because 2 take 1.50 times as long" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "found")]) == 0
    assert len(calls) == 5  # support, critic, guidance, evaluation
    assert torch.get_num_threads() == before
    for stage in ("behavior", "critic", "guidance"):
        given, found = (
            torch.load(tmp_path / name / stage / "final.ckpt", weights_only=True)["state_dict"]
            for name in ("given", "found")
        )
        assert all(torch.equal(given[key], found[key]) for key in given), stage
