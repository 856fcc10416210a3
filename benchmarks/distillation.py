"""Error, scores and time per action of the one-step policy and of the sampler that it was distilled from.

    python benchmarks/distillation.py --config configs/quickstart.yaml --run_dir runs/distilled --threads 1

Trains the stages that are not finished in the run folder, then measures and prints three tables. The *spread* is the
standard deviation of the sampler's actions over the noise, root mean square over states and dimensions. A policy that
drew independent actions would have an error of 1.41 spreads. Times are medians of calls that alternate between both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cepdiff
from cepdiff.files import write_json
from cepdiff.policy.engines import run_by
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.runs.folder import RunFolder
from cepdiff.tables import Table, number
from floors import machine

DRAWS = 16  # actions per state, for the spread
ROWS = (1, 10)


def errors(problem: OfflineRL, num_states: int, seed: int = 0) -> list[dict[str, float]]:
    """Error and spread at each guidance scale, in actions scaled to [-1, 1]."""
    teacher, student, numbers = problem.sampler(), problem.one_step(), torch.Generator().manual_seed(seed)
    assert student is not None
    buffer = problem.data.buffer
    ids = torch.randint(len(buffer.states), (num_states,), generator=numbers)
    states = problem.data.normalize(buffer.states[ids]).repeat_interleave(DRAWS, 0)  # (M, S) -> (M*K, S)
    noise = torch.randn(len(states), teacher.noise_size, generator=numbers)
    found = []
    for scale in problem.scales:
        scales = torch.full((len(states),), scale)
        expected, actions = (sampler.sample(states, noise, scales) for sampler in (teacher, student))
        spread = expected.reshape(num_states, DRAWS, -1).var(1).mean().sqrt()
        found.append({"scale": scale, "error": float(rms(actions - expected)), "spread": float(spread)})
    return found


def rms(values: Tensor) -> Tensor:
    """Root mean square."""
    return values.square().mean().sqrt()


def latency(problem: OfflineRL, engine: str, rows: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per call of both policies, at scale 1 (or their largest below) for `rows` observations."""
    teacher, student = problem.sampler(), problem.one_step()
    assert student is not None
    policies = [run_by(GuidedPolicy(problem.data.spec, sampler), engine) for sampler in (teacher, student)]
    observations = problem.data.buffer.states[:rows]
    noise, scale = torch.randn(rows, teacher.noise_size), min(1.0, student.max_scale)
    times: list[list[float]] = [[], []]
    for index in range(rounds + 3):  # the first are a warm-up
        for policy, taken in zip(policies, times, strict=True):
            seconds = seconds_of(partial(policy.act, observations, guidance_scale=scale, noise=noise))
            taken += [seconds] if index >= 3 else []
    sampler, one_step = (1e3 * statistics.median(taken) for taken in times)
    return {"engine": engine, "rows": rows, "sampler": sampler, "one_step": one_step, "ratio": sampler / one_step}


def draw_milliseconds(problem: OfflineRL, rows: int = 2048) -> float:
    """Milliseconds per action of the sampler, many at a time as for training."""
    sampler = problem.sampler()
    states = problem.data.normalize(problem.data.buffer.states[:rows])
    noise, scales = torch.randn(len(states), sampler.noise_size), torch.ones(len(states))
    return 1e3 * seconds_of(lambda: sampler.sample(states, noise, scales)) / len(states)


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def scores(problem: OfflineRL) -> list[dict[str, Any]]:
    """Scores of both policies at each scale (mean returns without a reference), with standard errors."""
    results, found = problem.results(), []
    for metric, of_student in (("normalized_score", "one_step_score"), ("mean_return", "one_step_return")):
        for scale in problem.scales:
            teacher, student = results.row(scale, metric), results.row(scale, of_student)
            if teacher is not None and student is not None:
                pair = {"sampler": (teacher.value, teacher.error), "one_step": (student.value, student.error)}
                found.append({"metric": metric, "scale": scale, **pair})
    return found


def tables(record: dict[str, Any]) -> list[Table]:
    """The record as text."""
    lines = [["guidance scale", "error", "spread of the sampler's actions", "error / spread"]]
    lines += [
        [f"{row['scale']:g}", f"{row['error']:.4f}", f"{row['spread']:.3f}", f"{row['error'] / row['spread']:.1%}"]
        for row in record["errors"]
    ]
    found = [Table(lines, "difference of the one-step actions from the sampler's, scaled to [-1, 1]")]
    if record["scores"]:
        lines = [["guidance scale", "sampler", "one step"]]
        for row in record["scores"]:
            cells = [number(row[name][0], ".1f", row[name][1]) for name in ("sampler", "one_step")]
            lines.append([f"{row['scale']:g}", *cells])
        found.append(Table(lines, record["scores"][0]["metric"].replace("_", " ")))
    lines = [["engine", "observations", "sampler [ms]", "one step [ms]", "ratio"]]
    for row in record["latency"]:
        times = [f"{row[name]:.2f}" for name in ("sampler", "one_step")]
        lines.append([row["engine"], str(row["rows"]), *times, f"{row['ratio']:.1f}x"])
    return [*found, Table(lines, "time per call of act", labels=1)]


def main(args: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", action="append", default=[], required=True, help="configuration of the run; can be repeated")
    add("--run_dir", required=True, help="folder of the run; stages that are not finished are trained")
    add("--reuse", help="another run to take finished stages from")
    add("--steps", type=int, default=10_000, help="optimiser steps of the distillation")
    add("--actions", type=int, default=200_000, help="actions in the training set")
    add("--states", type=int, default=2000, help="states to measure the error at")
    add("--engines", nargs="+", default=["torch"], help="torch, onnx")
    add("--rounds", type=int, default=50, help="timed calls of each policy")
    add("--threads", type=int, help="threads of torch")
    add("--output", default="report", help="folder for distillation.json")
    options = parser.parse_args(args)
    stages = {"distillation": {"max_steps": options.steps, "num_actions": options.actions}}
    trainer = {} if options.threads is None else {"num_threads": options.threads}
    fitted = cepdiff.fit(
        config=options.config, run_dir=options.run_dir, reuse=options.reuse, stages=stages, trainer=trainer
    )
    problem = fitted.problem
    assert isinstance(problem, OfflineRL)
    seconds = RunFolder(Path(options.run_dir)).stage("distillation").seconds
    batch = problem.modules["distillation"].batch_size
    record: dict[str, Any] = {
        "settings": vars(options),
        "machine": machine(torch.device("cpu")),
        "seconds": seconds,
        "draw_milliseconds": draw_milliseconds(problem),
        "errors": errors(problem, options.states),
        "scores": scores(problem),
        "latency": [latency(problem, engine, rows, options.rounds) for engine in options.engines for rows in ROWS],
    }
    print("\n\n".join(table.text() for table in tables(record)))
    drawn, fresh = (record["draw_milliseconds"] * count / 1e3 for count in (options.actions, options.steps * batch))
    print(
        f"\nthe distillation stage took {seconds:.0f} s, of which drawing {options.actions:,} actions took about "
        f"{drawn:.0f} s; fresh actions for each of its {options.steps:,} steps would have taken about {fresh:.0f} s"
    )
    print(record["machine"])
    path = Path(options.output) / "distillation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(json.dumps(record)))
    print(f"written {path}")


if __name__ == "__main__":
    main()
