"""SWEEP.yaml: which runs it means, what they take from each other, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError, RunError
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.runs.folder import held
from cepdiff.sweeps.plan import (
    Plan,
    PlannedRun,
    Source,
    in_words,
    label_of,
    make_plan,
    share,
    short_names,
    stage_hashes,
)
from cepdiff.sweeps.presets import PRESETS
from cepdiff.sweeps.settings import SweepSettings, products, read_sweep
from cepdiff.sweeps.state import WAITING, SweepFolder

RECIPE = "data: {dataset: reacher-replay}\nstages: {behavior: {max_steps: 3}}\n"


def plan_of(folder: Path, text: str, overrides: tuple[str, ...] = ()) -> Plan:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "sweep.yaml").write_text(f"configs: [recipe.yaml]\n{text}")
    return make_plan(read_sweep(folder / "sweep.yaml"), folder, overrides)


def test_all_combinations_with_their_configurations(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "axes: {seed: [0..1], critic.discount: [0.9, 0.99]}", ("critic.tau=0.5",))
    assert [run.label for run in plan.runs] == [
        f"seed={seed},discount={discount}" for seed in (0, 1) for discount in (0.9, 0.99)
    ]
    values = plan.runs[3].values
    found = [values[key] for key in ("seed", "critic.discount", "critic.tau", "stages.behavior.max_steps")]
    assert found == [1, 0.99, 0.5, 3]
    assert plan.axes == {"seed": [0, 1], "critic.discount": [0.9, 0.99]}
    assert "--trainer.num_threads=1" in plan.runs[0].arguments
    assert plan.recipe["critic"] == {"tau": 0.5}


def test_several_products_one_after_the_other(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, "axes:\n- {seed: [0], guidance.objective: [MSE]}\n- {seed: [0, 1], critic.discount: [0.9]}"
    )
    assert [run.label for run in plan.runs] == ["seed=0,objective=MSE", "seed=0,discount=0.9", "seed=1,discount=0.9"]
    assert plan.axes["seed"] == [0, 1]


def test_presets_name_tasks() -> None:
    assert products({"data.dataset": "d4rl-locomotion"})[0]["data.dataset"] == PRESETS["d4rl-locomotion"]
    assert {name: len(tasks) for name, tasks in PRESETS.items()} == {
        "d4rl-locomotion": 9, "d4rl-antmaze": 6, "d4rl-maze2d": 3, "d4rl-kitchen": 3, "d4rl-adroit": 12
    }  # fmt: skip
    assert all(
        task in TASKS and not TASKS[task].note.startswith("deprecated") for tasks in PRESETS.values() for task in tasks
    )


# --- what runs take from each other -----------------------------------------------------------------------------------


def shared(plan: Plan, **finished: int) -> dict[str, tuple[str, str]]:
    return {label: (found.label, found.stage) for label, found in share(plan.runs, finished).items()}


FIRST_DIFFERENCE = {  # key -> the last stage that two runs have in common that differ in it
    "evaluation.episodes": "guidance",
    "guidance.learning_rate": "critic",
    "critic.energy_unit": "critic",
    "critic.discount": "support",
    "data.reward_rule": "support",
    "data.critic_rows": "support",
    "solver.num_steps": "behavior",
    "behavior.batch_size": None,
    "trainer.precision": None,
    "data.dataset": None,
    "seed": None,
}


def test_runs_have_the_stages_before_their_first_difference_in_common(tmp_path: Path) -> None:
    (run,) = plan_of(tmp_path, "axes: {seed: [0]}").runs
    assert set(FIRST_DIFFERENCE) <= set(run.values)
    found = {}
    for key in FIRST_DIFFERENCE:
        other = stage_hashes({**run.values, key: "another"}, OfflineRL)
        common = [stage for stage, digest in run.stages.items() if digest == other[stage]]
        found[key] = common[-1] if common else None
    assert found == FIRST_DIFFERENCE
    assert list(run.stages) == ["behavior", "support", "critic", "guidance"]  # there is no distillation by default


def test_the_deepest_common_stages_come_from_the_first_run_that_has_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "axes: {critic.tau: [0.1, 0.2], evaluation.episodes: [1, 2]}")
    a, b, c, d = (run.label for run in plan.runs)
    assert shared(plan) == {b: (a, "guidance"), c: (a, "support"), d: (c, "guidance")}


def test_a_run_that_has_finished_stages_makes_them_for_the_others() -> None:
    runs = [PlannedRun(label, {}, [], {}, frozenset(), {"behavior": "x", "critic": "y"}) for label in "abc"]
    assert share(runs, {"b": 1}) == {"a": Source("b", "critic", 2), "c": Source("b", "critic", 2)}


def test_a_density_shares_its_prior(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {class_path: cepdiff.EnergyDataModule, dataset: moons}")
    sweep = SweepSettings({"guidance.objective.inverse_temperature": [1.0, 3.0]}, ["recipe.yaml"])
    plan = make_plan(sweep, tmp_path)
    assert shared(plan) == {plan.runs[1].label: (plan.runs[0].label, "behavior")}


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_names_of_files() -> None:
    assert in_words("hopper-medium-v2") == "hopper-medium-v2"
    assert in_words(1e-4) == "0.0001"
    assert in_words("a/data.hdf5") != in_words("b/data.hdf5")
    assert in_words("a/data.hdf5").startswith("data.hdf5-")
    assert in_words("..") not in (".", "..")
    assert "/" not in in_words("../../etc/passwd")
    assert in_words("") != ""
    assert in_words([0, 1]).startswith("0-1-")
    assert in_words("é") != in_words("è")
    assert short_names(["critic.net.hidden", "guidance.net.hidden", "seed"]) == {
        "critic.net.hidden": "critic.net.hidden", "guidance.net.hidden": "guidance.net.hidden", "seed": "seed"
    }  # fmt: skip
    long = [
        label_of({f"k{i}": "x" * 50 for i in range(9)} | {"k8": end}, {f"k{i}": f"k{i}" for i in range(9)})
        for end in "ab"
    ]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 150


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axes: {critic.dicount: [0.9]}", r"run dicount=0\.9: .*Did you mean discount"),
        ("axes: {critc.discount: [0.9]}", "Did you mean critic"),
        ("axes: {critic.discount: [0.9, 1.5]}", r"run discount=1\.5: critic\.discount is 1\.5"),
        ("axes: {seed: [0, 1], seed: [2]}", "duplicate key seed"),
        ("axes: {critic.discount: [0.9], critic.init_args.discount: [0.8]}", r"two axes set critic\.discount"),
        ("axes: {guidance.objective: [CEP], guidance.objective.inverse_temperature: [1]}", "two axes set guidance"),
        ("axes: {seed: [1, 2, 1]}", "seed has the value 1 twice"),
        ("axes: [{seed: [1]}, {seed: [0, 1]}]", "the runs seed=1 and seed=1 are the same"),
        ("axes: {seed: []}", "axis seed is .*expected a list of values"),
        ("axes: {seed: 3}", "axis seed is 3; expected a list of values"),
        ("axes: {critic: {discount: [0.9]}}", "axis critic is .*expected a list of values"),
        ("axes: {data.dataset: d4rl-locomotoin}", "no preset 'd4rl-locomotoin'. Did you mean d4rl-locomotion"),
        ("axes: {seed: [4..0]}", "the range 4..0 has 0 values"),
        ("axes: {}", "expected dotted keys with lists"),
        ("axes: {run_dir: [a]}", "axis run_dir: the sweep sets it itself"),
        ("seed: [0]", "axes is missing"),
        ("axes: {seed: [0]}\nengin: ray", "engin is unknown. Did you mean engine"),
        ("axes: {seed: [0]}\nengine: pbs", "engine is 'pbs'; expected local or ray or slurm"),
        ("axes: {seed: [0]}\nresources: {cpus: 0}", "resources.cpus is 0"),
        ("axes: {seed: [0]}\nresources: {gpus: 1.5}", "expected a fraction of one"),
        ("axes: {seed: [0]}\nconfigs: [absent.yaml]", "there is no configuration file .*absent.yaml"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    configs = "" if "configs" in text else "configs: [recipe.yaml]\n"
    (tmp_path / "sweep.yaml").write_text(configs + text)
    with pytest.raises(ConfigError, match=expected):
        make_plan(read_sweep(tmp_path / "sweep.yaml"), tmp_path)


def test_an_option_must_not_be_an_axis(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--critic\.tau is an axis"):
        plan_of(tmp_path, "axes: {critic.tau: [0.1]}", ("critic.init_args.tau=0.2",))


# --- folders ----------------------------------------------------------------------------------------------------------


def small_plan(seeds: list[int], steps: int = 3) -> Plan:
    """A plan without configurations."""
    runs = [PlannedRun(f"seed={seed}", {"seed": seed}, [], {}, frozenset(), {}) for seed in seeds]
    return Plan({"stages": {"behavior": {"max_steps": steps}}}, {"seed": seeds}, runs)


def test_a_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    folder, plan = SweepFolder(tmp_path / "sweep"), small_plan([0, 1])
    folder.check(plan)
    folder.write(plan, {run.label: WAITING for run in plan.runs})
    before = folder.record.read_text()
    folder.check(small_plan([2, 1, 0]))  # more values are the same sweep
    with pytest.raises(RunError, match="it has a run seed=1, and the axes do not"):
        folder.check(small_plan([0, 3]))
    with pytest.raises(RunError, match=r"another sweep: stages\.behavior\.max_steps was 3, now 4"):
        folder.check(small_plan([0, 1], steps=4))
    assert folder.record.read_text() == before
    folder.record.write_text("{")
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        folder.check(plan)


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    plan = small_plan([0])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    with pytest.raises(RunError, match=r"no folder of a sweep \(it holds chapter.tex\)"):
        SweepFolder(tmp_path / "thesis").check(plan)
    with pytest.raises(RunError, match="is a file"):
        SweepFolder(tmp_path / "thesis" / "chapter.tex").check(plan)


def test_two_commands_never_work_in_one_folder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    with (
        held(folder.path),
        pytest.raises(RunError, match="another command is working"),
        held(tmp_path / "sweep"),
    ):
        pass


def test_sweep_json_says_which_runs_there_are(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    folder.write(small_plan([0]), {"seed=0": "finished"})
    assert json.loads(folder.record.read_text()) == {
        "format": 1,
        "recipe": {"stages": {"behavior": {"max_steps": 3}}},
        "axes": {"seed": [0]},
        "runs": [{"label": "seed=0", "folder": "runs/seed=0", "settings": {"seed": 0}, "status": "finished"}],
    }
