"""Costs that can be counted instead of timed: evaluations, operators, copies and bytes must not creep up.

A number that falls is good news: lower it here. One that rises needs a reason, and its cost measured with
`benchmarks/speed.py` (docs/performance.md).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, states_of_rows
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import ResidualUNet
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.types import DataSpec

S, A, K, STEPS = 11, 3, 16, 15  # Hopper and its recipe


class Calls:
    """Counts the calls of networks and the rows of each call."""

    def __init__(self, **networks: nn.Module) -> None:
        self.rows: dict[str, list[int]] = {name: [] for name in networks}
        for name, network in networks.items():
            network.register_forward_pre_hook(lambda _, args, name=name: self.rows[name].append(len(args[0])))


class Operators(TorchDispatchMode):
    """Counts the operators that do work, without views, which cost next to nothing on a device."""

    VIEWS = ("view", "expand", "unsqueeze", "squeeze", "t", "transpose", "slice", "select", "detach", "split", "alias")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.removesuffix("_with_sizes")
        if not name.startswith(self.VIEWS):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def policy() -> GuidedPolicy:
    spec = DataSpec(S, A, (-1.0,) * A, (1.0,) * A)
    networks = {"behavior": ResidualUNet(S, A), "energy": EnergyMLP(S, A)}
    return GuidedPolicy(spec, GuidedSampler(SamplerParts(A, networks, LinearVP(), DPMSolver(STEPS))))


def test_network_evaluations_of_an_action() -> None:
    """The solver's budget, one gradient per evaluation; none at scale 0, and none for rows at scale 0."""
    acting = policy()
    calls = Calls(score=acting.sampler.networks["behavior"], energy=acting.sampler.networks["energy"])
    acting.act(torch.randn(4, S), guidance_scale=torch.tensor([0.0, 1.0, 2.0, 0.0]))
    assert calls.rows == {"score": [4] * STEPS, "energy": [2] * STEPS}
    acting.act(torch.randn(4, S), guidance_scale=0.0)
    assert len(calls.rows["energy"]) == STEPS


def test_support_actions_share_what_is_equal() -> None:
    """A state is embedded once for its K actions, and the time once for all: neither has an axis of actions."""
    net = ResidualUNet(S, A)
    shapes: list[tuple[torch.Size, torch.Size]] = []
    net.joint.register_forward_pre_hook(lambda _, args: shapes.append((args[0].shape, args[1].shape)))
    with torch.no_grad():
        sample_guided(net, LinearVP(), DPMSolver(STEPS), torch.randn(5, 1, S), torch.randn(5, K, A), data_bound=1.0)
    assert shapes == [(torch.Size([5, 1, 32]), torch.Size([32]))] * STEPS


MODULES = {
    "behavior": (lambda: BehaviorDiffusion(S, A), 210),
    "critic": (lambda: SoftmaxQCritic(S, A), 120),
    "guidance": (lambda: EnergyGuidance(S, A), 120),
}


@pytest.mark.parametrize("name", MODULES)
def test_operators_of_an_optimiser_step(name: str) -> None:
    """Forward, backward, optimiser and averages: each operator is a kernel launch."""
    make, most = MODULES[name]
    module: StageModule = make()
    rows = {
        "observations": torch.randn(8, S),
        "actions": torch.rand(8, A),
        "rewards": torch.rand(8),
        "terminals": torch.zeros(8),
        "next_observations": torch.randn(8, S),
        "support_actions": torch.rand(8, K, A),
        "next_support_actions": torch.rand(8, K, A),
        "energies": torch.rand(8, K),
    }
    batch = {field: rows[field] for field in module.batch_fields}
    optimizer = torch.optim.AdamW(module.net.parameters(), fused=True)
    for _ in range(2):  # the first step creates the optimiser's state
        with Operators() as seen:
            optimizer.zero_grad(set_to_none=True)
            module.accumulate(batch, RandomStream(0, torch.device("cpu")), torch.autograd.backward)
            optimizer.step()
            module.after_step()
    total = sum(seen.counts.values())
    assert total <= most, seen.counts.most_common()
    assert total > most - 15, f"{total} operators, fewer than the {most} that are allowed: lower the bound"
    assert seen.counts["_fused_adamw_"] == 1


@pytest.fixture
def data(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> OfflineDataModule:
    """Ten episodes of a hundred rows, with support actions and energies at every state."""
    rows = 1000
    draws = np.random.default_rng(0)
    ends = np.arange(1, rows + 1) % 100 == 0
    raw = RawArrays(
        observations=draws.normal(size=(rows, S)).astype(np.float32),
        actions=draws.uniform(-1, 1, (rows, A)).astype(np.float32),
        rewards=draws.normal(size=rows).astype(np.float32),
        terminals=ends,
        timeouts=np.zeros(rows, np.bool_),
        next_observations=None,
        metadata={},
        source="made",
    )
    module = OfflineDataModule("made", reward_rule="none")
    buffer = TransitionBuffer.from_arrays(raw)
    monkeypatch.setattr(module, "load_buffer", lambda: buffer)
    module.setup()
    SupportCache.create(tmp_path, states_of_rows(buffer, torch.arange(rows)), K, A, chunk_size=500)
    return module.with_support(SupportCache(tmp_path, len(buffer.states)), torch.zeros(rows, K))


def storages(*tensors: Tensor) -> dict[int, int]:
    """Bytes of the distinct storages behind tensors, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


def held_by(gather: Any) -> list[Tensor]:
    """The tensors that a gatherer keeps."""
    (tables,) = (cell.cell_contents for cell in gather.__closure__ if isinstance(cell.cell_contents, dict))
    return [tensor for pair in tables.values() for tensor in pair if tensor is not None]


@pytest.mark.parametrize(
    ("make", "bytes_a_row"),
    [
        # float32 observations and actions
        (lambda: BehaviorDiffusion(S, A), 4 * (S + A)),
        # plus s' by index, rewards, terminals, K actions at s' by slot
        (lambda: SoftmaxQCritic(S, A), 4 * (S + A + 1 + 1 + K * A) + 8 + 8),
        # K actions and energies at s, by slot
        (lambda: EnergyGuidance(S, A), 4 * (S + K * A + K) + 8),
    ],
)
def test_bytes_of_a_row(data: OfflineDataModule, make: Any, bytes_a_row: int) -> None:
    """A stage holds each piece of data once: s' is s of the next row, not a separate table."""
    held = storages(*held_by(data.gatherer(make().batch_fields)))
    assert sum(held.values()) == bytes_a_row * len(data.buffer)


def test_the_buffer_is_not_copied(data: OfflineDataModule) -> None:
    """On the CPU all stages gather from the buffer itself, and support actions from the memory-mapped file."""
    buffer = data.buffer
    held = storages(*held_by(data.gatherer(SoftmaxQCritic.batch_fields)))
    assert storages(buffer.states, buffer.actions, buffer.rewards, buffer.next_index).keys() <= held.keys()
    cache = data._cache()
    assert isinstance(cache.actions, np.memmap)
    assert torch.from_numpy(cache.actions).untyped_storage().data_ptr() in held
