"""Lower bound on each stage's time: its FLOPs and bytes over the machine's measured rates.

FLOPs are those of the recipe's linear layers, with all work shared that can be; activations, their traffic and
everything outside the networks count as free, so no program reaches a floor.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cepdiff.networks.one_step import OneStepNet
from reference import EnergyNet, ScoreNet, TwinQ

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Rates:
    """Best measured FLOP/s of matrix products at the chosen precision, and bytes/s of copies (read and written)."""

    matmul: float
    copy: float

    def seconds(self, flops: float, traffic: float) -> float:
        """The longer of computing and moving."""
        return max(flops / self.matmul, traffic / self.copy)


def best_seconds(run: Callable[[], object], device: torch.device, budget: float = 0.3) -> float:
    """Shortest of as many runs as fit into `budget` seconds, at least three."""
    found: list[float] = []
    while len(found) < 3 or sum(found) < budget:
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        found.append(time.perf_counter() - started)
    return min(found)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_rates(device: torch.device, precision: str) -> Rates:
    """Rates of this machine now; `precision` is Lightning's, on top of torch's float32 matmul precision."""
    dtype = torch.bfloat16 if precision.startswith("bf16") else torch.float16 if "16" in precision else torch.float32
    sizes = (2048, 8192) if device.type == "cuda" else (512, 1024)
    flops = []
    for size in sizes:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        flops.append(2.0 * size**3 / best_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device))  # type: ignore[misc]
    copies = []
    for megabytes in (1, 16, 256):  # networks fit into caches, so the caches' rates count too
        source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        seconds = best_seconds(lambda s=source, t=target: t.copy_(s), device)  # type: ignore[misc]
        copies.append(2.0 * source.numel() / seconds)
    return Rates(max(flops), max(copies))


def machine(device: torch.device) -> str:
    """Describe the machine in words."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    parts = [f"{cpu}, {os.cpu_count()} cores", f"PyTorch {torch.__version__} with {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        parts.append(f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}")
    return "; ".join(parts)


def macs(*modules: nn.Module) -> int:
    """Multiplications of the linear layers per row."""
    linears = [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.in_features * layer.out_features for layer in linears)


def weights(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


class Floors:
    """Floors of the stages in seconds, for S observations, A actions and K support actions."""

    def __init__(self, rates: Rates, observation_size: int, action_size: int, num_actions: int) -> None:
        self.rates, self.num_actions = rates, num_actions
        self.score = ScoreNet(observation_size, action_size)
        self.energy = EnergyNet(observation_size, action_size)
        self.critic = TwinQ(observation_size, action_size)
        self.distilled = OneStepNet(observation_size, action_size)
        self.sizes = observation_size, action_size
        blocks: list[Any] = [*self.score.down, self.score.bottom, *self.score.up]
        # Shared by the K actions of a state at one time: the joint embedding in every block.
        self.shared = macs(
            self.score.embedding, *(block.embed for block in blocks if isinstance(block.embed, nn.Module))
        )
        self.own = macs(*blocks, self.score.output) - self.shared + macs(self.score.embedding)

    def behavior_step(self, batch_size: int) -> float:
        """Forward, and backward to all weights; inputs need no gradient."""
        inputs = macs(self.score.condition) + self.sizes[1] * 2 * 512  # the first block and its skip
        flops = batch_size * (6 * macs(self.score) - 2 * inputs)
        return self.rates.seconds(flops, optimiser_traffic(self.score) + batch_size * sum(self.sizes) * FLOAT)

    def support_row(self, num_steps: int) -> float:
        """K actions at one state."""
        flops = num_steps * 2 * (self.num_actions * self.own + self.shared)
        return self.rates.seconds(flops, self.num_actions * self.sizes[1] * FLOAT)

    def critic_step(self, batch_size: int) -> float:
        """Targets at K actions of s', forward and backward at the row's own action."""
        first = 2 * self.sizes[0] * 256  # for the states, which the K actions share
        target = 2 * (self.num_actions * (macs(self.critic) - first) + first)
        flops = batch_size * (target + 6 * macs(self.critic))
        return self.rates.seconds(flops, optimiser_traffic(self.critic) + 2 * weights(self.critic) * FLOAT)

    def energies_row(self) -> float:
        """Energies of the K actions at one state."""
        return self.rates.seconds(2 * self.num_actions * macs(self.critic), self.num_actions * FLOAT)

    def guidance_step(self, batch_size: int) -> float:
        """Forward and backward at K actions of a state."""
        first = (self.sizes[0] + 32) * 256  # state and time, which the K actions share
        own = macs(self.energy.net) - first
        flops = 6 * batch_size * (self.num_actions * own + first)
        return self.rates.seconds(flops, optimiser_traffic(self.energy))

    def act(self, batch_size: int, guided: float = 1.0, num_steps: int = 15) -> float:
        """Actions for `batch_size` observations, a share `guided` of which needs the energy's gradient."""
        flops = num_steps * batch_size * (2 * (self.own + self.shared) + 4 * guided * macs(self.energy.net))
        return self.rates.seconds(flops, num_steps * FLOAT * (weights(self.score) + 2 * weights(self.energy)))

    def one_step(self, batch_size: int) -> float:
        """Actions of the distilled network, for `batch_size` observations."""
        return self.rates.seconds(2 * batch_size * macs(self.distilled), FLOAT * weights(self.distilled))


def optimiser_traffic(module: nn.Module) -> int:
    """Bytes per step: weights read forward and backward, then Adam reads four arrays and writes three."""
    return weights(module) * 9 * FLOAT
