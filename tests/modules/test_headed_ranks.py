"""Guidance with several heads on several ranks: the loss is that of the global batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from small_headed import (
    A,
    HeadedMLP,
    every_case,
    headed,
    minibatch,
    seeded,
)
from torch import Tensor

from cepdiff.energy.objectives import (
    EnergyObjective,
)
from cepdiff.modules.headed import HeadedEnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.types import STEP_SEEDS, Batch

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
