"""A user's samplers and policies: which engines run them, which refuse them, and what a policy file stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policy import RECIPE, SPEC, A, S, normal, parts, save
from torch import Tensor

from cepdiff.components import class_path_of
from cepdiff.errors import ConfigError, DataError, RunError
from cepdiff.networks.critic import QEnsemble
from cepdiff.policy.engines import CapturedPolicy, OnnxPolicy, own_method, require_engine, run_by
from cepdiff.policy.export.check import TOLERANCE, load
from cepdiff.policy.export.graph import torch_file, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler, SamplerParts, is_static
from devices import same

CRITIC = {"class_path": "cepdiff.networks.critic.QEnsemble", "init_args": {"hidden": [8]}}
SAMPLED = {"class_path": "cepdiff.policy.sampler.GuidedSampler", "init_args": {}}


class Plain(GuidedSampler):
    """Its `sample` has no `static` argument: it reads values."""

    def sample(  # type: ignore[override]
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None
    ) -> Tensor:
        return -super().sample(condition, noise, guidance_scale) if float(noise.sum()) > 0 else torch.zeros_like(noise)


class Halved(GuidedPolicy):
    """Replaces `act` itself."""

    def act(self, observations: Any, **options: Any) -> Any:
        return 0.5 * super().act(observations, **options)


class BestOf(GuidedSampler):
    """The sample that the critics value most, out of several.

    Args:
        parts: as in `GuidedSampler`.
        candidates: how many.
    """

    needs = ("behavior", "energy", "critic")

    def __init__(self, parts: SamplerParts, candidates: int = 2) -> None:
        super().__init__(parts)
        self.candidates = candidates

    @property
    def noise_size(self) -> int:
        return self.size * self.candidates

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        condition = self.repeated(condition)  # (B, S) -> (B N, S)
        scale = None if guidance_scale is None else self.repeated(guidance_scale.unsqueeze(-1)).squeeze(-1)
        samples = super().sample(condition, noise.reshape(-1, self.size), scale, static=static)  # (B N, A)
        values = self.networks["critic"](condition, samples).amin(0).reshape(-1, self.candidates)  # (B, N)
        best = values.argmax(-1)[:, None, None].expand(-1, 1, self.size)  # (B, 1, A)
        return samples.reshape(-1, self.candidates, self.size).gather(1, best).squeeze(1)

    def repeated(self, rows: Tensor) -> Tensor:
        """Each row once per candidate."""
        return rows.unsqueeze(1).expand(-1, self.candidates, -1).reshape(-1, rows.shape[-1])


def with_critic(energy: bool = True) -> SamplerParts:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        critic = QEnsemble(S, A, hidden=[8])
    return replace(parts(energy), networks={**parts(energy).networks, "critic": critic})


def best_of(candidates: int = 3, energy: bool = True) -> GuidedPolicy:
    return GuidedPolicy(SPEC, BestOf(with_critic(energy), candidates))


def inputs(rows: int, noise_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, noise, and scales, every other one 0."""
    return normal(rows, S), normal(rows, noise_size, seed=1), torch.arange(rows).remainder(2) * 1.5


# Samplers that only torch can run

ONLY_TORCH = {
    "sample": (lambda: GuidedPolicy(SPEC, Plain(parts())), r"Plain\.sample, which takes no `static`"),
    "act": (lambda: Halved(SPEC, GuidedSampler(parts())), r"Halved\.act, which replaces GuidedPolicy\.act"),
}
only_torch = pytest.mark.parametrize(("make", "named"), ONLY_TORCH.values(), ids=list(ONLY_TORCH))


@only_torch
@pytest.mark.parametrize("engine", ["onnx", "cuda_graph"])
def test_engines_refuse_it_in_one_line(make: Callable[[], GuidedPolicy], named: str, engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    policy = make()
    policy.device = torch.device("cuda" if engine == "cuda_graph" else "cpu")  # refused before anything runs there
    with pytest.raises(ConfigError, match=f"the engine {engine} cannot run {named}: use the engine torch$") as refused:
        run_by(policy, engine)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=named):  # also before a run is trained
        require_engine(engine, policy.device, own_method(policy.sampler.sample, type(policy).act))


@only_torch
def test_export_refuses_it_in_one_line(make: Callable[[], GuidedPolicy], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"{named.split(',')[0]} cannot be exported") as refused:
        trace(make())
    assert "\n" not in str(refused.value)


@only_torch
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_engine_runs_it_as_it_is(make: Callable[[], GuidedPolicy], named: str, device: str) -> None:
    """On a GPU too, where other policies are captured."""
    policy = make()
    policy.device = torch.device(device)
    assert run_by(policy) is policy
    assert run_by(policy, "torch") is policy
    usual = GuidedPolicy(SPEC, GuidedSampler(parts()))
    usual.device = policy.device
    assert isinstance(run_by(usual), CapturedPolicy if device == "cuda" else GuidedPolicy)


def test_it_acts_by_its_own_method() -> None:
    observations, noise, scales = inputs(6, A)
    usual = GuidedPolicy(SPEC, GuidedSampler(parts()))
    expected = usual.sampler.sample(usual.condition(observations), noise.abs(), scales)
    plain = GuidedPolicy(SPEC, Plain(parts()))
    found = plain.act(observations, guidance_scale=scales, noise=noise.abs())
    torch.testing.assert_close(found, plain.in_bounds(-expected))
    found = plain.act(observations, guidance_scale=scales, noise=-noise.abs())
    torch.testing.assert_close(found, plain.in_bounds(torch.zeros(6, A)))
    halved = Halved(SPEC, GuidedSampler(parts())).act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(halved, 0.5 * usual.act(observations, guidance_scale=scales, noise=noise))
    assert isinstance(Halved(SPEC, GuidedSampler(parts())).on("meta"), Halved)
    assert (is_static(plain.sampler.sample), is_static(usual.sampler.sample)) == (False, True)


# More noise than one sample has


def test_the_best_of_several_by_hand() -> None:
    policy, usual = best_of(3), GuidedPolicy(SPEC, GuidedSampler(parts()))
    assert (policy.action_size, policy.noise_size) == (A, 3 * A)
    observations, noise, scales = inputs(8, 3 * A)
    found = policy.act(observations, guidance_scale=scales, noise=noise)
    assert found.shape == (8, A)
    condition = policy.condition(observations)
    critic = policy.sampler.networks["critic"]
    taken = set()
    for row in range(8):
        states, scale = condition[row].expand(3, -1), scales[row].expand(3)
        some = usual.sampler.sample(states, noise[row].reshape(3, A), scale)
        best = int(critic(states, some).amin(0).argmax())
        taken.add(best)
        torch.testing.assert_close(found[row], policy.in_bounds(some[best]), rtol=1e-4, atol=1e-5)
    assert len(taken) > 1


def test_its_noise_is_drawn_and_checked() -> None:
    policy, observations = best_of(3), normal(4, S)
    first, second = (policy.act(observations, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    drawn = torch.randn(4, 3 * A, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, policy.act(observations, noise=drawn))
    single = policy.act(observations[0].numpy(), noise=drawn[0])
    assert isinstance(single, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(single), first[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match=r"noise of shape \(4, 2\); expected \(4, 6\)"):
        policy.act(observations, noise=normal(4, A))


def test_a_policy_file_keeps_its_class_options_and_networks(tmp_path: Path) -> None:
    policy = best_of(4)
    sampler = {"class_path": class_path_of(BestOf), "init_args": {"candidates": 4}}
    recipe = replace(RECIPE, sampler=sampler, networks={**RECIPE.networks, "critic": CRITIC})
    save(policy, tmp_path, recipe)
    loaded = GuidedPolicy.from_run(tmp_path)
    assert type(loaded.sampler) is BestOf
    assert loaded.sampler.candidates == 4
    assert loaded.recipe == recipe
    assert loaded.noise_size == 4 * A
    assert loaded.sampler.networks.keys() == {"behavior", "energy", "critic"}
    for name, net in policy.sampler.networks.items():
        for key, value in net.state_dict().items():
            assert torch.equal(loaded.sampler.networks[name].state_dict()[key], value)
    observations, noise, scales = inputs(6, 4 * A)
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    assert torch.equal(loaded.act(observations, guidance_scale=scales, noise=noise), expected)
    moved = loaded.on("meta")
    assert type(moved.sampler) is BestOf
    assert moved.noise_size == 4 * A


def test_a_sampler_keeps_only_the_networks_that_it_needs(tmp_path: Path) -> None:
    assert GuidedSampler(with_critic()).networks.keys() == {"behavior", "energy"}
    save(best_of(), tmp_path, replace(RECIPE, networks={**RECIPE.networks, "critic": CRITIC}, sampler=SAMPLED))
    assert GuidedPolicy.from_run(tmp_path).sampler.networks.keys() == {"behavior", "energy"}


def test_before_guidance_it_acts_at_scale_0() -> None:
    policy = best_of(3, energy=False)
    observations, noise, scales = inputs(3, 3 * A)
    expected = best_of(3).act(observations, guidance_scale=0.0, noise=noise)
    assert torch.equal(policy.act(observations, guidance_scale=0.0, noise=noise), expected)
    with pytest.raises(RunError, match="no energy network yet"):
        policy.act(observations, guidance_scale=scales, noise=noise)


def acts_alike(policy: GuidedPolicy, other: Any, rows: int, tolerance: float) -> None:
    observations, noise, scales = inputs(rows, policy.noise_size)
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    actions = other.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(actions, expected, rtol=tolerance, atol=tolerance)


def test_it_is_captured_and_exported_alike() -> None:
    policy = best_of(3)
    captured = CapturedPolicy(policy, capture=same)
    assert (captured.action_size, captured.noise_size) == (A, 3 * A)
    for rows in (1, 3):
        acts_alike(policy, captured, rows, 1e-5)
    sampler = trace(policy, "noise")
    assert sampler.metadata["inputs"]["noise"]["shape"] == ["B", 3 * A]
    observations, noise, scales = inputs(5, 3 * A)
    run = load(torch_file(sampler), "torch")
    actions = run({"observations": observations, "guidance_scale": scales, "noise": noise})
    expected = policy.act(observations, guidance_scale=scales, noise=noise)
    torch.testing.assert_close(actions, expected, rtol=0.0, atol=4.0 * TOLERANCE)  # of the range of actions


def test_onnxruntime_runs_it_alike() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy = best_of(3)
    exported = OnnxPolicy(policy)
    assert (exported.action_size, exported.noise_size) == (A, 3 * A)
    for rows in (1, 6):
        acts_alike(policy, exported, rows, 1e-5)
