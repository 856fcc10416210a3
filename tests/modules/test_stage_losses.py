"""Each module's loss against the mathematics, and its random numbers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from small_modules import BEHAVIOR_NETS, SMALL, A, Function, K, S, fit, make, minibatch
from torch import nn

from cepdiff.diffusion.losses import denoising_loss
from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP
from cepdiff.errors import ConfigError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.types import Batch, Metrics


def seeded(seed: int = 3) -> RandomStream:
    return RandomStream(seed, torch.device("cpu"))


def test_the_behavior_loss_is_the_denoising_loss_of_its_noise() -> None:
    module = make("behavior", weighting="min_snr")
    assert isinstance(module, BehaviorDiffusion)
    batch, noise = minibatch(module), RandomStream(3, torch.device("cpu"))
    t = module.schedule.t_min + (1 - module.schedule.t_min) * noise.uniform(8)
    eps = noise.normal(8, A)
    expected, _ = denoising_loss(
        module.net, module.schedule, batch["actions"], batch["observations"], t, eps, module.weighting
    )
    assert module.loss(batch, RandomStream(3, torch.device("cpu")))[0].item() == pytest.approx(expected.item())


def test_the_behavior_can_be_unconditional() -> None:
    module = BehaviorDiffusion(0, A, net=BEHAVIOR_NETS["mlp"])
    fit(module, [{"samples": torch.rand(4, A)}], max_steps=1)


def test_the_critics_target_is_the_softmax_backup_of_the_smaller_critic() -> None:
    module = make("critic", discount=0.9, bellman_inverse_temperature=2.0)
    assert isinstance(module, SoftmaxQCritic)
    with torch.no_grad():  # different target networks, so that targets from the trained networks would be noticed
        for parameter in module.target_net.parameters():
            parameter.add_(0.1)
    batch = minibatch(module)
    target, metrics = module.target(batch)
    assert list(metrics) == ["bellman_entropy"]
    for i in range(8):
        s = batch["next_observations"][i].expand(K, S)
        q = module.target_net(s, batch["next_support_actions"][i]).amin(0).double()
        value = float(((2.0 * q).softmax(0) * q).sum())
        expected = float(batch["rewards"][i]) + 0.9 * (1 - float(batch["terminals"][i])) * value
        assert target[i].item() == pytest.approx(expected, rel=1e-5)
    q = module.net(batch["observations"], batch["actions"])
    expected_loss = (q[0] - target).square().mean() + (q[1] - target).square().mean()
    loss, _ = module.loss(batch, RandomStream(0, torch.device("cpu")))
    assert loss.item() == pytest.approx(expected_loss.item())
    assert not target.requires_grad


def test_the_critic_logs_percentiles_and_entropy_at_no_further_evaluation() -> None:
    module = make("critic", discount=0.9, bellman_inverse_temperature=2.0)
    assert isinstance(module, SoftmaxQCritic)
    batch = minibatch(module)
    calls: list[nn.Module] = []
    for net in (module.net, module.target_net):
        net.register_forward_hook(lambda net, *_: calls.append(net))
    _, metrics = module.loss(batch, RandomStream(0, torch.device("cpu")))
    assert calls == [module.target_net, module.net]
    q = module.net(batch["observations"], batch["actions"]).detach().flatten()
    for level in (5, 50, 95):
        assert metrics[f"q_p{level}"].item() == pytest.approx(q.quantile(level / 100).item())
    next_q = module.q_value(batch["next_observations"].unsqueeze(1), batch["next_support_actions"]).double()
    entropy = torch.distributions.Categorical(logits=2.0 * next_q).entropy().mean()
    assert metrics["bellman_entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)
    assert 0.0 < entropy.item() < math.log(K)
    assert "q_levels" not in module.state_dict()


def test_a_critic_with_a_target_of_its_own_logs_no_entropy_of_another() -> None:
    class Own(SoftmaxQCritic):
        def target(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
            return batch["rewards"], {"own": batch["rewards"].max()}

    module = Own(S, A, net=partial(QEnsemble, **SMALL))
    batch = minibatch(module)
    _, metrics = module.loss(batch, RandomStream(0, torch.device("cpu")))
    assert "bellman_entropy" not in metrics
    assert metrics["own"] == batch["rewards"].max()
    assert "q_p50" in metrics


def test_the_guidance_loss_shares_one_time_among_the_actions_of_a_state() -> None:
    module = make("guidance")
    assert isinstance(module, EnergyGuidance)
    batch, noise = minibatch(module), RandomStream(3, torch.device("cpu"))
    t = module.schedule.sample_times(noise.uniform(8, 1))
    x = perturb(module.schedule, batch["support_actions"], t, noise.normal(8, K, A))
    s = batch["observations"].unsqueeze(1).expand(8, K, S)
    expected, _ = module.objective(module.net(x, t.expand(8, K), s), batch["energies"])
    assert module.loss(batch, RandomStream(3, torch.device("cpu")))[0].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_averaged_behavior_targets_are_over_the_batch() -> None:
    module = make("behavior-averaged")
    assert isinstance(module, BehaviorDiffusion)
    assert module.batch_fields == ("samples",)
    batch, noise = minibatch(module), seeded()
    t, eps = module.schedule.sample_times(noise.uniform(8)), noise.normal(8, A)
    samples = batch["samples"]
    expected, _ = denoising_loss(module.net, module.schedule, samples, None, t, eps, sources=samples)
    assert module.loss(batch, seeded())[0].item() == pytest.approx(expected.item())
    plain, _ = denoising_loss(module.net, module.schedule, samples, None, t, eps)
    assert expected.item() != pytest.approx(plain.item(), rel=1e-3)


def test_averaged_guidance_targets_are_over_the_actions_of_the_state() -> None:
    """Label by label: the mean over the set, weighted by origin probability; states do not mix."""
    module = make("guidance-averaged")
    assert isinstance(module, EnergyGuidance)
    batch, noise = minibatch(module), seeded()
    t = module.schedule.sample_times(noise.uniform(8, 1), 1.5)
    actions = batch["support_actions"]
    x = perturb(module.schedule, actions, t, noise.normal(8, K, A))
    labels = module.objective.targets(batch["energies"])
    targets = torch.stack(
        [origin_posterior(module.schedule, x[i], actions[i], t[i].expand(K)) @ labels[i] for i in range(8)]
    )
    expected, _ = module.objective.loss(module.net(x, t, batch["observations"].unsqueeze(1)), targets)
    assert module.loss(batch, seeded())[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["guidance", "guidance-mse", "guidance-dps", "batch-guidance", "batch-guidance-dps"])
def test_label_ess_is_logged_for_every_objective(name: str) -> None:
    module = make(name)
    assert isinstance(module, EnergyGuidance)
    batch = minibatch(module)
    weights = (-module.objective.inverse_temperature * batch["energies"]).double().softmax(-1)
    expected = (1.0 / weights.square().sum(-1)).mean()
    assert module.loss(batch, seeded())[1]["label_ess"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_dps_trains_on_clean_actions() -> None:
    """Whatever the noise: -beta E at the actions themselves, at t_min."""
    module = make("guidance-dps")
    assert isinstance(module, EnergyGuidance)
    batch = minibatch(module)
    t = torch.full((8, K), module.schedule.t_min)
    logits = module.net(batch["support_actions"], t, batch["observations"].unsqueeze(1))
    expected = (logits + batch["energies"]).square().mean()  # beta is 1
    for seed in (1, 2):
        assert module.loss(batch, seeded(seed))[0].item() == pytest.approx(expected.item(), rel=1e-5)


def sampler_of(module: EnergyGuidance) -> GuidedSampler:
    """The sampler of the module's network and the noise prediction x / 2."""
    networks = {"behavior": Function(lambda x, t, s: 0.5 * x), "energy": module.sampling_net}
    return GuidedSampler(SamplerParts(A, networks, module.schedule, DPMSolver(2), module.objective))


def test_what_the_sampler_takes_the_gradient_of() -> None:
    module, clean = make("guidance", ema_decay=0.9), make("guidance-dps")
    assert isinstance(module, EnergyGuidance)
    assert isinstance(clean, EnergyGuidance)
    assert sampler_of(module).logits is module.ema_net
    x, t, s = torch.randn(5, A), torch.full((5,), 0.3), torch.randn(5, S)
    guide = sampler_of(clean).logits
    assert guide is not None
    found = guide(x, t, s)
    alpha, sigma = clean.schedule.alpha(t[0]), clean.schedule.sigma(t[0])
    expected = clean.net((1.0 - 0.5 * sigma) / alpha * x, torch.full((5,), clean.schedule.t_min), s)
    torch.testing.assert_close(found, expected)


# The batch as the contrastive set


class Watched(RandomStream):
    """Noise that records the uniform numbers shared by all ranks."""

    def __init__(self) -> None:
        super().__init__(3, torch.device("cpu"))
        self.seen: list[torch.Tensor] = []

    def shared_uniform(self, *shape: int) -> torch.Tensor:
        self.seen.append(super().shared_uniform(*shape))
        return self.seen[-1]


@pytest.mark.parametrize("name", ["batch-guidance", "batch-guidance-plain", "batch-guidance-e-mse"])
def test_the_batch_guidance_loss_contrasts_the_batch_at_each_of_its_times(name: str) -> None:
    """Written out per time: absolute labels of all samples, averaged or not, against logits at that time."""
    module = make(name)
    assert isinstance(module, BatchEnergyGuidance)
    batch, noise = minibatch(module), Watched()
    loss, _ = module.loss(batch, noise)
    ((uniform),) = noise.seen
    again, steps, x0 = seeded(), module.times_per_step, batch["samples"]
    again.shared_uniform(steps, 1)
    labels = module.objective.targets(batch["energies"], per_set=False)
    losses = []
    for i in range(steps):
        u = (i + uniform[i]) / steps
        t = module.schedule.sample_times(u, module.time_exponent).expand(8)
        x = perturb(module.schedule, x0, t, again.normal(8, A))
        targets = origin_posterior(module.schedule, x, x0, t) @ labels if module.average_targets else labels
        losses.append(module.objective.loss(module.net(x, t, None), targets)[0])
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


@pytest.mark.parametrize("times_per_step", [1, 3, 8])
def test_times_are_stratified(times_per_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One time in each of `times_per_step` equal parts; together they fill the range."""
    module = make("batch-guidance", times_per_step=times_per_step)
    assert isinstance(module, BatchEnergyGuidance)
    drawn: list[torch.Tensor] = []
    original = module.schedule.sample_times

    def remember(uniform: torch.Tensor, exponent: float) -> torch.Tensor:
        assert exponent == module.time_exponent
        drawn.append(uniform)
        return original(uniform, exponent)

    monkeypatch.setattr(module.schedule, "sample_times", remember)
    for seed in range(200):
        module.loss(minibatch(module), seeded(seed))
    uniform = torch.stack(drawn).squeeze(-1)  # (200, T)
    assert uniform.shape == (200, times_per_step)
    assert torch.equal((uniform * times_per_step).floor(), torch.arange(times_per_step).expand(200, -1).float())
    within = (uniform * times_per_step).remainder(1.0)
    assert float(within.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(within.max() - within.min()) > 0.95


def test_batch_guidance_learns_the_exact_guidance() -> None:
    """Two points with E = 0 and 1: -E_t is known, and a small network comes close to its gradient in 300 steps."""
    torch.manual_seed(0)
    module = make("batch-guidance", objective=CEP(2.0), batch_size=64)
    assert isinstance(module, BatchEnergyGuidance)
    points = torch.tensor([[-0.7, 0.0], [0.7, 0.3]])
    optimizer = torch.optim.Adam(module.net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for step in range(300):
        pick = torch.randint(2, (64,))
        loss, _ = module.loss({"samples": points[pick], "energies": pick.float()}, seeded(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x0 = points[torch.randint(2, (200,))]
    for t in (0.4, 0.6, 0.8):
        time = torch.full((200,), t)
        x = perturb(module.schedule, x0, time, torch.randn(200, 2)).requires_grad_(True)
        origin = origin_posterior(module.schedule, x, points, time)
        exact = (origin @ torch.tensor([1.0, math.exp(-2.0)])).log()
        (expected,), (found,) = (torch.autograd.grad(f.sum(), x) for f in (exact, module.net(x, time, None)))
        error = float((found - expected).norm() / expected.norm())
        print(f"t = {t}: relative error of the gradient {error:.3f}")
        assert error < 0.3


def test_batch_guidance_has_no_condition() -> None:
    with pytest.raises(ConfigError, match=r"takes no condition; observations have size 3"):
        BatchEnergyGuidance(S, A)


# Noise across ranks


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_together_what_one_process_sees(world: int) -> None:
    cpu = torch.device("cpu")
    alone = RandomStream(11, cpu)
    ranks = [RandomStream(11, cpu, rank, world) for rank in range(world)]
    for draw in ("uniform", "normal", "normal"):
        whole = getattr(alone, draw)(4 * world, 3)
        for rank, noise in enumerate(ranks):
            assert torch.equal(getattr(noise, draw)(4, 3), whole[rank::world])


def test_shared_numbers_are_the_same_on_every_rank() -> None:
    """And drawing them leaves the other numbers as on one process."""
    cpu = torch.device("cpu")
    alone = RandomStream(11, cpu)
    ranks = [RandomStream(11, cpu, rank, 2) for rank in range(2)]
    assert [noise.world for noise in (alone, *ranks)] == [1, 2, 2]
    shared, whole = alone.shared_uniform(5, 1), alone.normal(8, 3)
    for rank, noise in enumerate(ranks):
        assert torch.equal(noise.shared_uniform(5, 1), shared)
        assert torch.equal(noise.normal(4, 3), whole[rank::2])


def test_noise_has_the_right_distribution() -> None:
    noise = RandomStream(0, torch.device("cpu"))
    uniform, normal = noise.uniform(20_000), noise.normal(20_000)
    assert 0.0 <= float(uniform.min()) < float(uniform.max()) < 1.0
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.04)
    assert float(normal.std()) == pytest.approx(1.0, abs=0.03)


def test_noise_without_a_seed_comes_from_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3, 2)
    torch.manual_seed(5)
    assert torch.equal(RandomStream(None, torch.device("cpu")).normal(3, 2), expected)
