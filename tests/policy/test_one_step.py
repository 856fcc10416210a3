"""The one-step sampler: in one policy file with the run's sampler, in every engine, and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_policy import RECIPE, SPEC, A, S, make, normal, parts
from torch import nn

from cepdiff.api import load_policy
from cepdiff.errors import ConfigError, RunError
from cepdiff.networks.one_step import OneStepNet
from cepdiff.policy.engines import CapturedPolicy, OnnxPolicy
from cepdiff.policy.export.check import check, load
from cepdiff.policy.export.graph import torch_file, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.one_step import OneStep
from cepdiff.policy.recipe import POLICY_FILE, write_recipe
from cepdiff.policy.sampler import is_static

Z, MAX_SCALE = 5, 2.0
NET = {"class_path": "cepdiff.networks.one_step.OneStepNet", "init_args": {"noise_size": Z, "width": 16, "depth": 1}}
SAMPLER = {"class_path": "cepdiff.policy.one_step.OneStep", "init_args": {"noise_size": Z, "max_scale": MAX_SCALE}}
DISTILLED = replace(RECIPE, networks={**RECIPE.networks, "one_step": NET}, one_step=SAMPLER)


def student() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return OneStepNet(S, A, Z, width=16, depth=1)


def one_step() -> GuidedPolicy:
    networks = {**parts().networks, "one_step": student()}
    return GuidedPolicy(SPEC, OneStep(replace(parts(), networks=networks), Z, MAX_SCALE))


def save(folder: Path) -> None:
    write_recipe(folder / POLICY_FILE, DISTILLED, {**parts().networks, "one_step": student()})


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normal(rows, S), normal(rows, Z, seed=1), torch.arange(rows).remainder(3) * 0.7


def test_it_is_one_evaluation_of_its_network() -> None:
    policy = one_step()
    observations, noise, scales = inputs(6)
    expected = policy.in_bounds(student()(noise, policy.condition(observations), scales).detach())
    torch.testing.assert_close(policy.act(observations, guidance_scale=scales, noise=noise), expected)
    assert policy.sampler.networks.keys() == {"one_step"}
    assert (policy.noise_size, policy.sampler.solver.num_steps) == (Z, 1)
    unguided = policy.sampler.sample(policy.condition(observations), noise)
    torch.testing.assert_close(unguided, policy.sampler.sample(policy.condition(observations), noise, torch.zeros(6)))


def test_both_samplers_come_from_one_file(tmp_path: Path) -> None:
    save(tmp_path)
    observations, noise, scales = inputs(6)
    for policy in (GuidedPolicy.from_run(tmp_path, one_step=True), load_policy(tmp_path, one_step=True)):
        assert type(policy.sampler) is OneStep
        assert policy.recipe == DISTILLED
        found = policy.act(observations, guidance_scale=scales, noise=noise)
        assert torch.equal(found, one_step().act(observations, guidance_scale=scales, noise=noise))
    usual, noise = GuidedPolicy.from_run(tmp_path), normal(6, A)
    assert usual.sampler.networks.keys() == {"behavior", "energy"}
    found = usual.act(observations, guidance_scale=scales, noise=noise)
    assert torch.equal(found, make().act(observations, guidance_scale=scales, noise=noise))
    assert type(GuidedPolicy.from_run(tmp_path, one_step=True).on("meta").sampler) is OneStep


def test_a_network_that_does_not_bound_its_actions_is_bounded() -> None:
    class Large(nn.Module):
        def forward(self, noise: torch.Tensor, condition: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return noise[:, :A] * 100.0

    sampler = OneStep(replace(parts(), networks={"one_step": Large()}), Z, MAX_SCALE)
    assert torch.equal(sampler.sample(normal(4, S), normal(4, Z)), normal(4, Z)[:, :A].sign())


def test_it_is_captured_and_exported() -> None:
    policy = one_step()
    assert is_static(policy.sampler.sample)
    captured = CapturedPolicy(policy, capture=lambda step: step)
    observations, noise, scales = inputs(3)
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(captured.act(observations, guidance_scale=scales, noise=noise), expected)
    sampler = trace(policy, "noise")
    assert sampler.metadata["num_solver_steps"] == 1
    assert sampler.metadata["inputs"]["noise"]["shape"] == ["B", Z]
    result = check(policy, load(torch_file(sampler), "torch"), list(sampler.inputs))
    assert result.passed
    assert list(result.differences) == [0.0, 1.0]  # it was not trained at 3


def test_onnxruntime_runs_it() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy = one_step()
    observations, noise, scales = inputs(6)
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(OnnxPolicy(policy).act(observations, guidance_scale=scales, noise=noise), expected)


# Refusals


@pytest.mark.parametrize("wrap", [lambda policy: policy, lambda policy: CapturedPolicy(policy, lambda step: step)])
def test_larger_scales_than_it_was_trained_at(wrap: Callable[[GuidedPolicy], GuidedPolicy]) -> None:
    observations, noise, _ = inputs(3)
    policy = wrap(one_step())
    policy.act(observations, guidance_scale=torch.tensor([0.0, 1.0, MAX_SCALE]), noise=noise)
    with pytest.raises(RunError, match=r"guidance scale 2.5 is above 2, the largest .* trained at: use a smaller one"):
        policy.act(observations, guidance_scale=torch.tensor([0.0, 2.5, 1.0]), noise=noise)
    assert make().sampler.max_scale == math.inf


def test_a_policy_without_it(tmp_path: Path) -> None:
    write_recipe(tmp_path / POLICY_FILE, RECIPE, parts().networks)
    with pytest.raises(RunError, match=r"policy.pt has no one-step network: .*--stages.distillation.max_steps N"):
        GuidedPolicy.from_run(tmp_path, one_step=True)


def test_it_has_no_solver(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(ConfigError, match="num_solver_steps is 5, but one step has no solver"):
        GuidedPolicy.from_run(tmp_path, num_solver_steps=5, one_step=True)
