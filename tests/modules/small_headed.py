"""A small network with several heads, its module, minibatches, and every objective with energies that it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cepdiff.energy.objectives import (
    CEP,
    DPS,
    MSE,
    DPSClassifier,
    ExponentialMSE,
    NoisyClassifier,
)
from cepdiff.modules.headed import HeadedEnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.energy import ResidualEnergy
from cepdiff.types import Batch

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
