"""Guidance with several heads: its loss written out, ranks against one process, and what it learns."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
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
from cepdiff.types import STEP_SEEDS, Batch

A, HEADS, ROWS = 2, 3, 8


class HeadedMLP(ResidualEnergy):
    """x (..., A), t (...) -> logits (..., heads)."""

    def __init__(self, condition_size: int, data_size: int, num_heads: int = HEADS, width: int = 16) -> None:
        super().__init__(condition_size, data_size, width=width, depth=1)
        self.output = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(width, num_heads))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        logits: Tensor = super().forward(x, t, condition)
        return logits if self.output[-1].out_features > 1 else logits.unsqueeze(-1)


def headed(net: Any = HeadedMLP, **options: Any) -> HeadedEnergyGuidance:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HeadedEnergyGuidance(0, A, net, **{"times_per_step": 3, "learning_rate": 1e-2, **options})


def seeded(seed: int = 3) -> RandomStream:
    return RandomStream(seed, torch.device("cpu"))


def of_labels(labels: Tensor) -> Tensor:
    """Energies (B, H): 0 for the sample's own class, infinite for the others."""
    return -torch.nn.functional.one_hot(labels, HEADS).float().log()


def minibatch(kind: str = "labels", rows: int = ROWS) -> Batch:
    numbers = torch.Generator().manual_seed(0)
    samples = torch.rand(rows, A, generator=numbers) * 2 - 1
    labels = torch.randint(HEADS - 1, (rows,), generator=numbers)  # the last class has no sample
    energies = of_labels(labels) if kind == "labels" else torch.rand(rows, HEADS, generator=numbers)
    return {"samples": samples, "energies": energies}


LABELLED = [CEP(2.0), ExponentialMSE(1.0), NoisyClassifier(), DPSClassifier()]
FINITE = [CEP(2.0), ExponentialMSE(1.0), MSE(1.5), DPS(1.5)]
CASES = [("labels", objective) for objective in LABELLED] + [("finite", objective) for objective in FINITE]
NAMES = [f"{kind}-{type(objective).__name__}" for kind, objective in CASES]
every_case = pytest.mark.parametrize(("kind", "objective"), CASES, ids=NAMES)


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


# Ranks

Shared = dict[int, Tensor]


class Rank(HeadedEnergyGuidance):
    """One of two ranks: threads that exchange tensors at a barrier."""

    rank: int
    barrier: threading.Barrier
    table: Shared

    def from_all_ranks(self, values: Tensor, noise: RandomStream, axis: int = 0) -> Tensor:
        self.table[self.rank] = values
        self.barrier.wait(timeout=30)
        gathered = torch.cat([self.table[rank] for rank in range(2)], axis)
        self.barrier.wait(timeout=30)
        return gathered


@pytest.mark.parametrize("average_targets", [True, False])
@every_case
def test_two_ranks_see_the_global_batch(kind: str, objective: EnergyObjective, average_targets: bool) -> None:
    """Loss, metrics and gradient of two halves match those of the whole, with gradients summed over the ranks."""
    options: dict[str, Any] = {"objective": objective, "average_targets": average_targets}
    whole, batch = headed(**options), minibatch(kind)
    loss, metrics = whole.loss(batch, seeded())
    expected = torch.autograd.grad(loss, list(whole.net.parameters()))
    barrier, table, results = threading.Barrier(2), Shared(), {}
    with torch.random.fork_rng():
        ranks = []
        for rank in range(2):
            torch.manual_seed(0)
            ranks.append(Rank(0, A, HeadedMLP, times_per_step=3, **options))
            ranks[-1].rank, ranks[-1].barrier, ranks[-1].table = rank, barrier, table

    def work(rank: int) -> None:
        part = {name: values[rank::2] for name, values in batch.items()}
        results[rank] = ranks[rank].loss(part, RandomStream(3, torch.device("cpu"), rank, 2))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for other, others in results.values():
        assert other.item() == pytest.approx(loss.item(), rel=1e-5)
        for name, value in metrics.items():
            assert others[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    parameters = [list(rank.net.parameters()) for rank in ranks]
    found = torch.autograd.grad(results[0][0], parameters[0] + parameters[1])
    for mine, theirs, value in zip(found[: len(expected)], found[len(expected) :], expected, strict=True):
        torch.testing.assert_close(mine + theirs, value, rtol=1e-3, atol=1e-6)


class Parts(torch.utils.data.IterableDataset[Batch]):
    """A block of 20 steps on one minibatch; each process takes its rows."""

    def __iter__(self) -> Iterator[Batch]:
        rank, world = (torch.distributed.get_rank(), 2) if torch.distributed.is_initialized() else (0, 1)
        part = {name: values[rank::world].expand(20, -1, -1) for name, values in minibatch().items()}
        yield {**part, STEP_SEEDS: torch.arange(20)}


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    """With Lightning's own launcher and gathering, gradients included."""
    nets = []
    for options in ({"devices": 1}, {"devices": 2, "strategy": "ddp_spawn"}):
        module = headed(learning_rate=1e-3)
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(Parts(), batch_size=None))
        nets.append(module.net.state_dict())
    start = headed().net.state_dict()
    for name, value in nets[0].items():
        # CEP ignores a constant: the last bias's gradient is rounding noise, which Adam scales up to its learning rate.
        if name not in ("output.1.bias", "time.frequencies"):
            torch.testing.assert_close(nets[1][name], value, rtol=1e-3, atol=2e-5, msg=name)
            assert not torch.equal(value, start[name])


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
            steps = CapturedSteps(module, optimizer, block, capture=lambda step: step)
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
