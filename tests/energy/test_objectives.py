"""Objectives of the energy network: closed forms first, then what each of them learns."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.energy.objectives import (
    CEP,
    DPS,
    MSE,
    DPSClassifier,
    EnergyObjective,
    ExponentialMSE,
    NoisyClassifier,
    cep_loss,
    effective_sample_size,
    exponential_mse_loss,
    head_cross_entropy,
    mean_where,
    mse_loss,
)
from cepdiff.errors import ConfigError

LOSSES = [cep_loss, mse_loss, exponential_mse_loss, head_cross_entropy]
LOSS_OF = {CEP: cep_loss, MSE: mse_loss, ExponentialMSE: exponential_mse_loss, DPS: mse_loss}
OBJECTIVES: list[type[EnergyObjective]] = [*LOSS_OF]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Losses


def test_cep_by_hand() -> None:
    energies, logits = [1.0, 2.0, 4.0], [0.5, -1.0, 0.0]
    weights = [math.exp(-0.7 * energy) for energy in energies]
    labels = [weight / sum(weights) for weight in weights]
    normaliser = math.log(sum(math.exp(logit) for logit in logits))
    expected = -sum(label * (logit - normaliser) for label, logit in zip(labels, logits, strict=True))
    loss, metrics = CEP(0.7)(torch.tensor([logits]).double(), torch.tensor([energies]).double())
    entropy = -sum(label * math.log(label) for label in labels)
    assert loss.item() == pytest.approx(expected)
    assert metrics["excess"].item() == pytest.approx(expected - entropy)


def test_cep_with_labels_that_do_not_sum_to_one() -> None:
    """Their sum is the set's weight; `excess` uses their normalised shares; a label of 0 is fine."""
    labels, logits = normal(5, 4).exp(), normal(5, 4, seed=1)
    labels[2, 1] = 0.0
    total = labels.sum(-1, keepdim=True)
    loss, metrics = cep_loss(logits, labels)
    rows = [cep_loss(logits[i : i + 1], (labels / total)[i : i + 1]) for i in range(5)]
    expected = sum(float(total[i]) * row[0].item() for i, row in enumerate(rows)) / 5
    assert loss.item() == pytest.approx(expected)
    assert metrics["excess"].item() == pytest.approx(sum(row[1]["excess"].item() for row in rows) / 5)
    for i in range(5):
        shares = (labels / total)[i]
        kl = sum(float(p * (p.log() - q)) for p, q in zip(shares, logits[i].log_softmax(-1), strict=True) if p > 0)
        assert rows[i][1]["excess"].item() == pytest.approx(kl)


def test_sets_without_a_label_have_no_part_in_cep() -> None:
    """A class without samples in the batch: no contribution to the loss, no NaN; `excess` counts only the others."""
    logits, labels = normal(3, 4).requires_grad_(True), normal(3, 4, seed=1).exp()
    labels[1] = 0.0
    loss, metrics = cep_loss(logits, labels)
    others, other_metrics = cep_loss(logits[[0, 2]], labels[[0, 2]])
    assert loss.item() == pytest.approx(others.item() * 2 / 3)
    assert metrics["excess"].item() == pytest.approx(other_metrics["excess"].item())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[1], torch.zeros(4).double())
    empty, nothing = cep_loss(logits, torch.zeros(3, 4).double())
    assert [empty.item(), nothing["excess"].item()] == [0.0, 0.0]


def test_info_nce_by_hand() -> None:
    """Label energies, 0 or infinite: each class's logits over the batch, at the samples of that class."""
    labels, logits = [1, 0, 1, 1], normal(3, 4)
    energies = torch.full((3, 4), math.inf, dtype=torch.float64)
    energies[labels, range(4)] = 0.0
    loss, metrics = CEP().loss(logits, CEP().targets(energies, per_set=False))
    picked = [logits[label].log_softmax(0)[k] for k, label in enumerate(labels)]
    assert loss.item() == pytest.approx(-float(sum(picked)) / (4 * 3))
    assert math.isfinite(metrics["excess"].item())


def test_cep_averages_over_rows() -> None:
    logits, energies = normal(5, 4), normal(5, 4, seed=1)
    objective = CEP(2.0)
    rows = [objective(logits[i : i + 1], energies[i : i + 1]) for i in range(5)]
    loss, metrics = objective(logits, energies)
    assert loss.item() == pytest.approx(sum(row.item() for row, _ in rows) / 5)
    for name in metrics:
        assert metrics[name].item() == pytest.approx(sum(row[name].item() for _, row in rows) / 5)


def test_cep_at_its_optimum_is_the_entropy_of_the_labels() -> None:
    """f = -beta E plus anything that depends only on the row: no gradient, no excess."""
    energies, beta = normal(6, 5), 3.0
    logits = (-beta * energies + 10.0 * normal(6, 1, seed=1)).requires_grad_(True)
    loss, metrics = CEP(beta)(logits, energies)
    labels = (-beta * energies).softmax(-1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(-(labels * labels.log()).sum(-1).mean().item())
    assert metrics["excess"].item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_cep_pushes_logits_towards_low_energies() -> None:
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    loss, _ = CEP(1.0)(logits, torch.tensor([[0.0, 1.0]]).double())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]  # descent raises the logit of the lower energy


def test_cep_does_not_see_a_rows_constant() -> None:
    logits, energies = normal(4, 3), normal(4, 3, seed=1)
    plain, _ = CEP(2.0)(logits, energies)
    moved, _ = CEP(2.0)(logits + 7.0 * normal(4, 1, seed=2), energies + 5.0 * normal(4, 1, seed=3))
    assert moved.item() == pytest.approx(plain.item())


@pytest.mark.parametrize("objective", [MSE, DPS])
def test_mse_by_hand(objective: type[EnergyObjective]) -> None:
    loss, _ = objective(0.5)(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, -1.0]]))
    assert loss.item() == pytest.approx(((1.0 + 1.0) ** 2 + (0.0 - 0.5) ** 2) / 2)


def test_exponential_mse_by_hand() -> None:
    objective = ExponentialMSE(0.5)
    loss, _ = objective(torch.tensor([[0.0, -1.0]]), torch.tensor([[5.0, 7.0]]))
    assert loss.item() == pytest.approx(((1 - 1) ** 2 + (math.exp(-1) - math.exp(-1)) ** 2) / 2, abs=1e-12)
    loss, _ = objective(torch.tensor([[0.5, -1.0]]), torch.tensor([[7.0, 5.0]]))
    assert loss.item() == pytest.approx(((math.exp(0.5) - math.exp(-1)) ** 2 + (math.exp(-1) - 1) ** 2) / 2)


@pytest.mark.parametrize("objective", [CEP, ExponentialMSE])
@pytest.mark.parametrize("size", [1e4, 1e12])
def test_huge_energies_and_logits_stay_finite(objective: type[EnergyObjective], size: float) -> None:
    logits = (size * torch.tensor([[1.0, -1.0, 0.5]])).requires_grad_(True)
    for energies in (torch.tensor([[-1.0, 0.0, 1.0]]) * size, torch.full((1, 3), -size)):
        loss, metrics = objective(3.0)(logits, energies)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())
        assert all(bool(value.isfinite()) for value in metrics.values())


@pytest.mark.parametrize("loss_of", LOSSES)
def test_metrics_carry_no_graph_and_begin_with_the_loss(loss_of) -> None:
    loss, metrics = loss_of(torch.randn(3, 4, requires_grad=True), torch.rand(3, 4))
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == () for value in metrics.values())
    assert metrics["loss"].item() == loss.item()


@pytest.mark.parametrize("loss_of", LOSSES)
def test_a_loss_is_linear_in_the_targets_up_to_terms_without_logits(loss_of) -> None:
    """The gradient for a mean of targets is the mean of their gradients, so targets may be averaged."""
    logits = normal(3, 4).requires_grad_(True)
    several = normal(7, 3, 4, seed=1).exp()
    gradients = [torch.autograd.grad(loss_of(logits, targets)[0], logits)[0] for targets in several]
    (of_the_mean,) = torch.autograd.grad(loss_of(logits, several.mean(0))[0], logits)
    torch.testing.assert_close(torch.stack(gradients).mean(0), of_the_mean)


# Targets


@every_objective
def test_an_objective_passes_its_inverse_temperature(objective: type[EnergyObjective]) -> None:
    logits, energies = normal(4, 3), normal(4, 3, seed=1)
    loss, _ = objective(1.7)(logits, energies)
    assert loss.item() == LOSS_OF[objective](logits, objective(1.7).targets(energies))[0].item()
    assert loss.item() != objective(3.0)(logits, energies)[0].item()


@every_objective
@pytest.mark.parametrize("per_set", [True, False])
def test_targets_by_hand(objective: type[EnergyObjective], per_set: bool) -> None:
    """Only exponential targets are normalised, within independent sets; the others never are."""
    energies, beta = torch.tensor([[0.0, 1.0], [0.5, 2.0]], dtype=torch.float64), 1.5
    w = [[math.exp(-beta * float(energy)) for energy in row] for row in energies]
    expected = {
        (CEP, True): [[value / sum(row) for value in row] for row in w],
        (CEP, False): [[value / 2 for value in row] for row in w],
        (ExponentialMSE, True): [[value / max(row) for value in row] for row in w],
        (ExponentialMSE, False): w,
    }.get((objective, per_set), (-beta * energies).tolist())
    torch.testing.assert_close(objective(beta).targets(energies, per_set), torch.tensor(expected).double())
    assert torch.equal(objective(beta).targets(energies), objective(beta).targets(energies, True))  # the default


@every_objective
def test_targets_of_one_density_do_not_depend_on_the_other_samples(objective: type[EnergyObjective]) -> None:
    energies = normal(8).abs()
    targets = objective(2.0).targets(energies, per_set=False)
    again = objective(2.0).targets(torch.cat([energies[:4], normal(4, seed=1).abs()]), per_set=False)
    torch.testing.assert_close(targets[:4], again[:4])


def test_only_dps_looks_at_clean_samples() -> None:
    assert [objective.on_clean for objective in (CEP, MSE, ExponentialMSE, DPS)] == [False, False, False, True]
    energies = normal(3, 4)
    assert torch.equal(DPS(2.0).targets(energies), MSE(2.0).targets(energies))


@every_objective
@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(objective: type[EnergyObjective], beta: float) -> None:
    with pytest.raises(ConfigError, match=r"inverse_temperature is .*above 0"):
        objective(beta)


@pytest.mark.parametrize("per_set", [True, False])
def test_cep_refuses_to_contrast_one_sample(per_set: bool) -> None:
    with pytest.raises(ConfigError, match="K is 1, expected at least 2"):
        CEP().targets(torch.zeros(3, 1), per_set)
    assert MSE().targets(torch.zeros(3, 1), per_set).shape == (3, 1)  # the others do not contrast


def test_effective_sample_size() -> None:
    energies = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1e6, 1e6, 1e6], [0.0, 0.0, 1e6, 1e6]])
    assert effective_sample_size(energies, 2.0).tolist() == pytest.approx([4.0, 1.0, 2.0])
    of_labels = torch.tensor([[0.0, math.inf, 0.0], [math.inf, 0.0, math.inf], [math.inf, math.inf, math.inf]])
    assert effective_sample_size(of_labels, 2.0).tolist() == [2.0, 1.0, 0.0]
    assert effective_sample_size(torch.tensor([0.0, math.nan]), 2.0).isnan()  # invalid energies are not hidden


def test_mean_where() -> None:
    values = torch.tensor([1.0, math.nan, 4.0])
    assert mean_where(values, torch.tensor([True, False, True])).item() == 2.5
    assert mean_where(values, torch.tensor([False, False, False])).item() == 0.0
    assert mean_where(values, torch.tensor([True, True, True])).isnan()


# Heads


def test_only_what_regresses_on_energies_refuses_infinite_ones() -> None:
    energies = torch.tensor([[0.0, math.inf], [math.inf, 0.0]])
    for allowing in (CEP(), ExponentialMSE(), NoisyClassifier(), DPSClassifier()):
        allowing.check_heads(energies)
        loss, _ = allowing.loss(torch.zeros(2, 2), allowing.targets(energies, per_set=False))
        assert bool(loss.isfinite())
    for refusing in (MSE(), DPS()):
        refusing.check_heads(energies.clamp(max=5.0))
        with pytest.raises(ConfigError, match=f"{type(refusing).__name__} cannot be trained on infinite energies"):
            refusing.check_heads(energies)


@pytest.mark.parametrize("objective", [NoisyClassifier(), DPSClassifier()])
def test_classifiers_refuse_energies_of_no_classes(objective: EnergyObjective) -> None:
    probabilities = torch.tensor([[0.3, 1.0, 0.5], [0.7, 0.0, 0.5]])
    objective.check_heads(-probabilities.log())
    with pytest.raises(ConfigError, match=r"exp\(-E\) sums over the heads to 1.2, expected 1"):
        objective.check_heads(-torch.tensor([[0.3, 0.7], [0.7, 0.5]]).log())
    assert objective.inverse_temperature == 1.0


def test_only_classifiers_compare_the_heads() -> None:
    logits = normal(5, 3)
    for objective in (CEP(), MSE(), ExponentialMSE(), DPS()):
        assert objective.guiding_logits(logits) is logits
    assert torch.equal(NoisyClassifier().guiding_logits(logits), logits.log_softmax(-1))
