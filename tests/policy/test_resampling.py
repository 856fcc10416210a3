"""Samplers that choose among candidates: exact weights and choices, their limits, files, engines and options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policy import RECIPE, SPEC, A, S, normal, parts, save
from torch import Tensor, nn

from cepdiff.components import class_path_of
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import effective_sample_size
from cepdiff.errors import ConfigError, RunError
from cepdiff.networks.critic import QEnsemble
from cepdiff.policy.engines import CapturedPolicy, OnnxPolicy, run_by
from cepdiff.policy.export.check import TOLERANCE, load
from cepdiff.policy.export.graph import torch_file, trace
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.resampling import (
    Averaged,
    BestOfN,
    Resampled,
    drawn,
    medoid,
    taken,
    tempered_weights,
    weighted_mean,
)
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from devices import needs_gpu, same

CRITIC = {"class_path": "cepdiff.networks.critic.QEnsemble", "init_args": {"hidden": [8]}}
BETA = 3.0  # of `CEP()`
K = 4


def with_critic(energy: bool = True) -> SamplerParts:
    """Small networks; a critic whose values differ by about 1 between actions."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        critic = QEnsemble(S, A, hidden=[8])
        critic.critics[0].rest[-1].weight.data.mul_(5.0)  # type: ignore[union-attr, index, operator]
    return replace(parts(energy), networks={**parts(energy).networks, "critic": critic})


def by_hand(sampler: Resampled, condition: Tensor, noise: Tensor, c: float, s: float) -> tuple[Tensor, Tensor]:
    """Candidates (B, K, A) and normalised weights (B, K), one plain sample at a time."""
    plain = GuidedSampler(with_critic())
    columns, logs = [], []
    for k in range(sampler.num_candidates):
        some = plain.sample(condition, noise[:, k * A : (k + 1) * A], torch.full((len(noise),), c))
        q = plain_critic(condition, some)
        tilt = plain.networks["energy"](some, torch.tensor(plain.schedule.t_min), condition)
        columns.append(some)
        logs.append(s * BETA * q - c * tilt)
    return torch.stack(columns, 1), torch.stack(logs, -1).double().softmax(-1)


@torch.no_grad()
def plain_critic(condition: Tensor, actions: Tensor) -> Tensor:
    return with_critic().networks["critic"](condition, actions).amin(0)  # type: ignore[no-any-return]


# choices among given candidates


def grid(n: int) -> Tensor:
    """Normal numbers at the midpoints of `n` equally likely intervals."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def test_draws_have_exactly_the_weights() -> None:
    weights = torch.tensor([0.1, 0.0, 0.45, 0.25, 0.2], dtype=torch.float64)
    index = drawn((weights.log() + 7.0).expand(1000, 5), grid(1000))
    torch.testing.assert_close(index.bincount(minlength=5), (1000 * weights).long(), rtol=0, atol=0)
    ends = drawn(weights.log().expand(2, 5), torch.tensor([-30.0, 30.0], dtype=torch.float64))
    assert ends.tolist() == [0, 4]


def test_no_draw_leaves_the_candidates_in_float32() -> None:
    log_weights = torch.log_softmax(normal(200, 64) * 8.0, -1)
    for end in (-9.0, 9.0):
        index = drawn(log_weights, torch.full((200,), end))
        assert int(index.min()) >= 0
        assert int(index.max()) < 64


def test_mean_and_medoid() -> None:
    candidates = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.4, 0.2]], dtype=torch.float64)
    log_weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    mean = torch.tensor([0.38, 0.04], dtype=torch.float64)
    torch.testing.assert_close(weighted_mean(candidates, log_weights), mean)
    costs = [
        sum(w * float((a - b).square().sum()) for b, w in zip(candidates, log_weights.exp().tolist(), strict=True))
        for a in candidates
    ]
    assert int(medoid(candidates, log_weights)) == min(range(3), key=costs.__getitem__) == 2
    assert taken(candidates, torch.tensor(2)).tolist() == [0.4, 0.2]
    assert int(medoid(candidates, torch.tensor([5.0, 0.0, 0.0]).double())) == 0


def test_weights_are_tempered_to_the_least_effective_sample_size() -> None:
    # Two levels, one candidate of 4 at log-weight x: ESS = (e^x + 3)² / (e^2x + 3), which is 2 at e^x = 3 + 2 sqrt(3).
    factor = math.log(3 + 2 * math.sqrt(3)) / 20.0
    given = torch.tensor([[20.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = tempered_weights(given, 2.0)
    torch.testing.assert_close(found[0], factor * given[0], rtol=0, atol=1e-6)
    assert torch.equal(found[1], given[1])  # enough as it is
    given = 8.0 * normal(300, 8)
    sizes, plain = (effective_sample_size(-w, 1.0) for w in (tempered_weights(given, 4.0), given))
    torch.testing.assert_close(sizes, plain.clamp(min=4.0), rtol=0, atol=1e-3)


# the samplers


@pytest.mark.parametrize("c", [0.0, 1.0])
def test_weights_divide_out_the_proposal(c: float) -> None:
    sampler = Resampled(with_critic(), num_candidates=K, candidate_scale=c)
    condition, noise = normal(6, S), normal(6, K * A + 1, seed=1)
    candidates, weights = by_hand(sampler, condition, noise, c, 2.0)
    found, log_weights = sampler.weighed(condition, noise, torch.full((6,), 2.0))
    torch.testing.assert_close(found, candidates, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_weights.double().softmax(-1), weights, rtol=1e-3, atol=1e-4)
    ess = sampler.effective_sample_size(condition, noise, torch.full((6,), 2.0))
    assert ess is not None
    torch.testing.assert_close(ess.double(), 1.0 / weights.square().sum(-1), rtol=1e-3, atol=1e-4)
    assert float(ess.min()) < 0.9 * K  # the weights do differ


@pytest.mark.parametrize("choose", ["draw", "mean", "medoid", "best"])
def test_choices_of_the_sampler(choose: Any) -> None:
    sampler = Resampled(with_critic(), choose, K)
    assert sampler.noise_size == K * A + (choose == "draw")
    condition, noise = normal(40, S), normal(40, sampler.noise_size, seed=1)
    found = sampler.sample(condition, noise, torch.full((40,), 2.0))
    candidates, weights = by_hand(sampler, condition, noise, 0.0, 2.0)
    mean = (weights.unsqueeze(-1) * candidates).sum(1).float()
    uniform = torch.special.ndtr(noise[:, -1:].double())
    index = {
        "draw": (weights.cumsum(-1) < uniform).sum(-1),
        "medoid": (candidates - mean.unsqueeze(1)).square().sum(-1).argmin(-1),
        "best": weights.argmax(-1),
        "mean": torch.zeros(40, dtype=torch.long),
    }[choose]
    expected = mean if choose == "mean" else candidates[torch.arange(40), index]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert choose == "mean" or len(index.unique()) == K


def test_best_of_n_is_the_best_at_any_scale_but_0() -> None:
    sampler, condition = BestOfN(with_critic(), K), normal(20, S)
    noise = normal(20, K * A, seed=1)
    found = [sampler.sample(condition, noise, torch.full((20,), s)) for s in (0.0, 0.1, 10.0)]
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[0], found[1])
    assert bool((plain_critic(condition, found[1]) >= plain_critic(condition, found[0]) - 1e-5).all())
    limit = Resampled(with_critic(), "draw", K).sample(condition, normal(20, K * A + 1, seed=1), torch.full((20,), 1e6))
    assert limit.shape == found[1].shape
    assert sampler.effective_sample_size(condition, noise, torch.ones(20)) is None


def test_large_scales_stop_at_the_least_effective_sample_size() -> None:
    sampler, plain = (Resampled(with_critic(), "mean", K, min_effective_samples=least) for least in (2.0, 1.0))
    condition, noise, large = normal(40, S), normal(40, K * A, seed=1), torch.full((40,), 50.0)
    sizes, plain_sizes = (one.effective_sample_size(condition, noise, large) for one in (sampler, plain))
    assert sizes is not None
    assert plain_sizes is not None
    assert int((plain_sizes < 1.9).sum()) > 20
    torch.testing.assert_close(sizes, plain_sizes.clamp(min=2.0), rtol=0, atol=1e-3)
    gentle = torch.full((40,), 0.01)
    assert torch.equal(sampler.sample(condition, noise, gentle), plain.sample(condition, noise, gentle))


MAKERS: dict[str, Callable[[SamplerParts, int], GuidedSampler]] = {
    "draw": lambda p, k: Resampled(p, "draw", k),
    "guided": lambda p, k: Resampled(p, "draw", k, candidate_scale=1.0),
    "best": BestOfN,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_scale_0_is_the_behavior_sample(make: Callable[[SamplerParts, int], GuidedSampler]) -> None:
    sampler, condition = make(with_critic(), K), normal(9, S)
    noise = normal(9, sampler.noise_size, seed=1)
    expected = GuidedSampler(with_critic()).sample(condition, noise[:, :A])
    assert torch.equal(sampler.sample(condition, noise, torch.zeros(9)), expected)
    assert torch.equal(sampler.sample(condition, noise), expected)
    scales = torch.arange(9).remainder(2) * 3.0  # some rows at scale 0
    mixed = sampler.sample(condition, noise, scales)
    torch.testing.assert_close(mixed[::2], expected[::2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[1::2], expected[1::2], atol=1e-2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_single_candidate_is_the_plain_sample(make: Callable[[SamplerParts, int], GuidedSampler]) -> None:
    sampler, condition = make(with_critic(), 1), normal(9, S)
    noise, scales = normal(9, sampler.noise_size, seed=1), torch.full((9,), 3.0)
    c = getattr(sampler, "candidate_scale", 0.0)
    expected = GuidedSampler(with_critic()).sample(condition, noise[:, :A], torch.full((9,), c))
    torch.testing.assert_close(sampler.sample(condition, noise, scales), expected, rtol=1e-5, atol=1e-6)


def test_averages_need_no_critic() -> None:
    condition, noise = normal(9, S), normal(9, K * A, seed=1)
    plain = GuidedSampler(parts())
    for scale in (0.0, 1.5):
        scales = torch.full((9,), scale)
        each = torch.stack([plain.sample(condition, noise[:, A * k : A * k + A], scales) for k in range(K)], 1)
        mean = Averaged(parts(), num_candidates=K).sample(condition, noise, scales)
        torch.testing.assert_close(mean, each.mean(1), rtol=1e-5, atol=1e-5)
        one = Averaged(parts(), "medoid", K).sample(condition, noise, scales)
        index = (each - each.mean(1, keepdim=True)).square().sum(-1).argmin(-1)
        torch.testing.assert_close(one, each[torch.arange(9), index], rtol=1e-5, atol=1e-5)
    equal = Resampled(with_critic(), "mean", K).sample(condition, noise, torch.zeros(9))
    assert torch.equal(equal, Averaged(with_critic(), num_candidates=K).sample(condition, noise))


def test_less_noise() -> None:
    condition, noise = normal(9, S), normal(9, A, seed=1)
    half = Averaged(parts(), num_candidates=1, noise_scale=0.5).sample(condition, noise)
    torch.testing.assert_close(half, GuidedSampler(parts()).sample(condition, 0.5 * noise), rtol=1e-5, atol=1e-6)


class Quadratic(nn.Module):
    """Logits without a condition."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return -2.0 * x.square().sum(-1)


def test_without_a_critic_the_energy_network_weighs() -> None:
    networks = {**parts().networks, "energy": Quadratic()}
    sampler = Resampled(replace(parts(), networks=networks), "best", K)
    condition, noise = normal(20, S), normal(20, K * A, seed=1)
    candidates, values = sampler.weighed(condition, noise, torch.ones(20))
    torch.testing.assert_close(values, -2.0 * candidates.square().sum(-1))


def test_it_acts_once_its_networks_are_trained() -> None:
    observations = normal(3, S)
    acts = GuidedPolicy(SPEC, Resampled(with_critic(energy=False), num_candidates=K))
    assert acts.act(observations, guidance_scale=2.0).shape == (3, A)
    guided = GuidedPolicy(SPEC, Resampled(with_critic(energy=False), num_candidates=K, candidate_scale=1.0))
    untrained = GuidedPolicy(SPEC, Resampled(parts(energy=False), "mean", num_candidates=K))
    for policy in (guided, untrained):
        assert policy.act(observations, guidance_scale=0.0).shape == (3, A)
        with pytest.raises(RunError, match="no energy network yet"):
            policy.act(observations, guidance_scale=1.0)
    with pytest.raises(RunError, match="neither a critic nor an energy network"):
        untrained.sampler.sample(observations, normal(3, K * A), torch.ones(3))


# files, engines, options

SHIPPED: dict[str, Callable[[], GuidedSampler]] = {
    "guided draw": lambda: Resampled(with_critic(), num_candidates=3, candidate_scale=1.0),
    "mean": lambda: Resampled(with_critic(), "mean", 3, min_effective_samples=2.0),
    "best": lambda: BestOfN(with_critic(), 3),
    "medoid": lambda: Averaged(with_critic(), "medoid", 3, noise_scale=0.7),
}


def test_a_policy_file_keeps_it(tmp_path: Path) -> None:
    policy = GuidedPolicy(SPEC, Resampled(with_critic(), "draw", 3, noise_scale=0.7))
    init_args = {"choose": "draw", "num_candidates": 3, "noise_scale": 0.7}
    sampler = {"class_path": class_path_of(Resampled), "init_args": init_args}
    save(policy, tmp_path, replace(RECIPE, sampler=sampler, networks={**RECIPE.networks, "critic": CRITIC}))
    loaded = GuidedPolicy.from_run(tmp_path)
    assert loaded.noise_size == 3 * A + 1
    observations, noise = normal(6, S), normal(6, 3 * A + 1, seed=1)
    expected = policy.act(observations, guidance_scale=2.0, noise=noise)
    assert torch.equal(loaded.act(observations, guidance_scale=2.0, noise=noise), expected)


def inputs(policy: GuidedPolicy) -> dict[str, Tensor]:
    """Some rows at scale 0."""
    noise = normal(6, policy.noise_size, seed=1)
    return {"observations": normal(6, S), "guidance_scale": torch.arange(6).remainder(2) * 1.5, "noise": noise}


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_captured_and_exported_alike(name: str) -> None:
    policy = GuidedPolicy(SPEC, SHIPPED[name]())
    policy.sampler.solver = DPMSolver(1)
    given = inputs(policy)
    observations, scale, noise = given.values()
    expected = policy.act(observations, guidance_scale=scale, noise=noise)
    captured = CapturedPolicy(policy, capture=same).act(observations, guidance_scale=scale, noise=noise)
    torch.testing.assert_close(captured, expected, rtol=1e-5, atol=1e-5)
    if name == "medoid":
        actions = load(torch_file(trace(policy, "noise")), "torch")(given)
        torch.testing.assert_close(actions, expected, rtol=0.0, atol=4.0 * TOLERANCE)  # of the range of actions


@needs_gpu
@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_captured_on_a_gpu(name: str) -> None:
    policy = GuidedPolicy(SPEC, SHIPPED[name]()).on("cuda")
    given = {key: value.cuda() for key, value in inputs(policy).items()}
    expected = policy.act(**given)
    captured = run_by(policy)
    assert isinstance(captured, CapturedPolicy)
    for _ in range(2):  # captured, then replayed
        torch.testing.assert_close(captured.act(**given), expected, rtol=1e-4, atol=1e-4)


def test_onnxruntime_runs_it_alike() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy = GuidedPolicy(SPEC, Resampled(with_critic(), "draw", 3))
    policy.sampler.solver = DPMSolver(1)
    observations, scale, noise = inputs(policy).values()
    expected = policy.act(observations, guidance_scale=scale, noise=noise)
    actions = OnnxPolicy(policy).act(observations, guidance_scale=scale, noise=noise)
    torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Resampled(p, num_candidates=0), r"sampler.num_candidates is 0; expected at least 1"),
        (lambda p: Resampled(p, "worst"), r"sampler.choose is 'worst'; expected draw, mean, medoid or best"),
        (lambda p: Resampled(p, candidate_scale=-1.0), r"sampler.candidate_scale is -1.0; expected 0 or more"),
        (
            lambda p: Resampled(p, min_effective_samples=0.5),
            r"sampler.min_effective_samples is 0.5; expected at least 1",
        ),
        (
            lambda p: Resampled(p, "mean", 4, min_effective_samples=5.0),
            r"sampler.min_effective_samples is 5.0; expected at most num_candidates, 4",
        ),
        (lambda p: Averaged(p, noise_scale=0.0), r"sampler.noise_scale is 0.0; expected a number in \(0, 1\]"),
        (lambda p: Averaged(p, "draw"), r"sampler.choose is 'draw'; expected mean or medoid"),
        (lambda p: BestOfN(p, noise_scale=math.nan), r"sampler.noise_scale is nan; expected a number in \(0, 1\]"),
    ],
)
def test_bad_options_in_one_line(make: Callable[[SamplerParts], GuidedSampler], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        make(parts())
    assert "\n" not in str(caught.value)


def test_values_are_in_units_of_the_energies() -> None:
    """Halved values at twice the scale give the same weights."""
    condition, noise = normal(6, S), normal(6, 4 * A + 1, seed=1)
    one, two = (Resampled(replace(with_critic(), energy_unit=unit), num_candidates=4) for unit in (1.0, 2.0))
    expected = one.weighed(condition, noise, torch.full((6,), 1.5))[1]
    torch.testing.assert_close(two.weighed(condition, noise, torch.full((6,), 3.0))[1], expected)
    assert float(expected.std()) > 0.01
    mean = Resampled(replace(with_critic(), deviations=0.0), num_candidates=4)
    candidates = mean.candidates(condition, noise, None, static=False)
    q = mean.networks["critic"](condition.unsqueeze(1), candidates).mean(0)
    torch.testing.assert_close(mean.value(condition, candidates), BETA * q)
