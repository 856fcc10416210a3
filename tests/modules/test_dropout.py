"""Dropout draws from torch's global generators, which each optimiser step seeds: runs repeat and resume exactly."""

from __future__ import annotations

from typing import Any

import torch
from small_modules import A, S, block, fit, weights
from torch import Tensor, nn

from cepdiff.modules.base import StageModule
from cepdiff.modules.noise import RandomStream
from cepdiff.types import Batch, Metrics


class Clone(StageModule):
    """Behavior cloning with dropout."""

    stage = "clone"
    batch_fields = ("observations", "actions")

    def __init__(self, rate: float = 0.5, **options: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(S, 16), nn.Dropout(rate), nn.Linear(16, A))
        super().__init__(net, learning_rate=1e-2, batch_size=8, **options)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        loss = (self.net(batch["observations"]) - batch["actions"]).square().mean()
        return loss, {"loss": loss.detach()}


def trained(*steps: range, global_seed: int) -> dict[str, Tensor]:
    torch.manual_seed(global_seed)
    module = Clone()
    fit(module, [block(module, part) for part in steps])
    return weights(module)


def test_the_weights_do_not_depend_on_the_global_generator_or_the_length_of_blocks() -> None:
    first = trained(range(6), global_seed=0)
    second = trained(range(2), range(2, 6), global_seed=1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_drop_different_units() -> None:
    once, twice = (trained(*steps, global_seed=0) for steps in ([range(3)], [range(2), range(1, 2)]))
    assert not torch.equal(once["net.0.weight"], twice["net.0.weight"])


def test_steps_with_dropout_are_not_captured() -> None:
    class OnGpu(Clone):
        device = torch.device("cuda")  # type: ignore[assignment]
        trainer = type("Trainer", (), {"world_size": 1})()

    steps = block(Clone(), range(2))
    assert [OnGpu(rate)._are_captured(steps) for rate in (0.0, 0.5)] == [True, False]
