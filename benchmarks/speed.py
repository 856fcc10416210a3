"""Cost of each stage on this machine, compared with a plain eager version of the recipe and a lower bound.

    python benchmarks/speed.py --threads 1                        # a table, and report/speed.json
    python benchmarks/speed.py --device cuda --precision bf16-mixed
    python benchmarks/speed.py --dataset hopper-medium-v2 --stages act evaluation

Rounds of both sides alternate in one run, so that the ratios hold on a busy machine too; the table shows medians. The
reference (`benchmarks/reference.py`) always computes in full float32, like the official code; precision only applies to
this package. The floor is FLOPs over the measured rate of matrix products, or bytes over that of copies
(`benchmarks/floors.py`). The last rows project the paper's recipe for a million rows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import torch

from cepdiff.files import write_json
from cepdiff.policy.engines import ENGINES
from cepdiff.problems.offline.problem import OfflineStages
from cepdiff.runs.processes import TrainerSettings
from floors import machine
from sides import CUDA, QUICK, Bench, Record, Sizes
from speed_stages import STAGES

PROJECTED_ROWS = 1_000_000
PROJECTED_ENV_STEPS = 1_000
# Stages that the projection sums.
NEEDED = ("load", "behavior", "support", "critic", "energies", "guidance", "evaluation")


def side_seconds(records: dict[str, Record], side: str) -> dict[str, float]:
    """Seconds of each part of the whole recipe for a million rows; `side` is "ours", "reference" or "floor"."""
    steps = OfflineStages()

    def unit(stage: str) -> float:
        value = records[stage][side]
        return float(value["median"] if isinstance(value, dict) else value)

    def start_up(stage: str) -> float:
        return float(records[stage].get("start_up", 0.0)) if side == "ours" else 0.0

    critic, guidance = steps.critic.max_steps, steps.guidance.max_steps
    evaluation = records["evaluation"]
    rolled_out = {"ours": evaluation["start_up"], "reference": evaluation["reference_start_up"], "floor": 0.0}[side]
    parts = {
        "load": unit("load") * PROJECTED_ROWS / records["load"]["rows"],
        "behavior": unit("behavior") * steps.behavior.max_steps + start_up("behavior"),
        "support": unit("support") * PROJECTED_ROWS,
        "critic": unit("critic") * critic + start_up("critic"),
        "guidance": unit("guidance") * guidance + start_up("guidance"),
        "evaluation": unit("evaluation") * PROJECTED_ENV_STEPS + rolled_out,
    }
    if side == "reference":  # guidance uses the critic's batches while both train, then loads its own
        parts["guidance"] += float(records["critic"]["reference_loading"]) * (guidance - critic)
    else:
        parts["guidance"] += unit("energies") * PROJECTED_ROWS
    return parts


def projection(records: Sequence[Record]) -> dict[str, dict[str, float]] | None:
    """Seconds of the paper's recipe by side and part; None if a stage was not timed."""
    by_stage = {record["stage"]: record for record in records}
    if not all(stage in by_stage for stage in NEEDED):
        return None
    return {side: side_seconds(by_stage, side) for side in ("ours", "reference", "floor")}


def duration(seconds: float) -> str:
    """Format seconds with a suitable unit."""
    for size, unit in ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def row(name: str, ours: str, reference: str, ratio: str, floor: str, more: str = "") -> str:
    """A line of the table."""
    return f"{name:38} {ours:>19} {reference:>19} {ratio:>7} {floor:>9}  {more}".rstrip()


def both(side: dict[str, Any] | None) -> str:
    """Median and best of a side."""
    return "-" if side is None else f"{duration(side['median'])} ({duration(side['best'])})"


def line(record: Record) -> str:
    """Format a record as a line of the table."""
    ratio = "-" if record["ratio"] is None else f"{record['ratio']:.1f}x"
    more = []
    if record["stage"] == "support":
        more.append(f"{record['num_actions'] * record['states_per_row'] / record['ours']['median']:,.0f} actions/s")
    if record["stage"] == "evaluation":
        more.append(f"{record['episodes'] / record['ours']['median']:,.0f} env steps/s")
        more.append(f"environment only {duration(record['environment'])} per step")
    if record["peak_memory"] is not None:
        more.append(f"peak {record['peak_memory'] / 2**30:.2f} GiB")
    if record["busy"] is not None:
        more.append(f"GPU busy {record['busy']:.0%}")
    name = f"{record['stage']}, {record['unit']}"
    return row(
        name, both(record["ours"]), both(record.get("reference")), ratio, duration(record["floor"]), ", ".join(more)
    )


def print_projection(parts: dict[str, dict[str, float]]) -> None:
    """Print the projected recipe, by part and in total."""
    print(f"\nThe paper's recipe for {PROJECTED_ROWS:,} rows, projected")
    for part in (*parts["ours"], "total"):
        ours, other, floor = (
            sum(values.values()) if part == "total" else values[part] for values in (parts[s] for s in parts)
        )
        print(row(part, duration(ours), duration(other), f"{other / ours:.1f}x", duration(floor)))


def main(arguments: Iterable[str] | None = None) -> None:
    """Time the stages, print the table and write `speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="Lightning's, e.g. bf16-mixed (%(default)s)")
    parser.add_argument("--matmul_precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (%(default)s)")
    parser.add_argument("--dataset", help="a D4RL task or an HDF5 file; default: a synthetic buffer of Hopper's shape")
    parser.add_argument("--env", help="a Gymnasium id; default: the task's, else Hopper-v4")
    parser.add_argument("--engine", choices=list(ENGINES), help="the policy's engine; default: the one of evaluation")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    parser.add_argument("--output", type=Path, default=Path("report"))
    args = parser.parse_args(None if arguments is None else list(arguments))
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # one warning per new environment, of thousands
    settings = TrainerSettings(
        accelerator="gpu" if args.device == "cuda" else "cpu",
        precision=args.precision,
        matmul_precision=args.matmul_precision,
        num_threads=args.threads,
        progress_bar=False,
    )
    sizes = QUICK if args.quick else CUDA if args.device == "cuda" else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(settings, sizes, Path(folder), args.dataset, args.env, args.engine)
        words = machine(bench.device)
        rates = asdict(bench.rates)
        print(words)
        print(f"matrix products {rates['matmul'] / 1e9:,.0f} GFLOP/s, copies {rates['copy'] / 1e9:,.0f} GB/s")
        print(
            f"this package: {args.precision}, float32 products at '{args.matmul_precision}', "
            f"policy on {args.engine or 'the default engine'}; "
            "reference: full float32 ('highest'), as the official code; medians, best in brackets\n"
        )
        print(row("seconds per", "ours", "reference", "ratio", "floor"))
        records: list[Record] = []
        for stage in args.stages:
            for record in STAGES[stage](bench):
                print(line(record), flush=True)
                records.append(record)
    found = projection(records)
    if found is not None:
        print_projection(found)
    options = {name: value for name, value in vars(args).items() if name != "output"}
    content = {
        "machine": words, "torch": torch.__version__, "options": options, "sizes": asdict(sizes), "rates": rates,
        "records": records, "projection": found,
    }  # fmt: skip
    target = args.output / "speed.json"
    write_json(target, content)
    print(f"\nwritten {target}")


if __name__ == "__main__":
    main()
