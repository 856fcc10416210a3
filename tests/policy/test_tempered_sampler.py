"""Samplers whose energy network takes the guidance scale: samples at each scale, files, export and engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small_policy import BEHAVIOR, ENERGY, RECIPE, SPEC, A, S, make, normal, parts, save
from torch import Tensor

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.energy.objectives import CEP, DPS, EnergyObjective
from cepdiff.errors import ConfigError
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.tempered import Tempered, at_scale
from cepdiff.policy.engines import CapturedPolicy, OnnxPolicy
from cepdiff.policy.export.check import load
from cepdiff.policy.export.graph import torch_file, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler, SamplerParts

RANGE = {"lowest_scale": 0.5, "highest_scale": 4.0}
SPECIFICATION = {"class_path": "cepdiff.networks.tempered.Tempered", "init_args": {"net": ENERGY, **RANGE}}
RECIPE_TEMPERED = replace(RECIPE, networks={"behavior": BEHAVIOR, "energy": SPECIFICATION})


def tempered_parts(objective: EnergyObjective | None = None) -> SamplerParts:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Tempered(S, A, partial(EnergyMLP, hidden=[16, 8]), **RANGE)
        net.net.net.rest[-1].weight.data.mul_(20.0)
    found = parts()
    return replace(found, networks={**found.networks, "energy": net}, objective=objective or CEP())


def policy(objective: EnergyObjective | None = None) -> GuidedPolicy:
    return GuidedPolicy(SPEC, GuidedSampler(tempered_parts(objective)))


@pytest.mark.parametrize("objective", [CEP(), DPS()])
@pytest.mark.parametrize("static", [False, True])
def test_the_network_gets_the_scale_and_its_gradient_is_not_multiplied(
    objective: EnergyObjective, static: bool
) -> None:
    """Each row is that of a plain network that is exact at the row's scale, guided at scale 1."""
    sampler = GuidedSampler(tempered_parts(objective))
    states, noise = normal(8, S), 0.1 * normal(8, A, seed=1)  # most samples are then within the bounds
    scales = torch.tensor([0.0, 0.5, 1.0, 4.0] * 2)
    found = sampler.sample(states, noise, scales, static=static)
    for scale in scales.unique().tolist():
        rows = scales == scale
        net = sampler.networks["energy"]
        plain = GuidedSampler(replace(tempered_parts(objective), networks={
            "behavior": sampler.networks["behavior"], "energy": Fixed(at_scale(net, scale)),
        }))  # fmt: skip
        expected = plain.sample(states[rows], noise[rows], torch.full((2,), float(scale > 0)))
        torch.testing.assert_close(found[rows], expected, rtol=0.0, atol=1e-5)
    unguided = make().sampler.sample(states[scales == 0], noise[scales == 0])
    torch.testing.assert_close(found[scales == 0], unguided, rtol=0.0, atol=1e-6)
    others = sampler.sample(states, noise, scales.flip(0))
    assert int(((found - others).abs().amax(-1) > 1e-2).sum()) >= 2


class Fixed(torch.nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.function(x, t, condition)


@pytest.mark.parametrize("objective", [CEP(), DPS()])
def test_logits_are_those_of_scale_one(objective: EnergyObjective) -> None:
    """The logits are called as in diagnostics and in a user's own sampler."""
    sampler = GuidedSampler(tempered_parts(objective))
    x, states, t = normal(5, A), normal(5, S, seed=1), torch.tensor(0.3)
    assert sampler.logits is not None
    gradient = logits_gradient(sampler.logits, x, t, states)
    assert gradient.shape == x.shape
    if not objective.on_clean:
        expected = logits_gradient(at_scale(sampler.networks["energy"], 1.0), x, t, states)
        assert torch.equal(gradient, expected)


def test_unguided_samples_need_no_scale() -> None:
    sampler = GuidedSampler(tempered_parts())
    states, noise = normal(4, S), normal(4, A, seed=1)
    behavior = sampler.networks["behavior"]
    with torch.no_grad():
        expected = sample_guided(behavior, sampler.schedule, sampler.solver, states, noise, data_bound=1.0)
    assert torch.equal(sampler.sample(states, noise), expected)


def test_a_scale_beyond_the_trained_ones_is_refused_by_every_way_to_act() -> None:
    observations, noise = normal(2, S), normal(2, A, seed=1)
    captured = CapturedPolicy(policy(), lambda step: step)
    for act in (policy().act, captured.act):
        with pytest.raises(ConfigError, match=r"guidance scale 4\.1 is above 4, the highest"):
            act(observations, guidance_scale=torch.tensor([1.0, 4.1]), noise=noise)
        assert act(observations, guidance_scale=0.01, noise=noise).shape == (2, A)


def test_a_policy_file_keeps_the_network_and_its_range(tmp_path: Path) -> None:
    save(policy(), tmp_path, RECIPE_TEMPERED)
    loaded = GuidedPolicy.from_run(tmp_path)
    net = loaded.sampler.tempered
    assert net is not None
    assert (net.lowest_scale, net.highest_scale) == (0.5, 4.0)
    observations, noise, scales = normal(6, S), normal(6, A, seed=1), torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    found = loaded.act(observations, guidance_scale=scales, noise=noise)
    assert torch.equal(found, policy().act(observations, guidance_scale=scales, noise=noise))


def test_an_exported_file_takes_the_scale() -> None:
    """Scales beyond the range give NaN, because an exported file cannot raise."""
    made = policy()
    file = load(torch_file(trace(made, "noise")), "torch")
    observations, noise, scales = normal(4, S), 0.1 * normal(4, A, seed=1), torch.tensor([0.0, 0.1, 1.0, 4.0])
    found = file({"observations": observations, "guidance_scale": scales, "noise": noise})
    expected = made.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=4e-5)
    beyond = file({"observations": observations, "guidance_scale": scales * 1.1, "noise": noise})
    assert beyond.isnan().all(-1).tolist() == [False, False, False, True]


def test_onnxruntime_runs_it() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = policy()
    engine = OnnxPolicy(made)
    observations, noise, scales = normal(4, S), normal(4, A, seed=1), torch.tensor([0.0, 0.1, 1.0, 4.0])
    found = engine.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(found, made.act(observations, guidance_scale=scales, noise=noise), rtol=0.0, atol=4e-5)
    with pytest.raises(ConfigError, match="guidance scale 5 is above 4"):
        engine.act(observations, guidance_scale=5.0, noise=noise)
