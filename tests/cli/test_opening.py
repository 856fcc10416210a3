"""The first lines of `cepdiff fit`, its estimate of the time, and progress in a log file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from density_runs import fit, write_density
from lightning.fabric.utilities.rank_zero import rank_zero_info
from lightning.pytorch.accelerators import CUDAAccelerator

from cepdiff import bars
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.opening import duration, estimate
from cepdiff.runs.processes import Processes, TrainerSettings


def test_a_run_says_what_it_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_density(tmp_path), tmp_path / "run"
    cpu = ("--trainer.accelerator", "cpu")
    assert fit(config, run, *cpu, "--trainer.num_threads", 1, "--stage", "behavior") == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[:4] == [
        f"run        {run}, new",
        "data       rings, 1,000 points in 2 dimensions",
        "machine    cpu, 1 thread, precision 32-true",
        "stages     behavior (20 steps)",
    ]
    assert shown[4].startswith("behavior: running, stage 1/3, 20 steps, ")
    assert shown[4].endswith(" parameters")
    assert fit(config, run, *cpu) == 0
    again = capsys.readouterr().err.splitlines()
    assert again[0] == f"run        {run}, goes on, finished so far: behavior"
    assert again[3] == "stages     behavior (20 steps), guidance (20 steps), evaluation"
    assert again[4] == "behavior: finished earlier, skipped"
    assert again[5].startswith("guidance: running, stage 2/3, 20 steps, ")
    assert not any(line.startswith("time") for line in [*shown, *again])  # nothing is known: no guess


def test_data_are_described_by_their_returns(tmp_path: Path, make_buffer: Callable[..., Path]) -> None:
    rewards = np.repeat(np.arange(10.0, dtype=np.float32), 10)  # ten episodes with returns 0, 10, ... 90
    data = OfflineDataModule(str(make_buffer(tmp_path / "b.hdf5", rewards=rewards)), action_low=-3, action_high=3)
    data.setup()
    assert data.summary() == "100 rows, 10 episodes, returns 0 to 90, mean 45"


def test_times_are_those_of_a_run_that_has_them(tmp_path: Path) -> None:
    known = RunFolder(tmp_path / "known")
    new = RunFolder(tmp_path / "new")
    stages: list[Any] = [
        SimpleNamespace(name=name, steps=steps, folder=new.stage(name))
        for name, steps in (("critic", 50), ("support", 0))
    ]
    assert estimate(stages, None) == ""
    for name, made_from, seconds in (("critic", {"max_steps": 20}, 60.0), ("support", {}, 9.0)):
        assert estimate(stages, known) == ""  # one of them is not known
        folder = known.stage(name)
        folder.claim(made_from)
        folder.finish(seconds)
    # 60 s for 20 steps are 150 s for 50, and 9 s for the support.
    assert estimate(stages, known) == f"about 3 min without the evaluation, by the times in {known.path}"
    assert estimate(stages[:1], None) == ""
    new.stage("critic").claim({"max_steps": 40})
    new.stage("critic").finish(20.0)
    # A shorter training of its own: 20 s for 40 steps are 5 s for 10 more.
    assert estimate(stages[:1], None) == f"about 5 s without the evaluation, by the times in {new.path}"
    assert [duration(seconds) for seconds in (9.4, 99.0, 600.0, 7200.0)] == ["9 s", "99 s", "10 min", "2.0 h"]


def test_a_log_file_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def shown() -> list[str]:
        with bars.progress(4, "critic", "step") as bar:
            for loss in (0.5, 0.25):
                bar.set_postfix({"loss": loss}, refresh=False)
                bar.update(2)
        return capsys.readouterr().err.split("\n")

    (only, end) = shown()  # shorter than half a minute
    assert only.startswith("critic     100%, 4 of 4 steps, ")
    assert end == ""
    monkeypatch.setattr(bars, "LINE_EVERY", 0.0)
    first, second, *rest = shown()
    assert first.startswith("critic     50%, 2 of 4 steps, 00:00 so far, 00:00 left, ")
    assert first.endswith(", loss=0.5")
    assert second.startswith("critic     100%, 4 of 4 steps, ")
    assert all(line == "" or line.startswith("critic     100%") for line in rest)


def test_lightning_says_nothing_about_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU it names the device in each stage, and advises TF32."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # Lightning sets it
    Processes(TrainerSettings("cpu"))
    CUDAAccelerator.set_nvidia_flags(0)
    rank_zero_info("You are using a CUDA device that has Tensor Cores.")
    assert caplog.messages == []
    assert capsys.readouterr() == ("", "")
