"""Error of guidance at several inverse temperatures, with a tempered energy network and with a multiplied gradient.

    python benchmarks/temperatures.py closed_form --dims 2 8    # error of the gradient, whose exact value is known
    python benchmarks/temperatures.py densities                 # samples of the paper's six densities

`multiplied` is a network trained at beta 3, whose gradient is multiplied by b / 3 at inverse temperature b. `tempered`
is the same network with the scale as a further input, trained with the same number of steps. Distances are multiples
of the noise floor, as in exactness.py and densities.py. Each result is printed, and all are written to --output.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import densities
import exactness
from cepdiff.components import class_path_of
from cepdiff.data.densities.densities import DENSITIES
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.distances import noise_floor, sliced_wasserstein
from cepdiff.files import write_json
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.modules.tempered import TemperedBatchGuidance
from cepdiff.networks.tempered import at_scale
from cepdiff.problems.density.samples import DISTANCES
from cepdiff.randomness import generator
from cepdiff.runs.processes import quieten
from cepdiff.types import EnergyLogits
from closed_form import exact_draws, problem

BETA = 3.0
METHODS = ("multiplied", "tempered")


def scaled(logits: EnergyLogits, scale: float) -> EnergyLogits:
    """`logits` times `scale`."""
    return lambda x, t, condition: scale * logits(x, t, condition)


def closed_form(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per dimension, method and temperature: error of the gradient, and distance of samples."""
    module = functools.partial(TemperedBatchGuidance, lowest_scale=args.lowest_scale, highest_scale=args.highest_scale)
    kinds: dict[str, tuple[Callable[..., BatchEnergyGuidance], Callable[[EnergyLogits, float], EnergyLogits]]] = {
        "multiplied": (BatchEnergyGuidance, scaled),
        "tempered": (module, at_scale),
    }
    for size in args.dims:
        trained = problem(size, BETA)
        data = exactness.MixtureData(trained, args.seed)
        noise = torch.randn(args.samples, size, generator=generator(0, "noise"), dtype=torch.float64)
        for method, (guidance, at) in kinds.items():
            logits, seconds = exactness.train(trained, data, "CEP", args, guidance)
            for beta in args.betas:
                exact, found = problem(size, beta), at(logits, beta / BETA)
                error = exactness.gradient_errors(exact, found)["weighted"]
                draw = exact_draws(exact, args.samples)
                samples: Tensor = exactness.sample(exact, found, DPMSolver(num_steps=args.num_solver_steps), noise)
                distance = sum(float(sliced_wasserstein(samples, draw(i))) for i in range(4)) / 4
                multiple = distance / noise_floor(sliced_wasserstein, draw, 4).mean
                print(
                    f"{size:3d}-D  {method:10}  beta {beta:4g}  gradient error {error:7.1%}  "
                    f"sliced W2 {multiple:6.2f} x floor  {seconds:4.0f} s",
                    flush=True,
                )
                yield {"size": size, "method": method, "beta": beta, "gradient_error": error, "multiple": multiple}


def points(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per density, method, temperature and distance; the prior of a density is trained once."""
    tempered = ["--guidance.class_path", class_path_of(TemperedBatchGuidance)]
    tempered += ["--guidance.lowest_scale", f"{args.lowest_scale}", "--guidance.highest_scale", f"{args.highest_scale}"]
    temperatures = ["--evaluation.inverse_temperatures", f"{args.betas}"]
    for name in args.densities:
        prior: list[str] = []
        for method in METHODS:
            own = [*temperatures, *args.overrides, *prior, *(tempered if method == "tempered" else [])]
            setting = {"methods": ["CEP"], "betas": [BETA], "runs": args.runs / method, "seed": args.seed}
            (folder,) = densities.run_density(name, argparse.Namespace(**setting, overrides=own))
            prior = ["--reuse", str(folder)]
            for row in json.loads((folder / "results.json").read_text())["rows"]:
                if row["metric"] not in DISTANCES:
                    continue
                beta = BETA * row["scale"]
                print(f"{name:12}  {method:10}  beta {beta:4g}  {row['metric']:18}  {row['multiple']:6.2f} x floor")
                yield {"density": name, "method": method, "beta": beta, **row}


def main(arguments: Iterable[str] | None = None) -> None:
    """Run one part and write `temperatures-<part>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["closed_form", "densities"])
    parser.add_argument("--betas", nargs="+", type=float, default=[3.0, 6.0, 10.0, 20.0, 30.0])
    parser.add_argument("--lowest_scale", type=float, default=0.1)
    parser.add_argument("--highest_scale", type=float, default=10.0)
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--steps", type=int, default=10_000, help="optimiser steps of both, in closed form")
    parser.add_argument("--samples", type=int, default=10_000, help="samples compared with exact ones, in closed form")
    parser.add_argument("--num_solver_steps", type=int, default=50)
    parser.add_argument("--densities", nargs="+", choices=list(DENSITIES), default=list(DENSITIES))
    parser.add_argument("--runs", type=Path, default=Path("runs/temperatures"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("report"))
    args, overrides = parser.parse_known_args(None if arguments is None else list(arguments))
    args.overrides = overrides
    if args.overrides and args.part == "closed_form":
        parser.error(f"unknown arguments {' '.join(args.overrides)}")
    vars(args).update(batch_size=256, times=4, learning_rate=None, precision="32-true", matmul_precision="high")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    quieten()
    target = args.output / f"temperatures-{args.part}.json"
    args.output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for record in closed_form(args) if args.part == "closed_form" else points(args):
        records.append(record)
        write_json(target, {"records": records})
    print(f"written {target}")


if __name__ == "__main__":
    main()
