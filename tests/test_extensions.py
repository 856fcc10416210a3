"""The extensions of docs/extending.md and of the tutorial of a critic, each one file next to a YAML, work unpatched."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cepdiff.cli import main
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import read_recipe
from cepdiff.runs.results import Results
from devices import NoWaiting, capture_steps
from docs_pages import EXTENDING, OWN_CRITIC, titled

RECIPE = """
data: {dataset: reacher-replay, normalize_observations: true, block_size: 5}
behavior: {batch_size: 8, net: {class_path: cepdiff.networks.score.MLPScore, init_args: {hidden: [8]}}}
critic: {batch_size: 8, net: {hidden: [8]}}
guidance: {batch_size: 8, net: {hidden: [8]}}
solver: {num_steps: 3}
stages:
  behavior: {max_steps: 10}
  support: {max_rows: 100, num_actions: 2}
  critic: {max_steps: 10}
  guidance: {max_steps: 10}
evaluation: {episodes: 2, scales: [0, 1, 2]}
trainer: {progress_bar: false}
"""
SKIPPED = "finished earlier, skipped"
TRUST = ("--trust_sources", ".")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with every example of the page and a small recipe; forgets the examples' modules afterwards."""
    for title, text in titled(EXTENDING, OWN_CRITIC).items():
        (tmp_path / title).write_text(text)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def arguments(extension: str, run: str, *more: str) -> list[str]:
    return ["fit", "--config", "recipe.yaml", "--config", f"{extension}.yaml", "--run_dir", run, *more]


def fit(extension: str, run: str, *more: str) -> int:
    """The command in this process."""
    return main(arguments(extension, run, *more))


def forget(name: str) -> None:
    """Forget an edited file's module, so that it is imported again as by a new command."""
    sys.modules.pop(name, None)


def weights(run: str, stage: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(Path(run) / stage / "final.ckpt", weights_only=True)["state_dict"]
    return found


def returns(path: str) -> dict[float, float]:
    return Results.read(Path(path)).values("mean_return")


# a critic with a second network


def test_both_networks_of_the_expectile_critic_move_at_the_first_step(here: Path) -> None:
    assert fit("my_iql", "one", "--stages.critic.max_steps", "1", "--data.block_size", "1") == 0
    assert fit("my_iql", "two", "--stages.critic.max_steps", "2", "--data.block_size", "1") == 0
    first, second = weights("one", "critic"), weights("two", "critic")
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    trained = {name for name in first if name.startswith(("net.", "value_net."))}
    assert any(name.startswith("value_net.") for name in trained)
    assert trained <= moved


def test_a_parameter_without_a_gradient_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here / "my_iql.py").read_text()
    (here / "my_iql.py").write_text(text.replace("loss = q_loss + value_loss", "loss = q_loss"))
    assert fit("my_iql", "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "value_net.joint" in line
    assert "which would never train" in line
    assert "ExpectileCritic.loss" in line
    assert not (here / "run" / "critic" / "final.ckpt").exists()


# on a GPU


@pytest.mark.parametrize("extension", ["my_iql", "my_critic", "my_distil"])
def test_its_steps_can_be_captured(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extension: str
) -> None:
    stage = "distil" if extension == "my_distil" else "critic"
    few = ("--distil_steps", "10", "--distil.batch_size", "8") if stage == "distil" else ()
    before = ("behavior", "support", "critic", "guidance")[: 2 if stage == "critic" else 4]
    for earlier in before:
        assert fit(extension, "run", *few, "--stage", earlier, "--trainer.accelerator", "cpu") == 0
    captures: list[str] = []

    def watched(step: Callable[[], None]) -> Callable[[], None]:
        step()  # the first call computes the solver's grid on the host
        with NoWaiting():
            step()
        captures.append(stage)
        return step

    capture_steps(monkeypatch, watched)
    assert fit(extension, "run", *few, "--stage", stage, "--trainer.accelerator", "cpu") == 0, capsys.readouterr().err
    assert captures == [stage]


# a sampler


def test_the_best_of_n_is_the_same_policy_in_every_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_sampler", "run", "--evaluation.every_n_steps", "5") == 0
    sys.path.remove(str(here))  # as in a new command
    forget("my_sampler")
    assert main(["evaluate", "run"]) == 2
    assert f"add --trust_sources {here}" in capsys.readouterr().err
    assert main(["evaluate", "run", *TRUST]) == 0
    assert returns("run/evaluation.json") == returns("run/results.json")
    assert fit("my_critic", "plain", "--critic.class_path", "cepdiff.SoftmaxQCritic") == 0
    assert returns("plain/results.json") != returns("run/results.json")

    policy = GuidedPolicy.from_run("run")
    assert type(policy.sampler).__name__ == "BestOfN"
    assert (policy.noise_size, policy.action_size) == (8, 2)
    observations, noise = torch.randn(5, 10), torch.randn(5, 8)
    chosen = policy.act(observations, noise=noise)
    states = policy.condition(observations)
    q, candidates = [], []
    for index in range(4):
        part = noise[:, 2 * index : 2 * index + 2]
        plain = super(type(policy.sampler), policy.sampler).sample(states, part, torch.ones(5))
        candidates.append(policy.in_bounds(plain))
        q.append(policy.sampler.networks["critic"](states, plain).amin(0))
    best = torch.stack(q).argmax(0)
    expected = torch.stack(candidates)[best, torch.arange(5)]
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=0)


def test_engines_and_export_keep_the_best_of_n(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert fit("my_sampler", "run") == 0
    assert main(["evaluate", "run", "--engine", "onnx", *TRUST]) == 0
    for scale, value in returns("run/results.json").items():
        assert returns("run/evaluation.json")[scale] == pytest.approx(value, rel=1e-3)
    assert main(["export", "run", "--format", "onnx", *TRUST]) == 0  # compares the file with the policy


def test_a_sampler_that_cannot_be_captured_is_refused_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_distil", "run", "--evaluation.engine", "onnx") == 2
    assert "the engine onnx cannot run OneStepSampler.sample" in capsys.readouterr().err
    assert not (here / "run").exists()


# an extra stage


def test_the_distilled_sampler_is_scored_resumed_skipped_and_reused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--distil_steps", "10", "--distil.batch_size", "8")
    assert fit("my_distil", "run", *few, "--stage", "distli") == 2
    assert "stages are behavior, support, critic, guidance, distil, evaluation" in capsys.readouterr().err
    assert fit("my_distil", "run", *few) == 0
    shown = capsys.readouterr()
    assert re.search(r"wall clock: behavior \d+ s, .*guidance \d+ s, distil \d+ s\n", shown.out)
    assert main(["evaluate", "run", *TRUST]) == 0
    assert returns("run/evaluation.json") == returns("run/results.json")
    policy = GuidedPolicy.from_run("run")
    student = policy.sampler.networks["student"]
    observations, noise = torch.randn(3, 10), torch.randn(3, 2)
    expected = policy.in_bounds(student(noise, policy.condition(observations)).detach())
    torch.testing.assert_close(policy.act(observations, guidance_scale=1.0, noise=noise), expected)
    assert not torch.equal(policy.act(observations, guidance_scale=2.0, noise=noise), expected)

    capsys.readouterr()
    assert fit("my_distil", "run", *few) == 0
    assert capsys.readouterr().err.count(SKIPPED) == 6
    assert fit("my_distil", "other", *few, "--reuse", "run", "--distil.scale", "2") == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().err.splitlines() if ": " in line)
    assert [said[name] == SKIPPED for name in ("behavior", "support", "critic", "guidance", "distil")] == [True] * 4 + [
        False
    ]
    assert fit("my_distil", "single", *few, "--reuse", "run", "--stage", "distil") == 0
    assert not (here / "single" / "results.json").exists()


@pytest.mark.slow
def test_a_killed_distillation_goes_on_to_the_same_weights(here: Path) -> None:
    long = (
        "--distil_steps", "2000", "--distil.batch_size", "8", "--evaluation.episodes", "0",
    )  # fmt: skip
    (here / "my_distil.py").write_text(
        (here / "my_distil.py").read_text().replace("StageSettings(self.distil_steps)", "StageSettings(2000, 50)")
    )
    for stage in ("behavior", "support", "critic", "guidance"):
        assert fit("my_distil", "broken", *long, "--stage", stage) == 0
    command = [sys.executable, "-m", "cepdiff", *arguments("my_distil", "broken", *long)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = here / "broken" / "distil" / "last.ckpt"
    for _ in range(2400):
        if last.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -9, output
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 2000
    assert fit("my_distil", "broken", *long) == 0
    assert fit("my_distil", "whole", *long) == 0
    first, second = weights("whole", "distil"), weights("broken", "distil")
    assert all(torch.equal(first[name], second[name]) for name in first)


# a new problem


def test_a_new_problem_trains_is_judged_and_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((here / "my_regression.py").read_text().splitlines()) < 120
    few = ["--data.num_inputs", "200", "--behavior.batch_size", "16", "--guidance.batch_size", "16"]
    for seed in ("0", "1"):
        command = [
            "fit",
            "--config",
            "my_regression.yaml",
            *few,
            "--steps",
            "20",
            "--run_dir",
            f"run{seed}",
            "--seed",
            seed,
        ]
        assert main(command) == 0
        shown = capsys.readouterr()
        assert "multiple" in shown.out
        assert "upper branch" in shown.out
        assert main(command) == 0
        assert capsys.readouterr().err.count(SKIPPED) == 3
    assert main(["report", "run0", "run1", *TRUST]) == 0
    shown = capsys.readouterr()
    assert "energy distance, x floor" in shown.out
    assert "standard deviation over the seeds" in shown.out
    assert (here / "report" / "two-branches-beta-3.png").stat().st_size > 1000
    facts = json.loads((here / "report" / "report.json").read_text())
    assert [run["seed"] for run in facts["runs"]] == [0, 1]
    policy = GuidedPolicy.from_run("run0")
    assert policy.act(np.zeros((4, 1), np.float32)).shape == (4, 1)


@pytest.mark.slow
def test_the_new_problem_learns_the_upper_branch(here: Path) -> None:
    assert main(["fit", "--config", "my_regression.yaml", "--run_dir", "run", "--trainer.progress_bar", "false"]) == 0
    upper = Results.read(here / "run" / "results.json").values("upper")
    assert upper[0.0] == pytest.approx(0.5, abs=0.1)
    assert upper[1.0] == pytest.approx(1 / (1 + np.exp(-3.0)), abs=0.06)  # beta is 3


# an edited class


def test_an_edited_class_is_made_from_something_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_iql", "run") == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    file = here / "my_iql.py"
    file.write_text(file.read_text().replace("expectile: float = 0.7", "expectile: float = 0.9"))
    forget("my_iql")
    capsys.readouterr()
    assert fit("my_iql", "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{Path('run') / 'critic'} was made from something else: my_iql.py changed" in line
    assert f"delete {Path('run') / 'critic'}, {Path('run') / 'guidance'} to make it again" in line
    assert {path: path.read_bytes() for path in before} == before
    assert fit("my_iql", "again", "--reuse", "run") == 0
    said = capsys.readouterr().err
    assert f"behavior: {SKIPPED}" in said
    assert "critic: running" in said


def test_an_edited_sampler_is_judged_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_sampler", "run") == 0
    file = here / "my_sampler.py"
    file.write_text(file.read_text().replace("argmax", "argmin"))
    forget("my_sampler")
    capsys.readouterr()
    before = returns("run/results.json")
    assert fit("my_sampler", "run") == 0
    said = capsys.readouterr().err
    assert said.count(SKIPPED) == 4
    assert "evaluation: running" in said
    assert returns("run/results.json") != before


def test_an_edited_problem_is_named_by_its_class(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--distil_steps", "10", "--distil.batch_size", "8")
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 0
    file, text = here / "my_distil.py", (here / "my_distil.py").read_text()
    file.write_text(text.replace('"""Regression of the guided', '"""Least squares of the guided'))  # a different class
    forget("my_distil")
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 0
    file.write_text(text.replace("= distil_steps", "= int(distil_steps)"))
    forget("my_distil")
    capsys.readouterr()
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 2
    assert "my_distil.py, class Distilled, changed" in capsys.readouterr().err


# results of an earlier state, and classes that would not be kept


HELPED = """
from my_helper import scale
from cepdiff import SoftmaxQCritic


class Helped(SoftmaxQCritic):
    def __init__(self, observation_size, action_size, source: str = "a", **options):
        super().__init__(observation_size, action_size, **options)

    def loss(self, batch, noise):
        loss, metrics = super().loss(batch, noise)
        return scale * loss, metrics
"""


def test_an_edited_helper_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_helped.py").write_text(HELPED)
    (here / "my_helper.py").write_text("scale = 1.0\n")
    (here / "my_helped.yaml").write_text("critic: {class_path: my_helped.Helped}\n")
    assert fit("my_helped", "run", "--stage", "behavior") == 0
    assert fit("my_helped", "run") == 0
    assert fit("my_helped", "run") == 0  # with an option called source
    (here / "my_helper.py").write_text("scale = 2.0\n")
    from cepdiff import components

    components._source.cache_clear()  # as in a new command
    capsys.readouterr()
    assert fit("my_helped", "run") == 2
    assert "critic was made from something else: my_helper.py changed" in capsys.readouterr().err


def test_results_of_an_earlier_state_are_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "run") == 0
    shutil.rmtree("run/guidance")
    assert fit("plain", "run", "--stage", "critic") == 0
    assert "energy" not in read_recipe("run")[0].networks  # there is no such network any more
    assert fit("plain", "run", "--guidance.learning_rate", "0.1", "--stage", "guidance") == 0
    assert not Path("run/results.json").exists()
    assert main(["report", "run"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_a_missing_policy_file_is_written_again(here: Path) -> None:
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "run") == 0
    before = Path("run/policy.pt").read_bytes()
    assert fit("plain", "run", "--stage", "behavior") == 0
    assert Path("run/policy.pt").read_bytes() == before
    Path("run/policy.pt").unlink()
    assert fit("plain", "run", "--stage", "behavior") == 0
    assert set(read_recipe("run")[0].networks) == {"behavior"}


OWN_POLICY = """
from cepdiff import GuidedPolicy, OfflineRL


class Still(GuidedPolicy):
    def act(self, *args, **options):
        return 0 * super().act(*args, **options)


class Own(OfflineRL):
    def policy(self):
        return Still(self.data.spec, self.sampler())


class Renamed(OfflineRL):
    pass
"""


def test_a_policy_that_would_not_be_kept_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_own.py").write_text(OWN_POLICY)
    (here / "my_own.yaml").write_text("problem: my_own.Own\n")
    assert fit("my_own", "run") == 2
    assert "Own.policy is not kept in policy.pt: override the sampler instead" in capsys.readouterr().err


def test_a_module_of_another_stage_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_stage.py").write_text(
        "from cepdiff import BehaviorDiffusion\n\n\nclass Prior(BehaviorDiffusion):\n    stage = 'prior'\n"
    )
    (here / "my_stage.yaml").write_text("behavior: {class_path: my_stage.Prior}\n")
    assert fit("my_stage", "run") == 2
    assert "behavior: Prior.stage is 'prior'; expected 'behavior'" in capsys.readouterr().err


def test_a_subclass_is_compared_with_its_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_own.py").write_text(OWN_POLICY)
    (here / "my_own.yaml").write_text("problem: my_own.Renamed\nseed: 1\n")
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "one") == 0
    assert fit("my_own", "two") == 0
    assert fit("plain", "three", "--reuse", "one", "--seed", "0", "--guidance.learning_rate", "0.1") == 0
    said = capsys.readouterr().err
    assert "guidance: not taken over from one: guidance.learning_rate was 0.0003, now 0.1" in said
    assert main(["report", "one", "two", "--output", "report"]) == 0
    section = json.loads(Path("report/report.json").read_text())["sections"][0]
    assert [row["seed"] for row in section["rows"]] == [0, 1]
    assert Results.read(Path("one/results.json")).made_from["support_checkpoint"]
