"""The comparison with d3rlpy's algorithms, without d3rlpy: training in a stand-in, scores, tables and the figure."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.errors import RunError
from cepdiff.problems.offline.judge import COLUMNS
from cepdiff.runs.results import Results, Row


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore what the scripts set for their own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def script() -> Any:
    return importlib.import_module("peers_report")


def peer(output: Path, dataset: str, method: str, seed: int, scores: dict[float, float]) -> None:
    """A scored run of a peer."""
    folder = output / dataset / method / str(seed)
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"dataset": dataset, "algorithm": method, "seed": seed}))
    rows = [
        {"minutes": minutes, "normalized_score": score, "normalized_standard_error": 1.5}
        for minutes, score in scores.items()
    ]
    (folder / "scores.json").write_text(json.dumps({"checkpoints": rows}))


def our_run(folder: Path, dataset: str, seed: int, scores: dict[float, float], choice: float, minutes: float) -> str:
    """A finished run folder."""
    folder.mkdir(parents=True)
    rows = [Row(scale, "normalized_score", score, error=2.0) for scale, score in scores.items()]
    seconds = {"behavior": 20 * minutes, "critic": 40 * minutes}
    problem = "cepdiff.problems.offline.problem.OfflineRL"
    results = Results(problem, dataset, seed, dataset, rows, COLUMNS, seconds=seconds, about={"offline_choice": choice})
    results.write(folder / "results.json")
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two buffers: a peer with two seeds on the first, and a run of cepdiff on each."""
    peer(tmp_path, "a", "TD3+BC", 0, {2.5: 10.0, 5.0: 50.0, 7.5: 40.0})
    peer(tmp_path, "a", "TD3+BC", 1, {2.5: 20.0, 5.0: 30.0})
    peer(tmp_path, "b", "TD3+BC", 0, {2.5: 60.0, 5.0: 80.0})
    peer(tmp_path, "b", "IQL", 0, {5.0: 70.0})
    return [
        our_run(tmp_path / "ours" / "a", "a", 0, {0.0: 30.0, 1.0: 55.0, 2.0: 65.0}, 1.0, 4.0),
        our_run(tmp_path / "ours" / "b", "b", 0, {0.0: 30.0, 1.0: 90.0}, 0.0, 9.0),
    ]


def report(output: Path, *arguments: str) -> dict[str, Any]:
    importlib.import_module("peers").main(["report", "--output", str(output), *arguments])
    found: dict[str, Any] = json.loads((output / "peers.json").read_text())
    return found


def test_report(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(tmp_path, "--runs", "cepdiff", *runs, "--scales", "0", "--minutes", "5")
    rows = {row["method"]: row for row in found["summary"]}
    assert list(rows) == [
        "TD3+BC",
        "IQL",
        *(f"cepdiff, {at}" for at in ("offline choice", "scale 0", "best in hindsight")),
    ]
    td3 = rows["TD3+BC"]  # within 5 minutes: 50 and 30 on a, 80 on b; too few values to leave any out
    assert td3["score"]["iqm"] == pytest.approx((50 + 30 + 80) / 3)
    assert 30.0 <= td3["score"]["low"] < td3["score"]["iqm"] < td3["score"]["high"] <= 80.0
    assert td3["swing"] == pytest.approx((40 + 10 + 20) / 3)
    assert td3["later_half"]["iqm"] == td3["score"]["iqm"]  # the second of two checkpoints
    assert td3["best_checkpoint"]["iqm"] == pytest.approx((50 + 30 + 80) / 3)
    assert (found["compared"], td3["behind"]["shared"]) == ("cepdiff, offline choice", 2)
    assert found["wins"] == [1, 2]  # 55 over a mean of 40 on a, 30 under 80 on b
    assert td3["behind"]["iqm"] == pytest.approx(((55 - 50) + (30 - 80)) / 2)
    assert rows["IQL"]["score"] == {"iqm": 70.0, "low": None, "high": None}
    ours = rows["cepdiff, offline choice"]
    assert (ours["minutes"], ours["score"]["iqm"], ours["behind"]) == (6.5, (55 + 30) / 2, None)
    assert rows["cepdiff, best in hindsight"]["score"]["iqm"] == (65 + 90) / 2

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a TD3+BC 15.0 ± 7.1 40.0 ± 14.1 40.0 ± 1.5 -" in lines
    assert "a cepdiff, offline choice - 55.0 ± 2.0 - -" in lines
    assert "b cepdiff, offline choice - - - 30.0 ± 2.0" in lines  # after 7.5 minutes
    assert "cepdiff, offline choice has at least every peer's score on 1 of 2 buffers." in lines
    assert imread(tmp_path / "peers.png").shape[0] > 100


def test_a_longer_budget(runs: list[str], tmp_path: Path) -> None:
    """The budget includes the checkpoint at 7.5 minutes, which only seed 0 on the first buffer has."""
    td3 = report(tmp_path)["summary"][0]
    assert td3["score"]["iqm"] == pytest.approx((40 + 30 + 80) / 3)
    assert td3["later_half"]["iqm"] == pytest.approx((45 + 30 + 80) / 3)
    assert td3["best_checkpoint"]["iqm"] == pytest.approx((50 + 30 + 80) / 3)
    assert td3["behind"] is None


def test_the_same_seed_twice_is_refused(runs: list[str], tmp_path: Path) -> None:
    twin = our_run(tmp_path / "twin", "a", 0, {0.0: 30.0}, 0.0, 4.0)
    with pytest.raises(RunError, match="are both cepdiff, a, seed 0"):
        report(tmp_path, "--runs", "cepdiff", *runs, twin)
    names = {point["method"] for point in report(tmp_path, "--runs", "x", *runs, "--runs", "y", twin)["points"]}
    assert {"x, offline choice", "y, offline choice"} < names


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run `train` and `score` first"):
        report(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10])
def test_interquartile_mean(script: Any, count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(size=count).tolist()
    assert script.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_interval_is_that_of_scipy(script: Any) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(50.0, 20.0, 10)

    def mean(drawn: Any, axis: int) -> Any:
        return stats.trim_mean(drawn, 0.25, axis=axis)

    found = stats.bootstrap([values], mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert script.interval(values.tolist()) == pytest.approx(tuple(found.confidence_interval), abs=1.0)


class Constant(torch.nn.Module):
    """The same action in every state."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.zeros(observations.shape[0], 3)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # d3rlpy exports by it
def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hopper with constant actions falls within a few steps; existing scores are kept."""
    score_run = importlib.import_module("peers_score").score_run
    rng = np.random.default_rng(0)
    flags = np.arange(64) % 16 == 15
    arrays = RawArrays(
        rng.normal(size=(64, 11)).astype(np.float32), rng.uniform(-1, 1, (64, 3)).astype(np.float32),
        rng.normal(size=64).astype(np.float32), terminals=np.zeros_like(flags), timeouts=flags,
    )  # fmt: skip
    write_arrays(tmp_path / "tiny.hdf5", arrays, {"env_id": "Hopper-v4"})
    checkpoints = [{"minutes": minutes, "steps": steps} for minutes, steps in ((2.5, 10), (5.0, 20))]
    training = {"dataset": "tiny", "algorithm": "BC", "seed": 3, "checkpoints": checkpoints}
    (tmp_path / "training.json").write_text(json.dumps(training))
    for minutes in ("2.5", "5"):
        torch.jit.trace(Constant(), torch.zeros(1, 11)).save(str(tmp_path / f"policy_{minutes}.pt"))
    score_run(tmp_path, tmp_path, 2)
    rows = json.loads((tmp_path / "scores.json").read_text())["checkpoints"]
    assert [(row["minutes"], row["steps"], row["episodes"]) for row in rows] == [(2.5, 10, 2), (5.0, 20, 2)]
    assert rows[0]["mean_return"] == rows[1]["mean_return"] > 10.0  # of the same episodes
    assert rows[0]["normalized_score"] == pytest.approx(100 * (rows[0]["mean_return"] + 20.272305) / 3254.572305)
    assert capsys.readouterr().out.count("tiny BC seed 3") == 2
    score_run(tmp_path, tmp_path, 2)
    assert capsys.readouterr().out == ""


class Clock:
    """A clock that every update moves on by a minute."""

    minutes = 0.0

    def update(self, batch: int) -> None:
        assert batch == 256
        self.minutes += 1.0


class Algo(Clock):
    """A stand-in for d3rlpy's algorithms, whose weight counts its updates."""

    def __init__(self) -> None:
        self.impl = self
        self.weight = 0
        self.seeds: list[int] = []

    def create(self, device: str) -> Algo:
        return self

    def build_with_dataset(self, buffer: Any) -> None:
        self.weight = 0

    def update(self, batch: int) -> None:
        super().update(batch)
        self.weight += 1

    def set_grad_step(self, step: int) -> None:
        assert step == self.weight

    def save_policy(self, path: str) -> None:
        Path(path).write_text(str(self.weight))

    def save_model(self, file: Any) -> None:
        file.write(bytes([self.weight]))

    def load_model(self, file: Any) -> None:
        self.weight = file.read()[0]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Algo]]:
    """The training script with a stand-in for d3rlpy and for the clock of the process."""
    algo = Algo()
    scaler = SimpleNamespace(fit_with_transition_picker=lambda *_: None)
    configs = {f"{name}Config": lambda **_: algo for name in ("TD3PlusBC", "IQL", "BC")}
    d3rlpy = SimpleNamespace(
        algos=SimpleNamespace(**configs), seed=algo.seeds.append, __version__="0",
        preprocessing=SimpleNamespace(StandardObservationScaler=lambda: scaler),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "d3rlpy", d3rlpy)
    monkeypatch.delitem(sys.modules, "peers_train", raising=False)
    monkeypatch.setattr(time, "process_time", lambda: 1000.0 + 60 * algo.minutes)
    yield importlib.import_module("peers_train"), algo
    sys.modules.pop("peers_train", None)


BUFFER = SimpleNamespace(episodes=[], transition_picker=None, sample_transition_batch=lambda size: size)


def test_training_stops_at_the_minutes_and_goes_on_from_there(trainer: tuple[Any, Algo], tmp_path: Path) -> None:
    """A resumed run has the checkpoints and seeds of an uninterrupted one, and finished ones are not repeated."""
    script, algo = trainer
    script.train(BUFFER, "tiny", "BC", 7, [2.0, 3.5, 6.0], tmp_path / "whole")
    assert algo.minutes == 6.0
    whole, seeds = json.loads((tmp_path / "whole" / "training.json").read_text()), algo.seeds.copy()
    assert [(row["minutes"], row["steps"], row["cpu_seconds"]) for row in whole["checkpoints"]] == [
        (2.0, 2, 120.0), (3.5, 4, 240.0), (6.0, 6, 360.0)
    ]  # fmt: skip
    assert [(tmp_path / "whole" / f"policy_{m}.pt").read_text() for m in ("2", "3.5", "6")] == ["2", "4", "6"]
    assert len(set(seeds)) == 4  # one for the weights, and one per checkpoint

    algo.seeds.clear()
    script.train(BUFFER, "tiny", "BC", 7, [2.0, 3.5], tmp_path / "parts")
    script.train(BUFFER, "tiny", "BC", 7, [2.0, 3.5, 6.0], tmp_path / "parts")
    parts = json.loads((tmp_path / "parts" / "training.json").read_text())
    clock = "wall_seconds"
    assert [row | {clock: 0} for row in parts["checkpoints"]] == [row | {clock: 0} for row in whole["checkpoints"]]
    assert algo.seeds == [*seeds[:3], seeds[0], seeds[3]]
    script.train(BUFFER, "tiny", "BC", 7, [2.0, 3.5, 6.0], tmp_path / "parts")
    assert algo.minutes == 12.0


def test_more_than_one_thread_is_refused(trainer: tuple[Any, Algo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(SystemExit, match="set OMP_NUM_THREADS=1"):
        trainer[0].train_all(SimpleNamespace())


def test_errors_of_the_wrong_place(tmp_path: Path, trainer: tuple[Any, Algo], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="there is no buffer"):
        trainer[0].read_buffer(tmp_path / "none.hdf5")
    monkeypatch.delitem(sys.modules, "peers_train")
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(SystemExit, match=r"d3rlpy.*runs in an environment with d3rlpy"):
        importlib.import_module("peers").main(["train", "--output", str(tmp_path), "--data", ".", "--datasets", "a"])
