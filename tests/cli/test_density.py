"""`cepdiff fit` on points with energies, as a user types it: prior, guidance, and samples compared with exact ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from density_runs import (
    BETA,
    KIND,
    OBJECTIVE,
    RUNNING,
    SKIPPED,
    complaint,
    contents,
    fit,
    results,
    said,
    same_weights,
    samples,
    touched,
    write_density,
)
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cepdiff.cli import main
from cepdiff.data.densities.densities import DENSITIES
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.randomness import generator

TOYS = sorted((Path(__file__).parents[2] / "configs" / "toy").glob("*.yaml"))
FEW = [
    "--data.num_points", "500", "--stages.behavior.max_steps", "3", "--stages.guidance.max_steps", "3",
    "--evaluation.num_samples", "32", "--evaluation.floor_repeats", "2", "--trainer.progress_bar", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_density(tmp_path_factory.mktemp("density"))
    sys.modules.pop("density_energies", None)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run, read-only; tests that change it take `run`."""
    run_dir = config.parent / "finished"
    assert fit(config, run_dir) == 0
    return run_dir


@pytest.mark.parametrize("path", TOYS, ids=lambda path: path.stem)
def test_a_shipped_config_trains_and_leaves_its_files(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert fit(path, run_dir, *FEW) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == f"{path.stem}, CEP, beta 3, seed 0"
    assert "guidance scale" in shown[2]
    assert [line.split()[0] for line in shown[3:5]] == ["0", "1"]
    for stage in ("behavior", "guidance"):
        assert json.loads((run_dir / stage / "stage.json").read_text())["done"]
        assert not (run_dir / stage / "last.ckpt").exists()  # a cosine schedule cannot go on
        events = EventAccumulator(str(run_dir / "logs" / stage)).Reload()
        assert max(event.step for event in events.Scalars(f"{stage}/loss")) == 3
    found = results(run_dir)
    assert (found["dataset"], found["method"], found["inverse_temperature"]) == (path.stem, "CEP", 3.0)
    assert (found["problem"], found["title"]) == ("cepdiff.problems.density.points.PointDensity", shown[1])
    rows = found["rows"]
    assert [(row["scale"], row["metric"]) for row in rows] == [
        (scale, name) for scale in (0.0, 1.0) for name in ("sliced_wasserstein", "energy_distance")
    ]
    assert all(row["multiple"] == pytest.approx(row["value"] / row["floor"]) for row in rows)
    arrays = samples(run_dir)
    assert {name: array.shape for name, array in arrays.items()} == {
        "data": (32, 2), "energies": (32,), "exact, scale 0": (32, 2), "guided, scale 0": (32, 2),
        "exact, scale 1": (32, 2), "guided, scale 1": (32, 2),
    }  # fmt: skip
    assert all(np.isfinite(array).all() for array in arrays.values())
    points, energies = DENSITIES[path.stem].sample(500, generator(0, "density"))
    np.testing.assert_array_equal(arrays["data"], points[:32])
    np.testing.assert_array_equal(arrays["energies"], energies[:32])
    for name in ("guided, scale 0", "guided, scale 1"):  # within the data's range
        assert (np.abs(arrays[name]) <= np.abs(points.numpy()).max() + 1e-5).all()
    assert imread(run_dir / "samples.png").shape[1] > 1000
    events = EventAccumulator(str(run_dir / "logs" / "evaluation")).Reload()
    distances = ("energy_distance", "sliced_wasserstein")
    assert set(events.Tags()["scalars"]) == {f"eval/{d}_multiple/s={s}" for d in distances for s in (0.0, 1.0)}
    assert events.Tags()["images"] == ["samples"]


def test_a_finished_run_is_skipped_and_shown(config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = touched(run)
    capsys.readouterr()
    assert fit(config, run) == 0
    again = capsys.readouterr()
    assert again.err.count(SKIPPED) == 3
    assert "rings, CEP, beta 3, seed 0" in again.out
    assert "guidance scale" in again.out
    assert touched(run) == before
    assert len(before) == 7


def test_stages_one_by_one_equal_the_whole(config: Path, finished: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    for stage in ("behavior", "guidance", "evaluation"):
        assert not (single / "results.json").exists()
        assert fit(config, single, "--stage", stage) == 0
    assert same_weights(finished, single, "behavior")
    assert same_weights(finished, single, "guidance")
    assert results(finished)["rows"] == results(single)["rows"]
    ours, theirs = samples(finished), samples(single)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_seed_changes_everything(config: Path, finished: Path, tmp_path: Path) -> None:
    assert fit(config, tmp_path / "other", "--seed", 1) == 0
    assert not same_weights(finished, tmp_path / "other", "behavior")
    assert not same_weights(finished, tmp_path / "other", "guidance")
    ours, theirs = samples(finished), samples(tmp_path / "other")
    assert not any(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("arguments", "stage", "expected"),
    [
        ([BETA, 10], "guidance", "guidance.objective.inverse_temperature was 3.0, now 10.0"),
        ([OBJECTIVE, "MSE"], "guidance", "objectives.CEP, now cepdiff.energy.objectives.MSE"),
        (["--guidance.average_targets", "false"], "guidance", "guidance.average_targets was True, now False"),
        (["--stages.guidance.max_steps", 15], "guidance", "max_steps was 20, now 15"),
        (["--data.energy", "density_energies.square"], "guidance", "dataset was"),
        (["--behavior.learning_rate", 0.5], "behavior", "behavior.learning_rate was 0.0001, now 0.5"),
        (["--data.num_points", 999], "behavior", "dataset was"),
        (["--data.dataset", "moons"], "behavior", "dataset was"),
        (["--seed", 1], "behavior", "seed was 0, now 1"),
    ],
)
def test_another_configuration_never_touches_the_run(
    config: Path,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    stage: str,
    expected: str,
) -> None:
    before = contents(run)
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run, *arguments)
    assert f"{run / stage} was made from something else" in line
    assert expected in line
    assert "Choose another --run_dir, undo the change, or delete" in line
    assert str(run / "guidance") in line
    assert contents(run) == before


@pytest.mark.parametrize("arguments", [["--evaluation.num_samples", 48], ["--solver.num_steps", 3]])
def test_other_settings_of_the_evaluation_make_that_alone_again(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[object]
) -> None:
    before, old = touched(run), samples(run)
    capsys.readouterr()
    assert fit(config, run, *arguments) == 0
    stages = {name: text for name, text in said(capsys).items() if "policy.pt" not in name}
    assert stages == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": RUNNING}
    after = touched(run)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"results.json", "samples.npz", "samples.png"}
    assert not np.array_equal(samples(run)["guided, scale 1"], old["guided, scale 1"])
    assert len(samples(run)["guided, scale 1"]) == (48 if "num_samples" in str(arguments) else 64)


def test_results_are_not_left_beside_a_policy_that_samples_in_another_way(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(config, run, "--stage", "guidance") == 0
    assert (run / "results.json").is_file()
    capsys.readouterr()
    assert fit(config, run, "--stage", "guidance", "--solver.num_steps", 3) == 0
    assert "now samples differently" in capsys.readouterr().err
    assert not (run / "results.json").exists()


@pytest.mark.parametrize("objective", ["CEP", "DPS"])
def test_the_policy_of_a_run_gives_its_samples(config: Path, finished: Path, tmp_path: Path, objective: str) -> None:
    run_dir = tmp_path / "run"
    more = [OBJECTIVE, objective, "--evaluation.scales", "[0, 1, 2.5]", "--evaluation.seed", 7]
    assert fit(config, run_dir, "--reuse", finished, *more) == 0
    policy, found = GuidedPolicy.from_run(run_dir), samples(run_dir)
    noise = torch.randn(64, 2, generator=generator(7, "samples"))
    for scale in (0.0, 1.0, 2.5):
        again = policy.act(torch.empty(64, 0), guidance_scale=scale, noise=noise)
        np.testing.assert_allclose(again, found[f"guided, scale {scale:g}"], atol=1e-6)
    assert policy.recipe is not None
    assert policy.recipe.scales == [0.0, 1.0, 2.5]


def test_a_run_without_its_guidance_has_the_policy_of_the_prior(config: Path, tmp_path: Path) -> None:
    assert fit(config, tmp_path / "run", "--stage", "behavior") == 0
    policy = GuidedPolicy.from_run(tmp_path / "run")
    assert not policy.sampler.has_energy
    assert policy.act(torch.empty(3, 0), guidance_scale=0.0).shape == (3, 2)


def test_a_file_of_few_points_and_a_great_beta(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All exact samples are the same row: a floor of 0 must not make the command fail after training."""
    path = tmp_path / "few.npz"
    np.savez(path, points=np.arange(10.0).reshape(5, 2), energies=np.arange(5.0))
    run_dir = tmp_path / "run"
    assert fit(config, run_dir, "--data.dataset", path, BETA, 1000) == 0
    assert "few, CEP, beta 1000, seed 0" in (shown := capsys.readouterr().out)
    assert shown.count(" inf") == 2
    rows = results(run_dir)["rows"]
    assert [row["multiple"] is None for row in rows] == [False, False, True, True]
    assert fit(config, run_dir, "--data.dataset", path, BETA, 1000) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--critic.discount", 0.9], "unknown key 'critic'. There are problem, seed, run_dir, data"),
        (["--stages.support.num_actions", 4], "unknown key 'stages.support'. There are behavior, guidance"),
        (["--stages.critic.max_steps", 4], "unknown key 'stages.critic'. There are behavior, guidance"),
        (["--evaluation.episodes", 4], "unknown key 'evaluation.episodes'. There are num_samples"),
        (["--data.reward_rule", "none"], "data.reward_rule"),
        (["--stage", "support"], "there is no stage 'support'; stages are behavior, guidance, evaluation"),
        (["--stage", "guidance"], "--stage guidance needs the behavior stage"),
        ([BETA, 0], "inverse_temperature is 0.0; expected a number above 0"),
        ([BETA, -1], "inverse_temperature is -1.0"),
        ([OBJECTIVE, "CPE"], "no class 'CPE'. Did you mean CEP"),
        ([KIND, "ExponentialMES"], "Did you mean ExponentialMSE"),
        ([KIND, "cepdiff.networks.energy.EnergyMLP"], "is not a subclass of EnergyObjective"),
        (["--guidance.batch_size", 1], "guidance.batch_size is 1; expected at least 2"),
        (["--guidance.times_per_step", 0], "guidance.times_per_step is 0"),
        (["--evaluation.num_samples", 1], "evaluation.num_samples is 1; expected at least 2"),
        (["--evaluation.floor_repeats", 0], "evaluation.floor_repeats is 0"),
        (["--evaluation.scales", "[]"], "evaluation.scales is []"),
        (["--evaluation.scales", "[-1]"], "expected one or more numbers, each 0 or more"),
        (["--data.dataset", "ringz"], "Did you mean rings"),
        (["--data.dataset", "none.npz"], "none.npz: no such file; expected an .npz with points"),
        (["--data.num_points", 1], "data.num_points is 1; expected at least 2"),
        (["--data.energy", "density_energies.nan"], "the energy density_energies.nan is nan at ["),
        (["--data.energy", "density_energies.sqare"], "Did you mean square"),
    ],
)
def test_a_wrong_option_gets_one_line_before_anything_is_trained(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], expected: str
) -> None:
    run_dir = tmp_path / "run"
    assert expected in complaint(capsys, "fit", "--config", config, "--run_dir", run_dir, *arguments)
    assert not (run_dir / "behavior").exists()


def test_one_pair_is_no_noise_floor(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    line = complaint(capsys, "fit", "--config", config, "--run_dir", run_dir, "--evaluation.floor_repeats", 1)
    assert "evaluation.floor_repeats is 1; expected at least 2" in line
    assert not (run_dir / "behavior").exists()


def test_a_bare_name_keeps_its_arguments(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(config), OBJECTIVE, "MSE", BETA, "10", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert "cepdiff.energy.objectives.MSE" in shown
    assert "inverse_temperature: 10.0" in shown


class TestEvaluateOfADensity:
    def test_it_gets_one_line(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = contents(run)
        assert str(run) in complaint(capsys, "evaluate", run)
        assert contents(run) == before

    def test_it_says_what_to_use(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "cepdiff fit" in complaint(capsys, "evaluate", run)


@pytest.mark.slow
def test_a_guidance_stage_stopped_by_a_signal_goes_on_to_the_same_weights(config: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    long = ["--stages.guidance.max_steps", "1000", "--stages.guidance.checkpoint_every", "50"]
    long += ["--guidance.net.class_path", "cepdiff.networks.energy.EnergyMLP", "--guidance.net.hidden", "[8]"]
    assert fit(config, broken, *long, "--stage", "behavior") == 0
    assert fit(config, whole, *long) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(broken), *long],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    for _ in range(2400):
        if (broken / "guidance" / "last.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "run the same command to go on" in output
    assert not (broken / "guidance" / "final.ckpt").exists()
    assert 0 < torch.load(broken / "guidance" / "last.ckpt", weights_only=True)["global_step"] < 1000
    assert fit(config, broken, *long) == 0
    assert same_weights(whole, broken, "guidance")
    assert results(whole)["rows"] == results(broken)["rows"]
