"""Several heads: each objective's optimum in exact numbers, and samples guided by one head per row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cepdiff.diffusion.guidance import logits_gradient
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.heads import FunctionEnergy, HeadLogits, head_guidance
from cepdiff.energy.objectives import CEP, DPS, DPSClassifier, EnergyObjective, ExponentialMSE, NoisyClassifier
from cepdiff.errors import ConfigError
from cepdiff.policy.sampler import GuidedSampler, SamplerParts

SCHEDULE = LinearVP()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The optimum: x_0 has three values, x_t four; three classes, the last without samples.

PRIOR = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # q(x_0)
KERNEL = torch.tensor(  # p(x_t | x_0), rows sum to one
    [[0.6, 0.2, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.2, 0.6]], dtype=torch.float64
)
JOINT = PRIOR.unsqueeze(-1) * KERNEL  # q(x_0, x_t), (3, 4)
POSTERIOR = JOINT / JOINT.sum(0)  # q(x_0 | x_t)
HARD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)  # p(h | x_0), (H, 3)
SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)


def expected_loss(objective: EnergyObjective, logits: Tensor, energies: Tensor) -> tuple[Tensor, list[float]]:
    """The mean loss over all sets of two independent pairs (x_0, x_t), weighted by probability; `logits` (H, 4).

    Also returns the other metrics of the sets.
    """
    x0, xt = torch.cartesian_prod(torch.arange(3), torch.arange(4)).unbind(-1)  # the 12 pairs
    weight = JOINT.flatten()
    first, second = torch.cartesian_prod(torch.arange(12), torch.arange(12)).unbind(-1)  # the 144 sets
    losses, metrics = [], []
    for i, j in zip(first, second, strict=True):
        pair = torch.stack([i, j])
        targets = objective.targets(energies[:, x0[pair]], per_set=False)  # (H, 2)
        loss, others = objective.loss(logits[:, xt[pair]], targets)
        losses.append(loss)
        metrics += [value.item() for value in others.values()]
    return (weight[first] * weight[second]) @ torch.stack(losses), metrics


def optimum(objective: EnergyObjective, probabilities: Tensor) -> Tensor:
    """The table of logits (H, 4) with the smallest expected loss; energies are -log of `probabilities` (H, 3)."""
    energies = -probabilities.log()
    objective.check_heads(energies)
    logits = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=60, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, metrics = expected_loss(objective, logits, energies)
        assert all(math.isfinite(value) for value in metrics)  # this includes sets without a sample of some class
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def test_info_nce_finds_the_posterior_of_each_class_up_to_its_constant() -> None:
    """Each class separately over the batch axis; a class without samples contributes nothing."""
    found, exact = optimum(CEP(), HARD), (HARD @ POSTERIOR).log()
    torch.testing.assert_close((found - found[:, :1])[:2], (exact - exact[:, :1])[:2], atol=1e-6, rtol=0)
    assert torch.equal(found[2], torch.zeros(4).double())


def test_cep_of_soft_labels_finds_the_posterior_of_each_head() -> None:
    found, exact = optimum(CEP(1.0), SOFT), (SOFT @ POSTERIOR).log()
    torch.testing.assert_close(found - found[:, :1], exact - exact[:, :1], atol=1e-6, rtol=0)


def test_exponential_mse_finds_the_posterior_itself() -> None:
    torch.testing.assert_close(optimum(ExponentialMSE(1.0), SOFT), (SOFT @ POSTERIOR).log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", [NoisyClassifier, DPSClassifier])
def test_a_classifier_finds_the_posterior_of_the_classes(objective: type[EnergyObjective]) -> None:
    """Its logits compare classes, so the guidance gradient is that of their softmax over the heads."""
    guiding = objective().guiding_logits(optimum(objective(), SOFT).T).T  # type: ignore[call-arg]
    torch.testing.assert_close(guiding, (SOFT @ POSTERIOR).log(), atol=1e-6, rtol=0)


def test_a_classifier_by_hand() -> None:
    logits, energies = normal(2, 3, 4), torch.full((3, 4), math.inf, dtype=torch.float64)
    labels = [2, 0, 0, 1]
    for k, label in enumerate(labels):
        energies[label, k] = 0.0
    objective = NoisyClassifier()
    loss, metrics = objective.loss(logits, objective.targets(energies, per_set=False))
    expected = [-logits[i, :, k].log_softmax(0)[label] for i in range(2) for k, label in enumerate(labels)]
    assert loss.item() == pytest.approx(sum(value.item() for value in expected) / 8)
    assert metrics["loss"].item() == loss.item()
    assert torch.equal(objective.guiding_logits(logits), logits.log_softmax(-1))
    assert [objective.on_clean, DPSClassifier().on_clean] == [False, True]


@pytest.mark.parametrize(("energies", "per_set"), [((4,), False), ((1, 4), False), ((3, 4), True)])
def test_a_classifier_needs_several_heads(energies: tuple[int, ...], per_set: bool) -> None:
    """And rejects contrastive sets of states, whose energies (B, K) look the same."""
    with pytest.raises(ConfigError, match=r"NoisyClassifier compares the heads .*expected at least 2 classes"):
        NoisyClassifier().targets(torch.zeros(energies), per_set)


# One head per row


def wave(x: Tensor, t: Tensor, condition: None) -> Tensor:
    """Three heads (..., 3), smooth in all arguments."""
    assert condition is None
    return torch.stack([(x * (h + 1.0)).sin().sum(-1) * (1.0 + t) for h in range(3)], -1)


def eps_net(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Unconditional: it does not see the heads."""
    assert condition is None
    return 0.95 * x + 0.1 * (x + t).sin()


class Function(nn.Module):
    """Wraps a function as a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


def sample_heads(
    eps: Callable[..., Tensor],
    energy: Callable[..., Tensor],
    objective: EnergyObjective,
    solver: DPMSolver,
    noise: Tensor,
    heads: Tensor,
    guidance_scale: Tensor,
) -> Tensor:
    """Samples (B, A) from the runs' sampler, with one head (B,) and one scale (B,) per row of `noise`."""
    networks = {"behavior": Function(eps), "energy": Function(energy)}
    parts = SamplerParts(noise.shape[-1], networks, SCHEDULE, solver, objective, headed=True)
    return GuidedSampler(parts).sample(heads.unsqueeze(-1), noise, guidance_scale)


class Counting:
    """Records the number of rows of each call and whether gradients are on."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: None) -> Tensor:
        assert torch.is_grad_enabled()
        self.rows.append(len(x))
        return wave(x, t, condition)


@pytest.mark.parametrize("objective", [CEP(), NoisyClassifier()])
def test_each_row_has_the_logits_of_its_head(objective: EnergyObjective) -> None:
    x, t, heads = normal(5, 2), torch.tensor(0.3).double(), torch.tensor([2, 0, 1, 1, 2])
    found = HeadLogits(wave, objective)(x, t, heads.unsqueeze(-1))
    whole = wave(x, t, None)
    whole = whole.log_softmax(-1) if isinstance(objective, NoisyClassifier) else whole
    assert found.tolist() == [whole[i, head].item() for i, head in enumerate(heads.tolist())]


@pytest.mark.parametrize("head", [-1, 3])
def test_a_head_that_is_not_there(head: int) -> None:
    heads = torch.tensor([0, head])
    with pytest.raises(ConfigError, match=f"there is no head {head}; the energy network has 3"):
        sample_heads(eps_net, wave, CEP(), DPMSolver(2), normal(2, 2), heads, torch.ones(2))


def test_no_head_for_a_row() -> None:
    with pytest.raises(ConfigError, match="need the head of each row"):
        HeadLogits(wave, CEP())(normal(2, 2), torch.tensor(0.5), None)
    with pytest.raises(ConfigError, match="expected one per sample"):
        HeadLogits(wave, CEP())(normal(3, 2), torch.tensor(0.5), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("objective", [CEP(), NoisyClassifier(), DPS()], ids=["cep", "classifier", "dps"])
def test_rows_of_all_heads_and_scales_equal_separate_calls(objective: EnergyObjective) -> None:
    """Rows are independent; rows of scale 0 match the plain sampler and cost no gradient."""
    noise, solver = normal(7, 2), DPMSolver(5)
    heads, scales = torch.tensor([0, 1, 2, 2, 1, 0, 0]), torch.tensor([1.0, 0.0, 1.0, 2.0, 2.0, 0.0, 2.0]).double()
    counting = Counting()
    with torch.no_grad():
        together = sample_heads(eps_net, counting, objective, solver, noise, heads, scales)
        assert counting.rows == [5] * 5
        plain = sample_guided(eps_net, SCHEDULE, solver, None, noise, data_bound=1.0)
        counting.rows.clear()
        for i in range(7):
            row = slice(i, i + 1)
            alone = sample_heads(eps_net, counting, objective, solver, noise[row], heads[row], scales[row])
            torch.testing.assert_close(together[row], alone)
            assert torch.equal(together[i], plain[i]) == (float(scales[i]) == 0.0)
        assert counting.rows == [1] * 25  # for the five rows with a scale
    assert float(together.abs().max()) <= 1.0


def test_a_clean_objective_guides_through_the_predicted_sample() -> None:
    """Its logits are those at x0_pred and t_min, and the gradient runs through the noise predictor."""
    x, t, heads = normal(4, 2), torch.tensor(0.4).double(), torch.tensor([[0], [1], [2], [1]])
    found = head_guidance(eps_net, wave, DPSClassifier(), SCHEDULE)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)

    def by_hand(x: Tensor) -> Tensor:
        x0 = (x - sigma * eps_net(x, t, None)) / alpha
        return wave(x0, torch.tensor(SCHEDULE.t_min).double(), None).log_softmax(-1).gather(-1, heads).squeeze(-1)

    torch.testing.assert_close(found(x, t, heads), by_hand(x))
    gradient, step = logits_gradient(found, x, t, heads), 1e-6
    for j in range(2):
        shift = step * torch.eye(2).double()[j]
        torch.testing.assert_close(
            gradient[:, j], (by_hand(x + shift) - by_hand(x - shift)) / (2 * step), rtol=1e-5, atol=1e-6
        )


# Exactness: three Gaussian components, with their labels as heads

MEANS = torch.tensor([[0.6, 0.0], [-0.3, 0.5], [-0.3, -0.5]], dtype=torch.float64)
STD = 0.15


def log_joint(x: Tensor, t: Tensor) -> Tensor:
    """log p(x_t, y) (..., 3) up to a constant: components N(alpha m, alpha² s² + sigma²) with equal weights."""
    alpha, variance = SCHEDULE.alpha(t), (SCHEDULE.alpha(t) * STD) ** 2 + SCHEDULE.sigma(t) ** 2
    return -0.5 * (x.unsqueeze(-2) - alpha * MEANS).square().sum(-1) / variance


def mixture_eps(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """-sigma times the mixture's score."""
    return -SCHEDULE.sigma(t) * logits_gradient(lambda x, t, c: log_joint(x, t).logsumexp(-1), x, t, None)


@pytest.mark.parametrize("objective", [CEP(), NoisyClassifier()], ids=["cep", "classifier"])
def test_samples_of_a_class_have_its_density(objective: EnergyObjective) -> None:
    """Optimal logits of each objective: log p(y|x_t) plus a constant per class or per sample."""

    def optimal(x: Tensor, t: Tensor, condition: None) -> Tensor:
        if isinstance(objective, NoisyClassifier):
            return log_joint(x, t) + x.sin().sum(-1, keepdim=True)  # the softmax over the heads removes it
        return log_joint(x, t).log_softmax(-1) + torch.tensor([3.0, -1.0, 0.5]) * t

    heads = torch.arange(3).repeat_interleave(400)
    with torch.no_grad():
        samples = sample_heads(
            mixture_eps, optimal, objective, DPMSolver(40), normal(1200, 2), heads, torch.ones(1200).double()
        )
    for head in range(3):
        found = samples[heads == head]
        torch.testing.assert_close(found.mean(0), MEANS[head], atol=4.0 * STD / math.sqrt(400), rtol=0)
        assert found.std(0).tolist() == pytest.approx([STD, STD], rel=0.12)


# A user's own function

SLOPES = torch.tensor([[1.0, 0.0], [0.0, -0.5]], dtype=torch.float64)  # for E_h(x) = slope_h · x


def linear(images: Tensor) -> Tensor:
    """(N, 1, 1, 2) -> (N, 2)."""
    assert images.shape[1:] == (1, 1, 2)
    return images.flatten(1) @ SLOPES.T


def test_a_function_is_an_energy_without_training() -> None:
    """For q = N(0, s²) and linear energies DPS is exact: p = N(-beta s² slope, s²), checked at its quantiles."""
    std, beta, n = 0.2, 5.0, 1000
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    noise = torch.stack([quantiles, quantiles.flip(0)], -1).repeat(2, 1)
    heads = torch.arange(2).repeat_interleave(n)

    def gaussian_eps(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        return sigma * x / (alpha**2 * std**2 + sigma**2)

    energy = FunctionEnergy(0, 2, linear, (1, 1, 2), beta)
    with torch.no_grad():
        samples = sample_heads(gaussian_eps, energy, DPS(beta), DPMSolver(60), noise, heads, torch.ones(2 * n).double())
    for head in range(2):
        found = samples[heads == head]
        torch.testing.assert_close(found.mean(0), -beta * std**2 * SLOPES[head], atol=0.01, rtol=0)
        assert found.std(0).tolist() == pytest.approx([std, std], abs=0.01)


def test_the_logits_of_a_function() -> None:
    energy = FunctionEnergy(0, 2, linear, (1, 1, 2), 3.0)
    x = normal(4, 5, 2)
    torch.testing.assert_close(energy(x, torch.tensor(0.1), None), -3.0 * x @ SLOPES.T)
    single = FunctionEnergy(0, 2, lambda images: images.mean((1, 2, 3)), (1, 1, 2), 2.0)
    torch.testing.assert_close(single(x, torch.tensor(0.1), None), -2.0 * x.mean(-1, keepdim=True))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (linear, (3, 2, 2), r"samples have 2 values; images \(3, 2, 2\) do not fit"),
        (lambda images: images.mean(), (1, 1, 2), r"gave \(\) for images \(4, 1, 1, 2\)"),
        (lambda images: images, (1, 1, 2), r"gave \(4, 1, 1, 2\) for .*expected \(4,\) or \(4, heads\)"),
        (lambda images: images[1:].mean((1, 2, 3)), (1, 1, 2), r"gave \(3,\) for .*expected \(4,\)"),
        (lambda images: images.detach().mean((1, 2, 3)), (1, 1, 2), "has no gradient in the images"),
    ],
)
def test_functions_that_are_no_energies(function, shape: tuple[int, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        sample_heads(
            mixture_eps,
            FunctionEnergy(0, 2, function, shape, 1.0),
            DPS(),
            DPMSolver(2),
            normal(4, 2),
            torch.zeros(4).long(),
            torch.ones(4).double(),
        )
