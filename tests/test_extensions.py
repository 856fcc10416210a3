"""The extensions of docs/extending.md and of the tutorial of a critic, each one file next to a YAML, work unpatched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cepdiff.cli import main
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.runs.results import Results
from devices import NoWaiting, capture_steps
from extension_runs import SKIPPED, TRUST, arguments, fit, forget, returns, weights

pytest_plugins = ("extension_runs",)  # the fixture `here`


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
