"""Both sides of the benchmark, this package and `reference.py`, on one buffer with equal weights, timed in turn."""

from __future__ import annotations

import copy
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

import reference
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.source import resolve
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.runs.folder import RunFolder
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.run import Run as RunContext
from cepdiff.runs.stage import StageSettings, TrainedStage
from floors import Floors, Rates, measured_rates, synchronise

WARM_BLOCKS = 2
Record: TypeAlias = "dict[str, Any]"
Run: TypeAlias = "Callable[[], object]"


@dataclass(frozen=True)
class Sizes:
    """How much is timed; the networks are always the recipe's."""

    rows: int = 200_000
    behavior_batch: int = 4096
    batch: int = 256
    num_actions: int = 16
    behavior_block: int = 5
    block: int = 50
    reference_steps: int = 5  # critic and guidance steps per round; one of the behavior model
    support_states: int = 4096
    reference_support_rows: int = 256
    rounds: int = 5
    round_budget: float = 15.0  # seconds after which no further round of a stage starts
    act: tuple[int, ...] = (1, 10, 256)
    scales: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0)
    episodes: int = 10
    env_steps: tuple[int, int] = (2, 17)


QUICK = Sizes(
    rows=2000, behavior_batch=64, batch=16, num_actions=4, behavior_block=2, block=3, reference_steps=1,
    support_states=64, reference_support_rows=8, rounds=2, act=(1, 2), scales=(0.0, 1.0), episodes=2, env_steps=(1, 4),
)  # fmt: skip
CUDA = Sizes(behavior_block=50, reference_steps=20, support_states=16_384, reference_support_rows=1024)


def synthetic_arrays(rows: int, observation_size: int = 11, action_size: int = 3, seed: int = 0) -> RawArrays:
    """A buffer of Hopper's shape: episodes of 1,000 rows, every second one ended by a terminal."""
    draws = np.random.default_rng(seed)
    observations = draws.standard_normal((rows, observation_size), dtype=np.float32)
    next_observations = np.roll(observations, -1, axis=0)
    ends = np.zeros(rows, np.bool_)
    ends[999::1000] = ends[-1] = True
    next_observations[ends] += 1.0  # states that no row holds
    second = np.arange(rows) // 1000 % 2 == 1
    return RawArrays(
        observations=observations,
        actions=draws.uniform(-1.0, 1.0, (rows, action_size)).astype(np.float32),
        rewards=draws.uniform(0.0, 3.0, rows).astype(np.float32),
        terminals=ends & second,
        timeouts=ends & ~second,
        next_observations=next_observations,
    )


def kernel_seconds(profiler: Any) -> float:
    """Seconds of GPU kernels and copies, without ranges that only annotate the program."""
    work = (e for e in profiler.events() if e.device_type.name == "CUDA" and not e.is_user_annotation)
    return sum(float(event.time_range.elapsed_us()) for event in work) * 1e-6


@dataclass
class Timing:
    """Seconds per unit of work, one number per round, for both sides; memory and busy share are ours."""

    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    busy: float | None = None

    def record(self, stage: str, floor: float, **more: Any) -> Record:
        """Plain values: best and median of both sides, their ratio, the floor."""
        sides = {
            name: {"best": min(values), "median": statistics.median(values), "rounds": len(values)}
            for name, values in (("ours", self.ours), ("reference", self.reference))
            if values
        }
        ratio = sides["reference"]["median"] / sides["ours"]["median"] if len(sides) == 2 else None
        record = {"stage": stage, **sides, "ratio": ratio, "floor": floor, **more}
        return record | {"peak_memory": self.peak_memory, "busy": self.busy}


class BlockEnds(Callback):
    """Calls a function after each block of optimiser steps."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.then()


class Bench:
    """Both sides of every stage on one buffer, with equal weights."""

    def __init__(
        self,
        settings: TrainerSettings,
        sizes: Sizes,
        folder: Path,
        dataset: str | None = None,
        env_id: str | None = None,
        engine: str | None = None,
    ) -> None:
        self.sizes, self.folder, self.settings, self.engine = sizes, folder, settings, engine
        self.processes = Processes(settings)
        self.device = self.processes.device
        if dataset is None:
            self.file = folder / "synthetic.hdf5"
            write_arrays(self.file, synthetic_arrays(sizes.rows))
        else:
            self.file = resolve(dataset)
        self.dataset = dataset or str(self.file)
        self.data = self.loaded()
        self.K = sizes.num_actions
        task = self.data.task
        self.env_id = env_id or (task.env_id if task else "Hopper-v4")
        self.solver = DPMSolver()
        torch.manual_seed(0)
        self.behavior = self.frozen(BehaviorDiffusion(*self.data.sizes))
        self.guidance = self.frozen(EnergyGuidance(*self.data.sizes))
        self.critic = self.frozen(SoftmaxQCritic(*self.data.sizes))
        self.score_net = reference.ScoreNet(*self.data.sizes).to(self.device)
        self.energy_net = reference.EnergyNet(*self.data.sizes).to(self.device)
        self.score_net.load_state_dict(self.behavior.net.state_dict())
        self.energy_net.load_state_dict(self.guidance.net.state_dict())

    def loaded(self) -> OfflineDataModule:
        """A data module with its buffer loaded."""
        data = OfflineDataModule(self.dataset)
        data.prepare_data()
        data.setup()
        return data

    def frozen(self, module: Any) -> Any:
        """A module as `fit` leaves it after its stage."""
        return module.to(self.device).eval().requires_grad_(False)

    def sampler(self, solver: DPMSolver | None = None, guided: bool = False) -> GuidedSampler:
        """The sampler of untrained networks; unguided, that of the support stage, whose casts of weights are kept."""
        if guided:
            networks = {"behavior": self.behavior.net, "energy": self.guidance.net}
        else:
            networks = {"behavior": copy.deepcopy(self.behavior.net).requires_grad_(True)}
        return GuidedSampler(SamplerParts(self.data.sizes[1], networks, self.behavior.schedule, solver or self.solver))

    @cached_property
    def rates(self) -> Rates:
        """The best rates measured on this machine."""
        return measured_rates(self.device, self.settings.precision)

    @cached_property
    def floors(self) -> Floors:
        """Lower bounds on the stages' times."""
        return Floors(self.rates, *self.data.sizes, self.K)

    @cached_property
    def float32_floors(self) -> Floors:
        """Lower bounds on the time of acting and of energies, which are in float32 at every precision."""
        if self.settings.precision == "32-true":
            return self.floors
        return Floors(measured_rates(self.device, "32-true"), *self.data.sizes, self.K)

    @cached_property
    def env(self) -> EnvSpec:
        """The environment, without early termination if it has an option for that."""
        env = make_env(EnvSpec(self.env_id))
        option = "terminate_when_unhealthy"
        known = option in inspect.signature(type(env.unwrapped)).parameters
        env.close()
        return EnvSpec(self.env_id, {option: False} if known else {})

    def seconds(self, run: Run) -> float:
        """Seconds of one call, including the device's work."""
        synchronise(self.device)
        started = time.perf_counter()
        run()
        synchronise(self.device)
        return time.perf_counter() - started

    @contextmanager
    def exact(self) -> Iterator[None]:
        """The reference's precision: full float32, like its official code."""
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(self.settings.matmul_precision)

    def alternate(self, ours: Run, other: Run, units: tuple[float, float] = (1.0, 1.0)) -> Timing:
        """Rounds of both in turn after a warm-up of each; seconds are divided by the units of work per call."""
        timing = Timing()
        spent = 0.0
        for index in range(self.sizes.rounds + 1):
            self.reset_peak()
            taken = self.seconds(ours)
            self.note_peak(timing)
            with self.exact():
                other_taken = self.seconds(other)
            spent += taken + other_taken
            if index or spent > self.sizes.round_budget:  # the first round is a warm-up, if time allows
                timing.ours.append(taken / units[0])
                timing.reference.append(other_taken / units[1])
                if spent > self.sizes.round_budget:
                    break
        timing.busy = self.busy_share(ours)
        return timing

    def reset_peak(self) -> None:
        """Reset the device's peak memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def note_peak(self, timing: Timing) -> None:
        """Record the device's peak memory since `reset_peak`."""
        if self.device.type == "cuda":
            timing.peak_memory = max(timing.peak_memory or 0, torch.cuda.max_memory_allocated(self.device))

    def busy_share(self, run: Run) -> float | None:
        """Share of time in which the GPU computes; None on a CPU."""
        if self.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            taken = self.seconds(run)
        return kernel_seconds(profiler) / taken

    def train(
        self,
        module: StageModule,
        data: OfflineDataModule,
        block: int,
        other: Run = lambda: None,
        other_steps: int = 1,
    ) -> tuple[Timing, float]:
        """Seconds per step of a stage as `fit` trains it, in turn with `other` (`other_steps` steps).

        Also returns the seconds until the end of the first block, which include compilation and capture.
        """
        timing, rounds = Timing(), self.sizes.rounds
        state = {"blocks": 0, "mark": time.perf_counter(), "start_up": 0.0}
        cuda = self.device.type == "cuda"
        profiler = profile(activities=[ProfilerActivity.CUDA]) if cuda else None

        def block_done() -> None:
            synchronise(self.device)
            taken = time.perf_counter() - state["mark"]
            state["blocks"] += 1
            done = state["blocks"] - WARM_BLOCKS
            if state["blocks"] == 1:
                state["start_up"] = taken
            if 0 < done <= rounds:
                timing.ours.append(taken / block)
                self.note_peak(timing)
            if profiler is not None and done == rounds + 1:
                profiler.stop()
                timing.busy = kernel_seconds(profiler) / taken
            if 0 <= done <= rounds:
                with self.exact():
                    other_taken = self.seconds(other)
                timing.reference += [other_taken / other_steps] if done else []
            if profiler is not None and done == rounds:
                profiler.start()
            self.reset_peak()
            state["mark"] = time.perf_counter()

        data = copy.copy(data)
        data.block_size = block
        # The last block is not timed, because it gathers no next block.
        steps = block * (WARM_BLOCKS + rounds + 1 + cuda)  # on CUDA one block is profiled after the timed ones
        run = RunContext(RunFolder(self.folder / f"run-{time.monotonic_ns()}"), self.processes)
        stage = TrainedStage(run, module, lambda: data, StageSettings(steps), dict, [BlockEnds(block_done)])
        stage.claim([])
        stage.run()
        return timing, state["start_up"]
