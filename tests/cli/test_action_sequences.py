"""A run whose networks see several consecutive actions as one: trained, judged, loaded, captured and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cepdiff.cli import main
from cepdiff.policy.engines import CapturedPolicy
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.runs.results import Results

SEQUENCES = ("--data.action_steps", "3", "--critic.num_steps", "3", "--stages.distillation.max_steps", "5")
ONE_STEP = ("--distillation.net.width", "8", "--distillation.net.depth", "1", "--distillation.batch_size", "8")


@pytest.fixture(scope="module")
def run(finished_run: tuple[Path, Path]) -> Path:
    config, plain = finished_run
    folder = plain.with_name("sequences")
    assert main(["fit", "--config", str(config), "--run_dir", str(folder), *SEQUENCES, *ONE_STEP]) == 0
    return folder


def test_the_policy_takes_the_first_action_of_a_sequence(run: Path) -> None:
    policy = GuidedPolicy.from_run(run)
    assert (policy.action_size, policy.noise_size) == (1, 3)
    observations, noise, scale = torch.randn(6, 4), torch.randn(6, 3), torch.ones(6)
    actions = policy.act(observations, guidance_scale=scale, noise=noise)
    sequences = policy.sampler.sample(policy.condition(observations), noise, scale)
    assert sequences.shape == (6, 3)
    torch.testing.assert_close(actions, (3.0 * sequences[:, :1]).clamp(-3.0, 3.0))
    captured = CapturedPolicy(policy, capture=lambda step: step)
    torch.testing.assert_close(captured.act(observations, guidance_scale=scale, noise=noise), actions)
    distilled = GuidedPolicy.from_run(run, one_step=True)
    assert distilled.act(observations, guidance_scale=1.0, noise=noise).shape == (6, 1)


def test_it_is_judged_and_exported(run: Path, tmp_path: Path) -> None:
    assert {row.scale for row in Results.read(run / "results.json").rows if row.metric == "episodes"} == {0.0, 1.0}
    path = tmp_path / "policy.pt2"
    assert main(["export", str(run), "--format", "torch", "--output", str(path), "--randomness", "noise"]) == 0


def test_another_length_is_another_run(
    run: Path, finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", str(finished_run[0]), "--run_dir", str(run), *SEQUENCES, *ONE_STEP]
    assert main([*arguments, "--data.action_steps", "2"]) == 2
    assert "behavior" in capsys.readouterr().err.splitlines()[-1]
