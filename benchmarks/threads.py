"""CPU threads that stages choose, and what the choice costs, on this machine as it is and under load.

    python benchmarks/threads.py                     # about five minutes on two idle cores
    python benchmarks/threads.py --quick             # small networks only

For each part of a run, the numbers of threads that `cepdiff fit` would choose, and the times of a step on that number
and on torch's default, as multiples of the time on one thread, measured in turn. It is done twice: on the machine as it
is, and beside as many busy processes as there are cores. The last line is the largest multiple of a choice: the promise
is at most 1.1.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cepdiff.diffusion.solver import DPMSolver
from cepdiff.files import write_json
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.score import MLPScore
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.runs.threads import Trial, allowed_cores, choose_threads, seconds_on
from floors import machine

S, A, K = 11, 3, 16  # Hopper's sizes
STEPS = 1e6  # of a stage: long enough to be measured
PROMISE = 1.1
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    sum(range(100_000))
"""
BEHAVIOR: Callable[..., BehaviorDiffusion] = partial(BehaviorDiffusion, S, A)


def gradients(module: StageModule, rows: int) -> Trial:
    """One step's gradients on random rows."""
    shapes = {
        "observations": (rows, S), "actions": (rows, A), "rewards": (rows,), "terminals": (rows,),
        "next_observations": (rows, S), "support_actions": (rows, K, A), "next_support_actions": (rows, K, A),
        "support_energies": (rows, K), "energies": (rows, K),
    }  # fmt: skip
    batch = {name: torch.rand(shapes[name]) for name in module.batch_fields}
    trained = module.trained_parameters()

    def step() -> None:
        noise = RandomStream(0, torch.device("cpu"), 0, 1)
        module.accumulate(batch, noise, lambda loss: torch.autograd.grad(loss, trained, allow_unused=True))

    return step


def actions(rows: int, **net: Any) -> Trial:
    """Guided actions of 15 solver steps."""
    networks = {"behavior": BEHAVIOR(**net).net, "energy": EnergyGuidance(S, A).net}
    for network in networks.values():
        network.requires_grad_(False)
    behavior = BEHAVIOR(**net)
    sampler = GuidedSampler(SamplerParts(A, networks, behavior.schedule, DPMSolver()))
    states, noise, scales = torch.rand(rows, S), torch.randn(rows, A), torch.ones(rows)
    return lambda: sampler.sample(states, noise, scales)


def parts(quick: bool) -> Iterator[tuple[str, Trial]]:
    """What a stage repeats: the recipe's networks, and those of a small run."""
    small = partial(MLPScore, hidden=[64, 64])
    yield "behavior, 2 x 64, batch 256", gradients(BEHAVIOR(net=small, batch_size=256), 256)
    yield "act, 2 x 64, 10 rows", actions(10, net=small)
    if quick:
        return
    yield "behavior, recipe, batch 512", gradients(BEHAVIOR(batch_size=512), 512)
    yield "behavior, recipe, batch 4096", gradients(BEHAVIOR(batch_size=4096), 4096)
    yield "critic, recipe", gradients(SoftmaxQCritic(S, A), 256)
    yield "guidance, recipe", gradients(EnergyGuidance(S, A), 256)
    yield "act, recipe, 70 rows", actions(70)


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """As many processes that compute without end; they end with this one, even if it is killed."""
    started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(processes)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def measured(trial: Trial, cores: int, rounds: int) -> dict[str, float]:
    """The chosen number, and medians of time over that of one thread in the same round."""
    chosen, _ = choose_threads(trial, STEPS, cores)
    ratios: dict[int, list[float]] = {1: [], cores: []}
    for number in ratios:
        seconds_on(number, trial)
    for _ in range(rounds):
        one = seconds_on(1, trial)
        for number, found in ratios.items():  # one thread too: the noise of the measurement
            found.append(seconds_on(number, trial) / one)
    if chosen not in ratios:
        ratios[chosen] = [seconds_on(chosen, trial) / seconds_on(1, trial) for _ in range(rounds)]
    return {
        "chosen": chosen,
        "ratio": 1.0 if chosen == 1 else statistics.fmean(ratios[chosen]),
        "noise": statistics.fmean(ratios[1]),
        "default": statistics.fmean(ratios[cores]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if the promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="timings per number of threads (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="small networks only")
    parser.add_argument("--output", type=Path, default=Path("report/threads.json"), help="%(default)s")
    args = parser.parse_args(arguments)
    cores = allowed_cores()
    rows: list[dict[str, Any]] = []
    described = machine(torch.device("cpu"))
    print(f"{described}; {cores} cores allowed")
    print(f"{'':32}{'busy':>6}{'chosen':>8}{'chosen / 1':>12}{f'{cores} / 1':>9}{'1 / 1':>8}")
    for load in (0, cores):
        with busy(load):
            for name, trial in parts(args.quick):
                found = measured(trial, cores, args.rounds)
                rows.append({"part": name, "busy": load, **found})
                print(
                    f"{name:32}{load:>6}{found['chosen']:>8.0f}{found['ratio']:>12.2f}{found['default']:>9.2f}"
                    f"{found['noise']:>8.2f}",
                    flush=True,
                )
    worst = max(row["ratio"] for row in rows)
    print(f"the slowest choice takes {worst:.2f} times as long as one thread; promised is at most {PROMISE}")
    write_json(args.output, {"machine": described, "cores": cores, "rows": rows})
    return 0 if worst <= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
