"""Guidance of images by class and colour with CEP and its baselines: train what is missing, then write one report.

    python benchmarks/images.py                                     # digits: both energies, every method
    python benchmarks/images.py --energies class --methods CEP NoisyClassifier

The prior of an energy is trained once, in the run of its first method, and reused by the others. Energies run in
parallel, one thread each. Finished stages are skipped. `DPS-analytic` guides by the energy itself and trains nothing.
Other options go to every run, e.g. --stages.guidance.max_steps 1000. Prints wall clock and one report.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

CONFIGS = Path(__file__).parent.parent / "configs" / "images"
MARK = "-analytic"
ANALYTIC = f"DPS{MARK}"
# Methods that apply: classifiers need classes; energies of labels are infinite and not a function of the image.
METHODS = {
    "class": ("CEP", "NoisyClassifier", "ExponentialMSE", "DPSClassifier"),
    "colour": ("CEP", "ExponentialMSE", "MSE", "DPS", ANALYTIC),
}
DEFAULT = {"class": ("CEP", "NoisyClassifier", "DPSClassifier"), "colour": ("CEP", "MSE", "DPS", ANALYTIC)}
KNOWN = tuple(dict.fromkeys(method for methods in METHODS.values() for method in methods))


def run_energy(energy: str, args: argparse.Namespace) -> list[Path]:
    """Run all methods of one energy, one after the other; return their folders."""
    methods = [method for method in args.methods or DEFAULT[energy] if method in METHODS[energy]]
    folders: list[Path] = []
    for method in methods:
        folder = args.runs / f"{energy}-{method}-seed{args.seed}"
        command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(CONFIGS / f"digits_{energy}.yaml")]
        command += ["--run_dir", str(folder), "--seed", str(args.seed), "--trainer.progress_bar", "false"]
        command += ["--trainer.num_threads", "1", "--guidance.objective", method.removesuffix(MARK)]
        if not method.endswith("Classifier"):  # which has beta 1; for another class the config's arguments are dropped
            command += ["--guidance.objective.inverse_temperature", str(inverse_temperature(energy))]
        command += args.overrides
        if method == ANALYTIC:
            command += ["--stages.guidance.max_steps", "0"]
        if prior := find_prior(folder, args.runs, energy, args.seed):
            command += ["--reuse", str(prior)]
        started = time.monotonic()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
        folders.append(folder)
    return folders


def inverse_temperature(energy: str) -> float:
    """Beta of the energy's configuration."""
    values = yaml.safe_load((CONFIGS / f"digits_{energy}.yaml").read_text())
    return float(values["guidance"]["objective"]["inverse_temperature"])


def find_prior(folder: Path, runs: Path, energy: str, seed: int) -> Path | None:
    """Return a run of another method whose prior is trained, or None."""
    others = [runs / f"{energy}-{method}-seed{seed}" for method in METHODS[energy]]
    return next((run for run in others if run != folder and (run / "behavior" / "final.ckpt").exists()), None)


def main() -> None:
    """Run everything requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energies", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--methods", nargs="+", choices=KNOWN, help="skipped for energies they do not apply to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="energies run in parallel")
    parser.add_argument("--runs", type=Path, default=Path("runs/images"))
    parser.add_argument("--output", type=Path, default=Path("report"))
    args, overrides = parser.parse_known_args()
    args.overrides = overrides
    if args.methods and (lost := [e for e in args.energies if not set(args.methods) & set(METHODS[e])]):
        parser.error(f"none of the methods {', '.join(args.methods)} applies to the energy {lost[0]}")
    started = time.monotonic()
    with ThreadPoolExecutor(args.workers) as pool:
        folders = [folder for done in pool.map(lambda name: run_energy(name, args), args.energies) for folder in done]
    print(f"wall clock {time.monotonic() - started:.0f} s with {args.workers} workers", flush=True)
    report = [sys.executable, "-m", "cepdiff", "report", *map(str, folders), "--output", str(args.output)]
    raise SystemExit(subprocess.run(report).returncode)


if __name__ == "__main__":
    main()
