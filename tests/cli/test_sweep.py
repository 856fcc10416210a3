"""Sweeps with real processes: failures, kills, stops and a change of the engine; the results are those of `fit`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_buffer, write_config

from cepdiff.cli import main
from cepdiff.errors import ConfigError
from cepdiff.sweeps.local import LocalEngine, Slot, slots_of
from cepdiff.sweeps.ray import RayEngine
from cepdiff.sweeps.settings import LocalSettings, RaySettings, Resources, SlurmSettings
from cepdiff.sweeps.slurm import SlurmEngine

KILLER = '''
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class Killer(Callback):
    """Kills this process, or the one that started it, once in all runs: in the middle of the behavior stage."""
    def __init__(self, mark: str, parent: bool = False) -> None:
        self.mark, self.parent = Path(mark), parent
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if module.stage == "behavior" and trainer.global_step == 15:
            try:
                self.mark.open("x").close()
            except FileExistsError:
                return
            os.kill(os.getppid() if self.parent else os.getpid(), signal.SIGKILL)
            signal.pause()

class Endless(Callback):
    """Leaves the id of its process, and then trains on and on."""
    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        (self.folder / f"{os.getpid()}.pid").touch()
'''


def write_sweep(folder: Path, axes: str, callback: dict[str, Any] | None = None, more: str = "") -> Path:
    """A sweep over the small configuration; paths in its files are relative."""
    write_config(folder)
    (folder / "killer.py").write_text(KILLER)
    callbacks = [{"class_path": f"killer.{name}", "init_args": args} for name, args in (callback or {}).items()]
    (folder / "callbacks.yaml").write_text(yaml.safe_dump({"callbacks": callbacks}))
    path = folder / "sweep.yaml"
    path.write_text(f"configs: [tiny.yaml, callbacks.yaml]\nfolder: {folder}/sweep\naxes: {axes}\n{more}")
    return path


def status_of(folder: Path) -> dict[str, str]:
    return {run["label"]: run["status"] for run in json.loads((folder / "sweep.json").read_text())["runs"]}


def outcome_of(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """All weights and results of a run."""
    weights = {}
    for stage in ("behavior", "critic", "guidance"):
        state = torch.load(run / stage / "final.ckpt", weights_only=True)["state_dict"]
        weights |= {f"{stage}/{name}": value for name, value in state.items()}
    return weights, json.loads((run / "results.json").read_text())["rows"]


def assert_equal_to_fit(run: Path, folder: Path, *overrides: str) -> None:
    """The run has the weights and results, to the bit, of one that `fit` makes here and now."""
    here = folder / "fit" / run.name
    files = [f"--config={folder / name}" for name in ("tiny.yaml", "callbacks.yaml")]
    as_there = ("--trainer.num_threads", "1", "--trainer.accelerator", "cpu")
    assert main(["fit", *files, *overrides, *as_there, "--run_dir", str(here)]) == 0
    (weights, rows), (expected, expected_rows) = outcome_of(run), outcome_of(here)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert rows == expected_rows


# --- this machine -----------------------------------------------------------------------------------------------------

SHARED = "seed=1,learning_rate=0.01"  # takes behavior, support and critic from seed=1


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of four runs on two processes, one of which is killed once and one of which fails; the exit code."""
    folder = tmp_path_factory.mktemp("swept")
    absent = f"{{data.dataset: [{folder}/absent.hdf5]}}"
    axes = f"[{{seed: [0..1]}}, {{seed: [1], guidance.learning_rate: [0.01]}}, {absent}]"
    more = "local: {slots: 2}\nslurm: {cluster: local}"
    path = write_sweep(folder, axes, {"Killer": {"mark": str(folder / "killed")}}, more)
    return folder, main(["sweep", str(path)])


@pytest.mark.slow
def test_one_failure_does_not_end_the_others(swept: tuple[Path, int]) -> None:
    folder, code = swept
    assert code == 1
    status = status_of(folder / "sweep")
    (failed,) = [label for label in status if label.startswith("dataset=absent.hdf5-")]
    assert status == {"seed=0": "finished", "seed=1": "finished", SHARED: "finished", failed: "failed"}
    assert "absent.hdf5" in (folder / "sweep" / "logs" / f"{failed}.log").read_text()


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_bit_identically(swept: tuple[Path, int]) -> None:
    folder, _ = swept
    logs = [(folder / "sweep" / "logs" / f"seed={seed}.log").read_text() for seed in (0, 1)]
    assert sum("behavior: going on from step 10 of 20" in log for log in logs) == 1
    for seed in (0, 1):
        assert_equal_to_fit(folder / "sweep" / "runs" / f"seed={seed}", folder, "--seed", str(seed))


@pytest.mark.slow
def test_stages_in_common_are_made_once(swept: tuple[Path, int]) -> None:
    folder, _ = swept
    runs = folder / "sweep" / "runs"
    for stage in ("behavior", "critic"):
        assert (runs / SHARED / stage / "final.ckpt").samefile(runs / "seed=1" / stage / "final.ckpt")
    log = (folder / "sweep" / "logs" / f"{SHARED}.log").read_text()
    assert "critic: finished earlier, skipped" in log
    assert "guidance: running" in log
    assert_equal_to_fit(runs / SHARED, folder, "--seed", "1", "--guidance.learning_rate", "0.01")


@pytest.mark.slow
def test_the_same_command_goes_on_with_another_engine(
    swept: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the missing data are there, only that run is left; submitit's local executor carries it out."""
    pytest.importorskip("submitit")
    folder = tmp_path / "swept"
    shutil.copytree(swept[0], folder)
    write_buffer(swept[0] / "absent.hdf5")
    before = {log.name: log.read_text() for log in (folder / "sweep" / "logs").iterdir()}
    command = ["sweep", str(swept[0] / "sweep.yaml"), "--folder", str(folder / "sweep"), "--engine", "slurm"]
    assert main([*command, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "4 runs, 1 to do; engine slurm" in shown
    assert main(command) == 0
    assert set(status_of(folder / "sweep").values()) == {"finished"}
    after = {log.name: log.read_text() for log in (folder / "sweep" / "logs").iterdir()}
    assert [name for name in after if after[name] != before[name]] == [
        next(name for name in before if "absent" in name)
    ]


@pytest.mark.slow
def test_a_signal_stops_all_runs_and_leaves_them_resumable(tmp_path: Path) -> None:
    more = "local: {slots: 2}"
    path = write_sweep(tmp_path, "{seed: [0..2]}", {"Endless": {"folder": str(tmp_path)}}, more)

    def stop() -> None:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert main(["sweep", str(path), "--stages.behavior.max_steps", "100_000_000"]) == 128 + signal.SIGTERM
    for file in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.stem), 0)
    assert status_of(tmp_path / "sweep") == {"seed=0": "stopped", "seed=1": "stopped", "seed=2": "waiting"}
    for seed in (0, 1):
        assert (tmp_path / "sweep" / "runs" / f"seed={seed}" / "behavior" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("resources", "most", "expected"),
    [
        ((1, 0), None, [([0], []), ([1], []), ([2], []), ([3], [])]),
        ((2, 0), None, [([0, 1], []), ([2, 3], [])]),
        ((3, 0), None, [([0, 1, 2], [])]),
        ((1, 0), 1, [([0], [])]),
        ((2, 0), 3, [([0, 1], []), ([2, 3], []), ([0, 1], [])]),
        ((1, 1), None, [([0], ["a"]), ([1], ["b"])]),
        ((1, 0.5), None, [([0], ["a"]), ([1], ["b"]), ([2], ["a"]), ([3], ["b"])]),
        ((2, 2), None, [([0, 1], ["a", "b"])]),
    ],
)
def test_each_run_has_its_own_cores_and_gpus(
    resources: tuple[int, float], most: int | None, expected: list[tuple[list[int], list[str]]]
) -> None:
    slots = slots_of(Resources(*resources), most, [0, 1, 2, 3], ["a", "b"])
    assert slots[::-1] == [Slot(cores, gpus) for cores, gpus in expected]


@pytest.mark.parametrize(("gpus", "said"), [(0.0, True), (0.5, False)])
def test_unused_gpus_are_named(
    gpus: float, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    LocalEngine(Resources(gpus=gpus), LocalSettings())
    line = "sweep: the runs use none of this machine's GPUs (2): set resources.gpus\n"
    assert capsys.readouterr().err == (line if said else "")


# --- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "library", "seeds"), [("ray", "ray", [0, 1]), ("slurm", "submitit", [0])])
def test_a_run_whose_worker_is_killed_resumes_and_ends_bit_identically(
    engine: str, library: str, seeds: list[int], tmp_path: Path
) -> None:
    pytest.importorskip(library)
    killer = {"Killer": {"mark": str(tmp_path / "killed"), "parent": True}}
    path = write_sweep(tmp_path, f"{{seed: {seeds}}}", killer, f"engine: {engine}\nslurm: {{cluster: local}}")
    assert main(["sweep", str(path)]) == 0
    assert (tmp_path / "killed").exists()
    logs = [(tmp_path / "sweep" / "logs" / f"seed={seed}.log").read_text() for seed in seeds]
    assert sum("behavior: going on from step 10 of 20" in log for log in logs) == 1
    for seed in seeds:
        assert_equal_to_fit(tmp_path / "sweep" / "runs" / f"seed={seed}", tmp_path, "--seed", str(seed))


@pytest.mark.slow
def test_submitits_debug_executor(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    path = write_sweep(tmp_path, "{seed: [0]}", more="engine: slurm\nslurm: {cluster: debug}")
    assert main(["sweep", str(path)]) == 0
    assert status_of(tmp_path / "sweep") == {"seed=0": "finished"}
    assert_equal_to_fit(tmp_path / "sweep" / "runs" / "seed=0", tmp_path)


def test_a_cluster_that_cannot_be_reached_gets_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"ray\.address: 127\.0\.0\.1:1 cannot be reached .*refused"):
        RayEngine(Resources(), RaySettings("127.0.0.1:1"))


def test_a_machine_without_slurm_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch there
    with pytest.raises(ConfigError, match=r"slurm: .*srun"):
        SlurmEngine(Resources(), SlurmSettings(), tmp_path)
    with pytest.raises(ConfigError, match="SLURM needs a whole number"):
        SlurmEngine(Resources(gpus=0.5), SlurmSettings("local"), tmp_path)
    with pytest.raises(ConfigError, match=r"slurm: .*no_such_option"):
        SlurmEngine(Resources(), SlurmSettings("local", parameters={"no_such_option": 1}), tmp_path)


def test_a_machine_with_too_few_cores_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_sweep(tmp_path, "{seed: [0]}", more="resources: {cpus: 1000}")
    assert main(["sweep", str(path)]) == 2
    assert capsys.readouterr().err.startswith("cepdiff: resources.cpus is 1000; this machine has ")
    assert not (tmp_path / "sweep").exists()
