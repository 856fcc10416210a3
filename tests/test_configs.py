"""Every shipped configuration loads and runs for a few steps per stage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from cepdiff.cli import main
from cepdiff.cli.fit import parse_overrides
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.tasks import TASKS
from cepdiff.modules.tempered import TemperedGuidance
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.runs.config import load_config
from cepdiff.sweeps.plan import Source, comparable, make_plan, share
from cepdiff.sweeps.settings import read_sweep

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
OVERLAYS = ("cpu_antmaze", "cpu_hour", "cpu_quarter", "tempered")
SWEEPS = CONFIGS[0].parent / "sweeps"
RECIPES = [path for path in CONFIGS if path.stem not in OVERLAYS]
PAPER = [path for path in RECIPES if path.stem != "maze2d" and not path.stem.startswith("ogbench")]
# Sizes (S, A) and environment of each task.
SIZES = {
    "walker2d": (17, 6, "cepdiff/Walker2d-v2"),
    "hopper": (11, 3, "Hopper-v4"),
    "halfcheetah": (17, 6, None),
    "antmaze": (29, 8, "cepdiff/antmaze-umaze-v2"),
    "maze2d": (4, 2, "cepdiff/maze2d-umaze-v1"),
    "quickstart": (10, 2, "Reacher-v5"),
    "ogbench_pointmaze": (2, 2, "ogbench/pointmaze-medium-singletask-v0"),
    "ogbench_cube": (28, 5, None),  # making the arm takes seconds
}
FEW_STEPS = [
    "--stages.behavior.max_steps", "3", "--stages.critic.max_steps", "3", "--stages.guidance.max_steps", "3",
    "--stages.support.max_rows", "40", "--stages.support.num_actions", "2", "--behavior.batch_size", "32",
    "--evaluation.episodes", "1",
    "--evaluation.scales", "[0, 1]", "--data.env_kwargs", "{max_episode_steps: 30}",
    "--solver.num_steps", "3", "--trainer.progress_bar", "false",
]  # fmt: skip


def synthetic(path: Path, observation_size: int, action_size: int) -> Path:
    """A buffer with a task's sizes: 80 rows in eight episodes."""
    rng = np.random.default_rng(0)
    raw = RawArrays(
        observations=rng.normal(size=(80, observation_size)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(80, action_size)).astype(np.float32),
        rewards=rng.normal(size=80).astype(np.float32),
        terminals=np.arange(80) % 20 == 9,
        timeouts=np.arange(80) % 20 == 19,
    )
    write_arrays(path, raw)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_config_trains(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if path.stem.startswith("ogbench"):
        pytest.importorskip("ogbench")
    observation_size, action_size, env_id = SIZES[path.stem]
    data = synthetic(tmp_path / "data.hdf5", observation_size, action_size)
    arguments = ["fit", "--config", str(path), "--run_dir", str(tmp_path / "run"), *FEW_STEPS]
    arguments += ["--data.dataset", str(data)]
    arguments += ["--data.env_id", env_id] if env_id else ["--evaluation.episodes", "0"]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "policy.pt").exists()
    found = json.loads((tmp_path / "run" / "data_check.json").read_text())
    assert any(finding["message"] == "80 rows in 8 episodes, 8 complete" for finding in found)
    shown = capsys.readouterr().out
    assert "behavior policy" in shown
    assert "offline value" in shown
    assert ("mean return" in shown) == (env_id is not None)  # offline evaluation needs no environment
    assert (tmp_path / "run" / "paths.png").exists() == ("maze" in path.stem)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_a_recipe_says_what_the_paper_says(path: Path) -> None:
    config = load_config([path])
    task = TASKS[config.components["data"].arguments["dataset"]]
    assert config.settings["stages"].support.num_actions == task.num_support_actions
    assert config.settings["evaluation"].scales == list(task.evaluation_scales)
    assert config.settings["evaluation"].episodes == task.evaluation_episodes
    if path.stem != "quickstart":
        lengths = [getattr(config.settings["stages"], stage).max_steps for stage in ("behavior", "critic", "guidance")]
        assert lengths == [600_000, 500_000, 1_000_000]
        assert config.components["behavior"].arguments["batch_size"] == 4096
        assert config.components["guidance"].arguments["objective"].inverse_temperature == 3.0


def test_the_cpu_overlay_fits_every_locomotion_recipe(tmp_path: Path) -> None:
    overlay = next(path for path in CONFIGS if path.stem == "cpu_hour")
    for path in RECIPES:
        config = load_config([path, overlay])
        assert config.settings["stages"].behavior.max_steps == 30_000
        assert config.components["critic"].arguments["net"](3, 2).critics[0].joint.weight.shape == (256, 5)


def test_the_quarter_overlay_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All episodes that are nearly as good as the best are used; the policy averages its candidates."""
    hopper, overlay = (next(path for path in CONFIGS if path.stem == name) for name in ("hopper", "cpu_quarter"))
    data = synthetic(tmp_path / "data.hdf5", 11, 3)
    arguments = ["fit", "--config", str(hopper), "--config", str(overlay), "--run_dir", str(tmp_path / "run")]
    assert main([*arguments, *FEW_STEPS, "--data.dataset", str(data), "--data.env_id", "Hopper-v4"]) == 0
    assert "effective sample size" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "data_check.json").read_text())
    with h5py.File(data) as file:
        returns = file["rewards"][:].reshape(-1, 10).sum(1)
    near = int((returns >= returns.max() - 0.1 * np.ptp(returns)).sum())
    assert 1 < near < len(returns)
    assert any(f"{10 * near} rows in {near} episodes" in finding["message"] for finding in found)
    sampler = GuidedPolicy.from_run(tmp_path / "run").sampler
    assert (type(sampler).__name__, sampler.noise_size) == ("Resampled", 8 * 3)


def test_the_antmaze_overlay_trains_on_a_collected_buffer(tmp_path: Path) -> None:
    antmaze, overlay = (next(path for path in CONFIGS if path.stem == name) for name in ("antmaze", "cpu_antmaze"))
    data, run = tmp_path / "ant.hdf5", tmp_path / "run"
    assert main(["collect", "antmaze-umaze-v2", "--steps", "80", "--output", str(data)]) == 0
    arguments = ["fit", "--config", str(antmaze), "--config", str(overlay), "--run_dir", str(run)]
    assert main([*arguments, *FEW_STEPS, "--data.dataset", str(data)]) == 0
    assert (run / "paths.png").exists()
    policy = GuidedPolicy.from_run(run)
    assert type(policy.sampler).__name__ == "Resampled"
    assert policy.spec.action_steps == 5


def test_the_tempered_overlay_fits_the_recipes() -> None:
    overlays = [next(path for path in CONFIGS if path.stem == name) for name in ("tempered", "cpu_hour")]
    for path in (path for path in RECIPES if path.stem in ("hopper", "antmaze")):
        config = load_config([path, *overlays])
        plain = load_config([path, overlays[1]])
        component = config.components["guidance"]
        assert component.cls is TemperedGuidance
        ours, others = component.spec["init_args"], plain.components["guidance"].spec["init_args"]
        assert {name: value for name, value in ours.items() if name in others} == others
        assert component(3, 2).net.highest_scale >= max(config.settings["evaluation"].scales)


def test_the_quickstart_sweep_trains(tmp_path: Path) -> None:
    path = SWEEPS / "quickstart.yaml"
    plan = make_plan(read_sweep(path), path.parent, parse_overrides(FEW_STEPS))
    assert len(plan.runs) == 6
    first, second = plan.runs[:2]
    assert share(plan.runs, {})[second.label] == Source(first.label, "critic", 3)
    assert main(["fit", *first.arguments, "--run_dir", str(tmp_path / "first")]) == 0
    reuse = ["--reuse", str(tmp_path / "first")]
    assert main(["fit", *second.arguments, *reuse, "--run_dir", str(tmp_path / "second")]) == 0
    for stage, taken in (("behavior", True), ("critic", True), ("guidance", False)):
        here, there = (tmp_path / run / stage / "final.ckpt" for run in ("first", "second"))
        assert here.samefile(there) == taken


def test_the_locomotion_sweep_is_that_of_the_paper() -> None:
    path = SWEEPS / "d4rl_locomotion.yaml"
    plan = make_plan(read_sweep(path), path.parent)
    runs = {(run.values["data.dataset"], run.values["seed"]) for run in plan.runs}
    tasks = [name for name, task in TASKS.items() if task.family == "locomotion" and name.endswith("-v2")]
    kinds = ("-medium", "-medium-replay", "-medium-expert")
    expected = [task for task in tasks if task.removesuffix("-v2").endswith(kinds) and not task.startswith("ant")]
    assert runs == {(task, seed) for task in expected for seed in range(5)}
    for robot in ("walker2d", "halfcheetah"):  # the recipe of one is that of all
        recipe = load_config([path.parent.parent / f"{robot}.yaml", path.parent.parent / "cpu_hour.yaml"])
        values = next(run.values for run in plan.runs if run.label == f"dataset={robot}-medium-expert-v2,seed=0")
        assert comparable(recipe.values, ()) == values


@pytest.mark.slow
@pytest.mark.skipif("D4RL_DATASET_DIR" not in os.environ, reason="needs the buffers of D4RL_DATASET_DIR")
@pytest.mark.parametrize("robot", ["hopper", "walker2d", "halfcheetah"])
def test_a_recipe_trains_on_a_real_buffer(robot: str, tmp_path: Path) -> None:
    dataset = f"{robot}-medium-expert-zoo"
    if not (Path(os.environ["D4RL_DATASET_DIR"]) / f"{dataset}.hdf5").exists():
        pytest.skip(f"{dataset} is not there")
    path = next(path for path in CONFIGS if path.stem == robot)
    arguments = ["fit", "--config", str(path), "--run_dir", str(tmp_path / "run"), *FEW_STEPS]
    assert main([*arguments, "--data.dataset", dataset]) == 0
    assert (tmp_path / "run" / "results.json").exists()
