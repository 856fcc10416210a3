"""Modules with known answers for diagnostics: Gaussian behavior policies, a linear value, exact guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache, fill, support_noise
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.diagnostics import Diagnostics, diagnose
from cepdiff.policy.sampler import GuidedSampler, SamplerParts

S, A, K, N = 2, 3, 16, 1500
SPREAD = 0.05  # standard deviation c of the behavior policy, per dimension
SLOPE = 4.0  # |∇_a Q|
BETA = 1.0 / (SLOPE * SPREAD)  # so that scale 1 moves actions by one standard deviation
SCHEDULE = LinearVP()
SOLVER = DPMSolver(20)
SCALES = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]
DIRECTION = torch.tensor([2.0, -1.0, 2.0]) / 3.0


def policy_mean(states: Tensor) -> Tensor:
    """Mean action (..., A) of the behavior policy at normalised states (..., S)."""
    return 0.2 * torch.tanh(states[..., :1] + torch.tensor([0.0, 1.0, -1.0]))


def variance(t: Tensor) -> Tensor:
    """Variance of the noised actions: alpha² c² + sigma²."""
    return SCHEDULE.alpha(t) ** 2 * SPREAD**2 + SCHEDULE.sigma(t) ** 2


class Net(nn.Module):
    """Wraps a function as a network with one (unused) weight, so that modules can hold it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def noise_prediction(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    return SCHEDULE.sigma(t) * (x - SCHEDULE.alpha(t) * policy_mean(states)) / variance(t)


def logits(x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """log E[exp(beta SLOPE w·x_0) | x_t] up to a constant: exact for a Gaussian and a linear value."""
    return BETA * SLOPE * (x @ DIRECTION) * SCHEDULE.alpha(t) * SPREAD**2 / variance(t)


def values(states: Tensor, actions: Tensor) -> Tensor:
    """Two critics (2, ...) that differ by 0.25; the smaller one is SLOPE w·a + 10 s_0."""
    q = SLOPE * (actions @ DIRECTION) + 10.0 * states[..., 0]
    return torch.stack([q + 0.25, q])


class Data(OfflineDataModule):
    """Unnormalised states, and actions of the behavior policy shifted by `shift` of its standard deviations.

    A step's reward is `slope` times the action in the direction of Q's slope.
    """

    def __init__(self, shift: float = 0.0, slope: float = SLOPE) -> None:
        super().__init__("own", normalize_observations=True)
        self.shift, self.slope = shift, slope
        self.setup()

    def load_buffer(self) -> TransitionBuffer:
        rng = np.random.default_rng(0)
        states = rng.normal(5.0, 3.0, size=(N, S)).astype(np.float32)
        normal = torch.from_numpy((states - states.mean(0)) / states.std(0))
        noise = torch.from_numpy(rng.normal(size=(N, A)).astype(np.float32)) + self.shift * DIRECTION
        return TransitionBuffer.from_arrays(
            RawArrays(
                observations=states,
                actions=(policy_mean(normal) + SPREAD * noise).numpy(),
                rewards=(self.slope * SPREAD * noise @ DIRECTION).numpy(),
                terminals=np.zeros(N, bool),
                timeouts=np.arange(N) % 50 == 49,
            )
        )

    def rewards(self) -> Tensor:
        return self.buffer.rewards


def make(net: Callable[..., Tensor] = logits, kind: type[GuidedSampler] = GuidedSampler) -> GuidedSampler:
    """The behavior policy's sampler, guided by `net`."""
    networks = {"behavior": Net(noise_prediction), "energy": Net(net)}
    return kind(SamplerParts(A, networks, SCHEDULE, SOLVER))


CRITIC = SoftmaxQCritic(S, A, lambda s, a: Net(values))


def draw(folder: Path, data: OfflineDataModule, ids: Tensor, num_actions: int = K) -> SupportCache:
    SupportCache.create(folder, ids, num_actions, A, 512)
    cache = SupportCache(folder, len(data.buffer.states))

    def sample(state_ids: Tensor) -> Tensor:
        states = data.normalize(data.buffer.states[state_ids]).unsqueeze(1)
        return make().sample(states, support_noise(0, state_ids, num_actions, A))

    list(fill(cache, sample, cache.pending()))
    return cache


def run(data: OfflineDataModule, cache: SupportCache, **options: Any) -> Diagnostics:
    arguments = {"scales": [0.0, 1.0], "seed": 0, "device": "cpu", "num_states": 64, **options}
    return diagnose(make(), make(), CRITIC, data, cache, **arguments)
