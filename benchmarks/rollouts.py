"""Rollouts with worker processes against one process: seconds, on this machine.

    python benchmarks/rollouts.py                    # about two minutes on two idle cores
    python benchmarks/rollouts.py --workers 1 4 8 --tasks antmaze

Each row is a task's environment and a policy: the recipe's networks and solver, or a distilled network that acts in one
step. All numbers of workers run the same 40 episodes in turn, and their results must be equal; the table has the median
time over that of one process in the same round, so a ratio of 1.5 is half as long again in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cepdiff.data.rl.tasks import TASKS
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.files import write_json
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.one_step import OneStepNet
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.one_step import OneStep
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.rollout.envs import EnvSpec, env_facts
from cepdiff.rollout.rollout import Episode, rollout
from cepdiff.runs.threads import allowed_cores
from cepdiff.types import DataSpec
from floors import machine

CHOICES = {
    "hopper": "hopper-medium-v2",
    "walker2d": "walker2d-medium-v2",
    "antmaze": "antmaze-umaze-v2",
    "hammer": "hammer-human-v1",
}
SCALES = (0.0, 3.0)


def policies(env: EnvSpec) -> dict[str, GuidedPolicy]:
    """Untrained networks of the recipe's sizes: the time does not depend on the weights."""
    facts = env_facts(env)
    sizes = (facts.observation_size, len(facts.action_low))
    spec = DataSpec(*sizes, facts.action_low, facts.action_high)
    torch.manual_seed(0)
    behavior = BehaviorDiffusion(*sizes)
    networks = {"behavior": behavior.net, "energy": EnergyGuidance(*sizes).net, "one_step": OneStepNet(*sizes)}
    parts = SamplerParts(sizes[1], networks, behavior.schedule, DPMSolver())
    return {
        f"recipe, {parts.solver.num_steps} steps": GuidedPolicy(spec, GuidedSampler(parts)),
        "one step": GuidedPolicy(spec, OneStep(parts, sizes[1], max(SCALES))),
    }


def measured(
    policy: GuidedPolicy, env: EnvSpec, workers: Sequence[int], episodes: int, rounds: int
) -> dict[int, list[float]]:
    """Seconds of every round, by workers; raises AssertionError if the results differ."""
    todo = [Episode(index, scale) for index in range(episodes // len(SCALES)) for scale in SCALES]
    seconds: dict[int, list[float]] = {number: [] for number in workers}
    results = []
    for _ in range(rounds):
        for number in workers:
            start = time.perf_counter()
            results.append(rollout(policy, env, todo, seed=0, num_workers=number))
            seconds[number].append(time.perf_counter() - start)
            assert results[-1] == results[0], f"{number} workers give other results"
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=CHOICES, default=[*CHOICES])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="besides none (%(default)s)")
    parser.add_argument("--episodes", type=int, default=40, help="%(default)s")
    parser.add_argument("--steps", type=int, default=50, help="of an episode at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    parser.add_argument("--output", type=Path, default=Path("report/rollouts.json"), help="%(default)s")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    described = machine(torch.device("cpu"))
    print(f"{described}; {allowed_cores()} cores allowed; the policy has one thread")
    workers = [0, *args.workers]
    print(f"{'':30}{'one process, s':>16}" + "".join(f"{f'{number} workers':>12}" for number in args.workers))
    rows: list[dict[str, Any]] = []
    for name in args.tasks:
        task = TASKS[CHOICES[name]]
        env = EnvSpec(task.env_id, {**task.env_kwargs, "max_episode_steps": args.steps}, task.env_module)
        for kind, policy in policies(env).items():
            seconds = measured(policy, env, workers, args.episodes, args.rounds)
            faster = {
                number: statistics.median(alone / own for alone, own in zip(seconds[0], seconds[number], strict=True))
                for number in args.workers
            }
            rows.append({"task": CHOICES[name], "policy": kind, "seconds": seconds, "times faster": faster})
            columns = "".join(f"{ratio:>11.2f}x" for ratio in faster.values())
            print(f"{name + ', ' + kind:30}{statistics.median(seconds[0]):>16.2f}{columns}", flush=True)
    write_json(args.output, {"machine": described, "rows": rows})


if __name__ == "__main__":
    main()
