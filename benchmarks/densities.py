"""The paper's six densities with every objective: train what is missing, then collect figures and tables.

    python benchmarks/densities.py                                  # CEP at beta 3, 10, 20
    python benchmarks/densities.py --methods CEP ExponentialMSE MSE DPS

A density's prior is trained once and reused by all its runs. Densities run in parallel, one thread each. Finished
stages are skipped, so the second command continues from the first. Prints wall clock and one report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cepdiff.data.densities.densities import DENSITIES

CONFIGS = Path(__file__).parent.parent / "configs" / "toy"
METHODS = ("CEP", "ExponentialMSE", "MSE", "DPS")


def run_density(density: str, args: argparse.Namespace) -> list[Path]:
    """Run everything for one density, one after the other; return the folders."""
    folders: list[Path] = []
    for method in args.methods:
        for beta in args.betas:
            folder = args.runs / f"{density}-{method}-beta{beta:g}-seed{args.seed}"
            prior = args.runs / f"{density}-{METHODS[0]}-beta{args.betas[0]:g}-seed{args.seed}"
            command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(CONFIGS / f"{density}.yaml")]
            command += ["--run_dir", str(folder), "--seed", str(args.seed), "--trainer.progress_bar", "false"]
            command += ["--guidance.objective.class_path", method]
            command += ["--guidance.objective.inverse_temperature", str(beta)]
            trained = [run for run in (prior, *folders) if run != folder and (run / "config.yaml").exists()]
            if trained:
                command += ["--reuse", str(trained[0])]
            started = time.monotonic()
            done = subprocess.run(
                [*command, *args.overrides], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
            print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
            folders.append(folder)
    return folders


def training_seconds(folders: Iterable[Path]) -> float:
    """Seconds of all trained stages; a reused prior counts once per density."""
    priors: dict[str, float] = {}
    guidance = 0.0
    for folder in folders:
        seconds = json.loads((folder / "results.json").read_text())["seconds"]
        priors[folder.name.split("-")[0]] = seconds["behavior"]
        guidance += seconds["guidance"]
    return sum(priors.values()) + guidance


def main() -> None:
    """Run everything requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", nargs="+", choices=list(DENSITIES), default=list(DENSITIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["CEP"])
    parser.add_argument("--betas", nargs="+", type=float, default=[3.0, 10.0, 20.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="densities run in parallel")
    parser.add_argument("--runs", type=Path, default=Path("runs/densities"))
    parser.add_argument("--output", type=Path, default=Path("report"))
    args, overrides = parser.parse_known_args()
    args.overrides = overrides
    started = time.monotonic()
    with ThreadPoolExecutor(args.workers) as pool:
        folders = [folder for done in pool.map(lambda name: run_density(name, args), args.densities) for folder in done]
    print(f"wall clock {time.monotonic() - started:.0f} s with {args.workers} workers, "
          f"training {training_seconds(folders):.0f} s of one core", flush=True)  # fmt: skip
    report = [sys.executable, "-m", "cepdiff", "report", *map(str, folders), "--output", str(args.output)]
    raise SystemExit(subprocess.run(report).returncode)


if __name__ == "__main__":
    main()
