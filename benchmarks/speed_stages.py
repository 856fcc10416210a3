"""Each stage of a run as a row of the table: this package's real code path and the plain reference.

This package's stages are run by the code that `fit` calls: `TrainedStage` with its Trainer, logger and checkpoints,
`draw_support`, `support_energies`, `run_by` and `evaluate`. Seconds are per `unit`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import reference
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.one_step import OneStepNet
from cepdiff.policy.engines import run_by
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.one_step import OneStep
from cepdiff.policy.sampler import SamplerParts
from cepdiff.problems.offline.support_stage import SupportSettings, draw_support, support_energies
from cepdiff.rollout.envs import EnvSpec, box_spaces, make_env
from cepdiff.rollout.evaluation import evaluate
from cepdiff.runs.folder import RunFolder, StageFolder
from cepdiff.types import Policy
from floors import best_seconds
from sides import Bench, Record, Timing

GUIDANCE_SCALE = 3.0  # for the latencies


def load(bench: Bench) -> Iterator[Record]:
    """Load the whole file into a buffer that can be trained on."""

    def ours() -> None:
        data = bench.loaded()
        data.gatherer(BehaviorDiffusion.batch_fields, bench.device)

    timing = bench.alternate(ours, lambda: reference.load(bench.file))
    rows = len(bench.data.buffer)
    floor = bench.rates.seconds(0.0, 2.0 * rows * (2 * bench.data.sizes[0] + bench.data.sizes[1] + 2) * 4)
    yield timing.record("load", floor, unit="buffer", rows=rows)


def behavior(bench: Bench) -> Iterator[Record]:
    """A step of the behavior model, including its batch."""
    sizes, buffer = bench.sizes, bench.data.buffer
    net = reference.ScoreNet(*bench.data.sizes).to(bench.device)
    optimizer = reference.adam(net, 1e-4)
    rows = reference.Transitions({"observations": buffer.observations, "actions": buffer.actions})
    batches = reference.batches(rows, sizes.behavior_batch, bench.device)
    module = BehaviorDiffusion(*bench.data.sizes, batch_size=sizes.behavior_batch)
    timing, start_up = bench.train(
        module, bench.data, sizes.behavior_block, lambda: reference.behavior_step(net, optimizer, next(batches)), 1
    )
    floor = bench.floors.behavior_step(sizes.behavior_batch)
    yield timing.record("behavior", floor, unit="step", start_up=start_up, batch_size=sizes.behavior_batch)


def support(bench: Bench) -> Iterator[Record]:
    """Support actions at s and s' of a row: K for us, because s' is the next row's s, 2 K for the reference."""
    sizes, buffer = bench.sizes, bench.data.buffer
    rows = len(buffer)
    states = min(sizes.support_states, len(buffer.states))
    settings = SupportSettings(max_rows=states)
    drawn: dict[str, int] = {}

    def ours() -> None:
        folder = stage_folder(bench, "support")
        draw_support(bench.sampler(), bench.data, folder, settings, bench.K, time.monotonic_ns(), bench.processes)
        drawn["states"] = len(SupportCache(folder.path, len(buffer.states)).state_ids)

    few = torch.arange(min(sizes.reference_support_rows, rows - 1))
    asked = {"observations": buffer.states[few], "next_observations": buffer.states[few + 1]}
    asked = {name: values.to(bench.device) for name, values in asked.items()}
    timing = bench.alternate(ours, lambda: reference.draw_support(bench.score_net, asked, bench.K), (1.0, len(few)))
    states_per_row = len(buffer.states) / rows
    timing.ours = [seconds / drawn["states"] * states_per_row for seconds in timing.ours]
    floor = bench.floors.support_row(bench.solver.num_steps) * states_per_row
    yield timing.record("support", floor, unit="row", num_actions=bench.K, states_per_row=states_per_row)


def q_learning(bench: Bench) -> Iterator[Record]:
    """Critic and guidance steps, and their sum, which the reference does in one step."""
    sizes, buffer = bench.sizes, bench.data.buffer
    cache = random_support(bench)
    data = bench.data.with_support(cache, torch.randn(cache.actions.shape[:2]))
    rows = data.rows(SoftmaxQCritic.batch_fields)
    slots, actions = cache.slots, torch.from_numpy(cache.actions)
    arrays = {
        "observations": buffer.states[rows], "actions": buffer.actions[rows], "rewards": buffer.rewards[rows],
        "terminals": buffer.terminals[rows].float(), "next_observations": buffer.states[buffer.next_index[rows]],
        "support_actions": actions[slots[rows]], "next_support_actions": actions[slots[buffer.next_index[rows]]],
    }  # fmt: skip
    batches = reference.batches(reference.Transitions(arrays), sizes.batch, bench.device)
    learner = reference.QLearning(
        reference.TwinQ(*data.sizes).to(bench.device), reference.EnergyNet(*data.sizes).to(bench.device)
    )
    steps, batch = sizes.reference_steps, next(batches)

    critic = SoftmaxQCritic(*data.sizes, batch_size=sizes.batch)
    critic_timing, critic_start = bench.train(
        critic, data, sizes.block, repeated(lambda: learner.critic_step(next(batches)), steps), steps
    )
    guidance = EnergyGuidance(*data.sizes, batch_size=sizes.batch)
    guidance_timing, guidance_start = bench.train(
        guidance, data, sizes.block, repeated(lambda: learner.guidance_step(batch), steps), steps
    )
    loading = bench.seconds(repeated(lambda: next(batches), steps)) / steps
    floors = bench.floors.critic_step(sizes.batch), bench.floors.guidance_step(sizes.batch)
    more = {"unit": "step", "batch_size": sizes.batch, "num_actions": bench.K}
    yield critic_timing.record("critic", floors[0], start_up=critic_start, reference_loading=loading, **more)
    yield guidance_timing.record("guidance", floors[1], start_up=guidance_start, **more)
    both = Timing(
        [sum(pair) for pair in zip(critic_timing.ours, guidance_timing.ours, strict=True)],
        [sum(pair) for pair in zip(critic_timing.reference, guidance_timing.reference, strict=True)],
    )
    yield both.record("critic + guidance", sum(floors), **more)
    yield energies(bench, data, cache)


def energies(bench: Bench, data: OfflineDataModule, cache: SupportCache) -> Record:
    """Energies of all support actions, once; the reference evaluates its critic in each guidance step instead."""
    timing = Timing()
    for _ in range(2):
        folder = stage_folder(bench, "guidance")
        timing.ours.append(
            bench.seconds(lambda f=folder: support_energies(bench.critic, data, cache, f, bench.processes))  # type: ignore[misc]
            / len(data.buffer)
        )
    return timing.record("energies", bench.float32_floors.energies_row(), unit="row", num_actions=bench.K)


def act(bench: Bench) -> Iterator[Record]:
    """Latency of an action for several batch sizes, arrays in and out, noise included."""
    yield from latencies(bench, "act", guided_policy(bench), bench.float32_floors.act)


def one_step(bench: Bench) -> Iterator[Record]:
    """As `act`, by a distilled network; the reference is still the plain sampler."""
    net = bench.frozen(OneStepNet(*bench.data.sizes))
    action_size = bench.data.sizes[1]
    parts = SamplerParts(action_size, {"one_step": net}, bench.behavior.schedule, bench.solver)
    policy = GuidedPolicy(bench.data.spec, OneStep(parts, action_size, GUIDANCE_SCALE))
    yield from latencies(bench, "one step", run_by(policy, bench.engine), bench.float32_floors.one_step)


def latencies(bench: Bench, stage: str, policy: Policy, floor: Callable[[int], float]) -> Iterator[Record]:
    """One record per number of observations."""
    for size in bench.sizes.act:
        observations = bench.data.buffer.states[:size].numpy().astype(np.float64)  # as environments return them
        calls = 20 if size < 100 else 4

        def ours(observations: NDArray[Any] = observations, calls: int = calls) -> None:
            for _ in range(calls):
                inputs = torch.as_tensor(observations, dtype=torch.float32, device=bench.device)
                noise = torch.randn(len(inputs), policy.noise_size, device=bench.device)
                policy.act(inputs, guidance_scale=GUIDANCE_SCALE, noise=noise).cpu().numpy()

        def other(observations: NDArray[Any] = observations, calls: int = calls) -> None:
            for _ in range(calls):
                reference.act(bench.score_net, bench.energy_net, observations, GUIDANCE_SCALE)

        timing = bench.alternate(ours, other, (calls, calls))
        yield timing.record(f"{stage}, {size}", floor(size), unit="call", observations=size)


def evaluation(bench: Bench) -> Iterator[Record]:
    """A step of all episodes at all scales, from the difference between a long and a short evaluation."""
    sizes, policy = bench.sizes, guided_policy(bench)
    short, long = sizes.env_steps

    def ours(steps: int) -> Callable[[], object]:
        return lambda: evaluate(
            policy, limited(bench.env, steps), scales=sizes.scales, episodes=sizes.episodes, seed=0, device=bench.device
        )

    def other(steps: int) -> Callable[[], object]:
        return lambda: reference.evaluate(
            bench.score_net, bench.energy_net, lambda: make_env(limited(bench.env, steps)), sizes.scales, sizes.episodes
        )

    few, many = (bench.alternate(ours(steps), other(steps)) for steps in (short, long))
    slopes, start_ups = Timing(peak_memory=many.peak_memory, busy=many.busy), Timing()
    for name in ("ours", "reference"):
        start = min(getattr(few, name))
        getattr(slopes, name).extend(max(seconds - start, 1e-9) / (long - short) for seconds in getattr(many, name))
        getattr(start_ups, name).append(max(start - short * min(getattr(slopes, name)), 0.0))
    together = len(sizes.scales) * sizes.episodes
    guided = sum(scale != 0 for scale in sizes.scales) / len(sizes.scales)
    alone = environment_seconds(bench)
    floor = bench.float32_floors.act(together, guided) + together * alone / torch.get_num_threads()
    yield slopes.record(
        "evaluation", floor, unit="step of all episodes", episodes=together, environment=alone,
        start_up=start_ups.ours[0], reference_start_up=start_ups.reference[0],
    )  # fmt: skip


STAGES: dict[str, Callable[[Bench], Iterator[Record]]] = {
    "load": load,
    "behavior": behavior,
    "support": support,
    "q_learning": q_learning,
    "act": act,
    "one_step": one_step,
    "evaluation": evaluation,
}


def repeated(run: Callable[[], object], times: int) -> Callable[[], object]:
    """A function that calls `run` that many times."""

    def runs() -> None:
        for _ in range(times):
            run()

    return runs


def stage_folder(bench: Bench, name: str) -> StageFolder:
    """An empty stage folder in a new run."""
    folder = RunFolder(bench.folder / f"run-{time.monotonic_ns()}").stage(name)
    folder.claim({})
    return folder


def random_support(bench: Bench) -> SupportCache:
    """A complete cache of uniform actions for all states."""
    folder: Path = bench.folder / "support"
    states, action_size = len(bench.data.buffer.states), bench.data.sizes[1]
    SupportCache.create(folder, torch.arange(states), bench.K, action_size, 65_536)
    cache = SupportCache(folder, states)
    for chunk in cache.pending():
        actions: Tensor = 2.0 * torch.rand(len(cache.chunk_ids(chunk)), bench.K, action_size) - 1.0
        cache.write(chunk, actions)
    return SupportCache(folder, states)


def guided_policy(bench: Bench) -> Policy:
    """The policy that a run saves, with untrained networks, on the chosen engine."""
    policy = GuidedPolicy(bench.data.spec, bench.sampler(guided=True))
    return run_by(policy, bench.engine)


def limited(env: EnvSpec, steps: int) -> EnvSpec:
    """The environment with another time limit."""
    return EnvSpec(env.env_id, {**env.kwargs, "max_episode_steps": steps}, env.module)


def environment_seconds(bench: Bench, steps: int = 50) -> float:
    """Seconds per step of a single environment."""
    env = make_env(bench.env)
    action = np.zeros(box_spaces(env)[1].shape, np.float32)

    def episode() -> None:
        env.reset(seed=0)
        for _ in range(steps):
            env.step(action)

    try:
        return best_seconds(episode, torch.device("cpu")) / steps
    finally:
        env.close()
