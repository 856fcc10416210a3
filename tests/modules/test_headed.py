"""Guidance with several heads: its loss written out, what it refuses, and what it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small_headed import (
    HEADS,
    ROWS,
    A,
    HeadedMLP,
    every_case,
    headed,
    minibatch,
    of_labels,
    seeded,
)
from small_modules import Function, fit
from torch import Tensor

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.process import perturb
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import (
    CEP,
    DPS,
    MSE,
    DPSClassifier,
    EnergyObjective,
    ExponentialMSE,
    NoisyClassifier,
)
from cepdiff.errors import ConfigError
from cepdiff.modules.graphs import CapturedSteps
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.modules.headed import HeadedEnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.energy import ResidualEnergy
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.types import STEP_SEEDS
from devices import same


@every_case
@pytest.mark.parametrize("average_targets", [True, False])
def test_the_loss_written_out_head_by_head(kind: str, objective: EnergyObjective, average_targets: bool) -> None:
    """One time after another; contrasts and regressions also head by head."""
    module = headed(objective=objective, average_targets=average_targets, time_exponent=1.3)
    batch = minibatch(kind)
    loss, metrics = module.loss(batch, seeded())
    noise, steps, x0 = seeded(), module.times_per_step, batch["samples"]
    uniform = noise.shared_uniform(steps, 1)
    losses = []
    for i in range(steps):
        t = module.schedule.sample_times((i + uniform[i]) / steps, 1.3).expand(ROWS)
        x = perturb(module.schedule, x0, t, noise.normal(ROWS, A))
        if objective.on_clean:
            x, t = x0, torch.full((ROWS,), module.schedule.t_min)
        targets = objective.targets(batch["energies"].T, per_set=False)  # (H, B)
        if average_targets and not objective.on_clean:
            origins = origin_posterior(module.schedule, x, x0, t)
            targets = torch.stack([origins @ row for row in targets])
        logits = module.net(x, t, None)
        if isinstance(objective, NoisyClassifier):
            losses.append(-(targets * logits.log_softmax(-1).T).sum(0).mean())
        else:
            losses += [objective.loss(logits[:, h], targets[h])[0] for h in range(HEADS)]
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert all(math.isfinite(value.item()) for value in metrics.values())
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in module.net.parameters())


@pytest.mark.parametrize("objective", [CEP(2.0), ExponentialMSE(1.0), MSE(1.0), DPS(1.0)])
def test_one_head_is_batch_guidance(objective: EnergyObjective) -> None:
    settings: dict[str, Any] = {"objective": objective, "times_per_step": 3, "batch_size": ROWS}
    net = HeadedMLP(0, A, num_heads=1)
    one = HeadedEnergyGuidance(0, A, lambda s, a: net, time_exponent=1.5, **settings)
    plain = BatchEnergyGuidance(0, A, lambda s, a: net, **settings)
    plain.net.forward = lambda x, t, s: ResidualEnergy.forward(net, x, t, s)  # type: ignore[method-assign]
    batch = minibatch("finite")
    expected, expected_metrics = plain.loss({**batch, "energies": batch["energies"][:, 0]}, seeded())
    del net.forward
    found, metrics = one.loss({**batch, "energies": batch["energies"][:, :1]}, seeded())
    assert found.item() == pytest.approx(expected.item(), rel=0.0, abs=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_label_ess_is_the_mean_number_of_samples_of_the_classes_that_are_there() -> None:
    batch = minibatch()
    counts = batch["energies"].isfinite().sum(0)
    assert counts.tolist()[-1] == 0
    _, metrics = headed().loss(batch, seeded())
    assert metrics["label_ess"].item() == pytest.approx(ROWS / 2)


def test_an_absent_class_is_not_trained() -> None:
    module = headed()
    loss, _ = module.loss(minibatch(), seeded())
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = module.net.output[-1].weight.grad  # (H, width)
    assert torch.equal(gradient[-1], torch.zeros_like(gradient[-1]))
    assert bool((gradient[:-1] != 0).any(-1).all())


def test_sharp_energies_measured_from_their_lowest_do_not_underflow() -> None:
    """beta 50 and energies of about 0.1, as for hues: weights of every size, and a gradient."""
    batch = minibatch("finite")
    energies = 0.1 + 0.2 * batch["energies"]
    module = headed(objective=CEP(50.0))
    loss, metrics = module.loss({**batch, "energies": energies - energies.amin(0)}, seeded())
    loss.backward()  # type: ignore[no-untyped-call]
    assert 1e-2 < loss.item() < math.log(ROWS)
    assert 1.0 < metrics["label_ess"].item() < ROWS
    assert float(module.net.output[-1].weight.grad.abs().max()) > 1e-4


# Refusals


@pytest.mark.parametrize("objective", [MSE(), DPS()])
def test_regression_refuses_labels(objective: EnergyObjective) -> None:
    with pytest.raises(ConfigError, match=f"{type(objective).__name__} cannot be trained on infinite energies"):
        headed(objective=objective).loss(minibatch(), seeded())


def test_a_classifier_refuses_other_energies() -> None:
    with pytest.raises(ConfigError, match="NoisyClassifier needs energies -log p"):
        headed(objective=NoisyClassifier()).loss(minibatch("finite"), seeded())


def test_energies_are_looked_at_once_a_fit() -> None:
    """Once, because the check waits for the device; per fit, because the next one may have other data."""

    class Watched(CEP):
        seen = 0

        def check_heads(self, energies: Tensor) -> None:
            assert energies.shape == (HEADS, ROWS)
            self.seen += 1

    objective = Watched()
    module = headed(objective=objective)
    many = {name: values.expand(5, *values.shape) for name, values in minibatch().items()}
    for fits in (1, 2):
        fit(module, [{**many, STEP_SEEDS: torch.arange(5)}])
        assert objective.seen == fits


def test_heads_and_energies_must_be_as_many() -> None:
    with pytest.raises(ConfigError, match=r"logits \(3, 8, 5\) for 8 samples; .*the data have 3 energies"):
        headed(partial(HeadedMLP, num_heads=5)).loss(minibatch(), seeded())
    with pytest.raises(ConfigError, match=r"logits \(3, 8\) for 8 samples; expected \(\.\.\., 8, 3\)"):
        headed(partial(ResidualEnergy, width=16)).loss(minibatch(), seeded())
    with pytest.raises(ConfigError, match=r"energies of a batch have shape \(8,\); expected \(B, H\)"):
        headed().loss({**minibatch(), "energies": torch.zeros(ROWS)}, seeded())


def test_there_are_no_conditions() -> None:
    with pytest.raises(ConfigError, match="takes no condition; observations have size 4"):
        HeadedEnergyGuidance(4, A, HeadedMLP)


# Sampling


def sampler_of(module: HeadedEnergyGuidance, eps: Callable[..., Tensor]) -> GuidedSampler:
    """The sampler of the module's network and the noise predictor `eps`."""
    networks = {"behavior": Function(eps), "energy": module.sampling_net}
    return GuidedSampler(SamplerParts(A, networks, module.schedule, DPMSolver(2), module.objective, headed=True))


@pytest.mark.parametrize("objective", [CEP(), NoisyClassifier(), DPSClassifier()])
def test_what_the_sampler_takes_the_gradient_of(objective: EnergyObjective) -> None:
    """The network's moving average, one head per row; at the predicted sample if it is trained on clean samples."""
    module = headed(objective=objective, ema_decay=0.9)
    assert module.ema_net is not None
    with torch.no_grad():
        for parameter in module.ema_net.parameters():
            parameter.add_(0.1)
    x, t, heads = torch.randn(5, A), torch.tensor(0.3), torch.tensor([2, 0, 1, 1, 0])
    at, time = x, t
    if objective.on_clean:
        at = (x - module.schedule.sigma(t) * 0.5 * x) / module.schedule.alpha(t)
        time = torch.tensor(module.schedule.t_min)
    guide = sampler_of(module, lambda x, t, s: 0.5 * x).logits
    assert guide is not None
    found = guide(x, t, heads.unsqueeze(-1))
    expected = objective.guiding_logits(module.ema_net(at, time, None))[torch.arange(5), heads]
    torch.testing.assert_close(found, expected)


@every_case
def test_a_trainer_fits_it(kind: str, objective: EnergyObjective) -> None:
    """60 steps on one minibatch lower the loss and move every parameter."""
    module = headed(objective=objective)
    before = {name: value.clone() for name, value in module.net.named_parameters()}
    batch = minibatch(kind)
    start, _ = module.loss(batch, seeded(7))
    many = {name: values.expand(60, *values.shape) for name, values in batch.items()}
    trainer = fit(module, [{**many, STEP_SEEDS: torch.full((60,), 7)}])
    assert trainer.global_step == 60
    assert module.loss(batch, seeded(7))[0].item() < start.item()
    assert [name for name, value in module.net.named_parameters() if torch.equal(value, before[name])] == []


# What it learns

MEANS = torch.tensor([[0.6, 0.0], [-0.3, 0.5], [-0.3, -0.5]])
STD = 0.2


@pytest.mark.parametrize(
    ("objective", "times"), [(CEP(), (0.2, 0.4, 0.7)), (NoisyClassifier(), (0.2, 0.4))], ids=["cep", "classifier"]
)
def test_guidance_by_labels_is_exact(objective: EnergyObjective, times: tuple[float, ...]) -> None:
    """Three Gaussians with labels as energies: ∇ log p(y|x_t) is known, and a small network comes close.

    Where x_t is nearly noise a classifier converges more slowly: the batch's class shares, which its loss does not
    cancel, mask the little information in x_t.
    """
    torch.manual_seed(0)
    module = headed(partial(HeadedMLP, width=64), objective=objective, times_per_step=4)
    optimizer = torch.optim.Adam(module.net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for step in range(400):
        labels = torch.randint(HEADS, (128,))
        x0 = MEANS[labels] + STD * torch.randn(128, A)
        loss, _ = module.loss({"samples": x0, "energies": of_labels(labels)}, seeded(step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    def log_posterior(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        alpha, sigma = module.schedule.alpha(t), module.schedule.sigma(t)
        joint = -0.5 * (x.unsqueeze(-2) - alpha * MEANS).square().sum(-1) / (alpha**2 * STD**2 + sigma**2)
        return joint.log_softmax(-1).gather(-1, condition).squeeze(-1)

    heads = torch.randint(HEADS, (600, 1))
    x0 = MEANS[torch.randint(HEADS, (600,))] + STD * torch.randn(600, A)  # from q, so most have another label
    for t in times:
        time = torch.tensor(t)
        x = perturb(module.schedule, x0, time, torch.randn(600, A))
        exact = logits_gradient(log_posterior, x, time, heads)
        guide = sampler_of(module, lambda x, t, s: x).logits
        assert guide is not None
        found = logits_gradient(guide, x, time, heads)
        error = float((found - exact).norm() / exact.norm())
        print(f"t = {t}: relative error of the gradient {error:.3f}")
        assert error < 0.3


def test_its_steps_can_be_captured() -> None:
    """Steps from fixed memory match single steps, and only the first waits for the device."""
    draws = torch.Generator().manual_seed(0)
    block = {
        "samples": torch.rand(4, ROWS, A, generator=draws) * 2 - 1,
        "energies": torch.rand(4, ROWS, HEADS, generator=draws),
        STEP_SEEDS: torch.arange(4),
    }
    weights = []
    for captured in (False, True):
        module = headed(learning_rate=2.0**-7)
        optimizer = torch.optim.AdamW(module.net.parameters(), lr=module.learning_rate, fused=True)
        if captured:
            steps = CapturedSteps(module, optimizer, block, capture=same)
            steps.run(block, lambda: None)
        else:
            for step in range(4):
                optimizer.zero_grad()
                batch = {name: block[name][step] for name in module.batch_fields}
                module.accumulate(batch, RandomStream(step, torch.device("cpu")), torch.autograd.backward)
                optimizer.step()
        weights.append(module.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_targets_are_exact_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages of exponentials stay float32 under autocast: the loss's targets match those without it."""
    module = headed()
    seen: list[Tensor] = []
    original = module.objective.loss
    monkeypatch.setattr(module.objective, "loss", lambda *a: (seen.append(a[1]), original(*a))[1])
    batch = {"samples": torch.rand(ROWS, A) * 2 - 1, "energies": torch.rand(ROWS, HEADS)}
    module.loss(batch, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        module.loss(batch, seeded())
    torch.testing.assert_close(seen[1], seen[0])
