"""Growth of costs with the buffer, K, solver steps, critics, guidance scales, environments, episodes and image size.

    python benchmarks/growth.py                                  # all, a figure and the numbers
    python benchmarks/growth.py --parts rows --rows 10000 2000000

Each buffer size runs in its own process to measure its peak memory: what it takes beyond a run on two thousand rows,
as a multiple of the bytes of the file's arrays and the support cache. Everything runs as in `benchmarks/speed.py`,
without the reference. A time is the shortest of several rounds, which other programs disturb least. Sizes of a part
take turns in each round where they can, so that a slow minute of the machine does not look like growth.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import image_cost
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.figures import legend_above, new_panels, save_figure, styled
from cepdiff.files import write_json
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.critic import QEnsemble
from cepdiff.problems.offline.support_stage import SupportSettings, draw_support
from cepdiff.rollout.evaluation import evaluate
from cepdiff.runs.processes import TrainerSettings
from floors import machine
from sides import QUICK, Bench, Record, Sizes, synthetic_arrays
from speed_stages import guided_policy, limited, random_support, stage_folder

BASELINE_ROWS = 2000
# The panels: part, keys of the y axis, title.
PANELS = (
    ("rows", ("behavior", "critic"), "seconds per training step"),
    ("rows", ("start_up",), "start-up [s]"),
    ("rows", ("memory_multiple",), "peak memory / (arrays + support cache)"),
    ("actions", ("critic", "guidance"), "seconds per training step"),
    ("ensemble", ("critic",), "seconds per critic step"),
    ("solver", ("seconds",), "seconds per support action"),
    ("scales", ("seconds",), "seconds per step of 10 episodes per scale"),
    ("environments", ("seconds",), "seconds per step of all episodes"),
    ("episodes", ("seconds",), "seconds per evaluation, 16 at a time"),
    ("images", ("seconds",), "seconds per training step of a U-Net"),
)
LABELS = {
    "rows": "rows", "actions": "K", "ensemble": "critics", "solver": "solver steps", "scales": "guidance scales",
    "environments": "episodes side by side", "episodes": "episodes", "images": "side of the images [pixels]",
}  # fmt: skip
TOGETHER = 16  # episodes side by side where their number does not matter


def work(part: str, size: int) -> int:
    """How much there is to compute at that size, in any unit: a training step does not depend on the rows."""
    return 1 if part == "rows" else size**2 if part == "images" else size


def make_bench(args: argparse.Namespace, folder: Path, dataset: str | None = None, **changes: Any) -> Bench:
    """A bench with the requested sizes."""
    settings = TrainerSettings(
        accelerator="gpu" if args.device == "cuda" else "cpu", precision=args.precision,
        matmul_precision=args.matmul_precision, num_threads=args.threads, progress_bar=False,
    )  # fmt: skip
    base = QUICK if args.quick else replace(Sizes(), rows=20_000, behavior_block=2, block=20, rounds=3)
    return Bench(settings, replace(base, **changes), folder, dataset)


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trained(bench: Bench) -> Record:
    """Seconds per step of behavior and critic on the bench's buffer, start-up seconds and support bytes."""
    cache = random_support(bench)
    sizes = bench.sizes
    started = time.perf_counter()
    data = bench.loaded()
    loaded = time.perf_counter() - started
    behavior, behavior_start = bench.train(
        BehaviorDiffusion(*data.sizes, batch_size=sizes.behavior_batch), data, sizes.behavior_block
    )
    critic, critic_start = bench.train(
        SoftmaxQCritic(*data.sizes, batch_size=sizes.batch), data.with_support(cache), sizes.block
    )
    # A stage's start-up includes its first block of steps.
    first_blocks = sizes.behavior_block * min(behavior.ours) + sizes.block * min(critic.ours)
    return {
        "behavior": min(behavior.ours),
        "critic": min(critic.ours),
        "load": loaded,
        "start_up": loaded + max(behavior_start + critic_start - first_blocks, 0.0),
        "support_bytes": cache.actions.nbytes,
        "memory_mapped": isinstance(cache.actions, np.memmap),
    }


def child(args: argparse.Namespace, folder: Path) -> None:
    """Measure one buffer in this process and print the record."""
    for index in range(2):  # memory grows a little in the second run, and then no more
        own = folder / f"baseline-{index}"
        own.mkdir()
        trained(make_bench(args, own, rows=BASELINE_ROWS, rounds=1))
    baseline = peak_bytes()
    record = trained(make_bench(args, folder, args.child))
    print(json.dumps(record | {"memory": max(peak_bytes() - baseline, 1), "baseline": baseline}))


def rows(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per buffer size."""
    for size in args.rows:
        arrays = synthetic_arrays(size)
        array_bytes = sum(array.nbytes for array in arrays.fields.values())
        file = folder / f"rows-{size}.hdf5"
        write_arrays(file, arrays, compress=False)
        del arrays
        options = [
            *("--child", str(file), "--device", args.device, "--precision", args.precision),
            *("--matmul_precision", args.matmul_precision, "--threads", str(args.threads)),
            *(["--quick"] if args.quick else []),
        ]
        done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
        file.unlink()
        if done.returncode:
            raise SystemExit(done.stderr)
        record = json.loads(done.stdout.splitlines()[-1])
        multiple = record["memory"] / (array_bytes + record["support_bytes"])
        yield {"rows": size, **record, "array_bytes": array_bytes, "memory_multiple": multiple}


def actions(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number K of support actions."""
    for num_actions in args.actions:
        own = folder / f"actions-{num_actions}"
        own.mkdir()
        bench = make_bench(args, own, num_actions=num_actions)
        cache = random_support(bench)
        data = bench.data.with_support(cache, torch.randn(cache.actions.shape[:2]))
        batch, block = bench.sizes.batch, bench.sizes.block
        critic, _ = bench.train(SoftmaxQCritic(*data.sizes, batch_size=batch), data, block)
        guidance, _ = bench.train(EnergyGuidance(*data.sizes, batch_size=batch), data, block)
        yield {
            "actions": num_actions,
            "critic": min(critic.ours),
            "guidance": min(guidance.ours),
        }


def ensemble(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number of critics."""
    bench = make_bench(args, folder)
    data, sizes = bench.data.with_support(random_support(bench)), bench.sizes
    for count in args.ensemble:
        net = partial(QEnsemble, num_critics=count)
        timing, _ = bench.train(SoftmaxQCritic(*data.sizes, net, batch_size=sizes.batch), data, sizes.block)
        yield {"ensemble": count, "critic": min(timing.ours)}


def solver(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number of solver steps."""
    bench = make_bench(args, folder)
    states = min(bench.sizes.support_states, 256 if args.device == "cpu" else 16_384)
    settings = SupportSettings(max_rows=states)

    def draw(steps: int) -> int:
        target = stage_folder(bench, "support")
        sampler = bench.sampler(DPMSolver(num_steps=steps))
        draw_support(sampler, bench.data, target, settings, bench.K, 0, bench.processes)
        cache = SupportCache(target.path, len(bench.data.buffer.states))
        return int(cache.actions.shape[0]) * bench.K

    count = draw(1)
    for steps, seconds in in_turn(bench, args.solver, draw).items():
        yield {"solver": steps, "seconds": seconds / count, "actions_per_second": count / seconds}


def in_turn(bench: Bench, sizes: Sequence[int], run: Callable[[int], object]) -> dict[int, float]:
    """Shortest seconds of `run(size)` per size; in each round all sizes take their turn, after one to warm up."""
    rounds = [{size: bench.seconds(partial(run, size)) for size in sizes} for _ in range(bench.sizes.rounds + 1)]
    return {size: min(taken[size] for taken in rounds[1:]) for size in sizes}


def step_seconds(bench: Bench, counts: Sequence[int], run: Callable[[int, int], object]) -> dict[int, float]:
    """Seconds per environment step for each count: a long rollout minus a short one, `run(env_steps, count)`."""
    short, long = (in_turn(bench, counts, partial(run, steps)) for steps in bench.sizes.env_steps)
    steps = bench.sizes.env_steps[1] - bench.sizes.env_steps[0]
    return {count: max(long[count] - short[count], 1e-9) / steps for count in counts}


def scales(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number of guidance scales above 0, ten episodes each, all at once."""
    bench = make_bench(args, folder)
    policy, episodes = guided_policy(bench), bench.sizes.episodes

    def roll_out(steps: int, count: int) -> None:
        chosen = [1.0 + scale for scale in range(count)]
        evaluate(policy, limited(bench.env, steps), scales=chosen, episodes=episodes, seed=0, device=bench.device)

    for count, seconds in step_seconds(bench, args.scales, roll_out).items():
        yield {"scales": count, "seconds": seconds}


def environments(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number of episodes side by side, at guidance scale 1."""
    bench = make_bench(args, folder)
    policy = guided_policy(bench)

    def roll_out(steps: int, count: int) -> None:
        env = limited(bench.env, steps)
        evaluate(policy, env, scales=[1.0], episodes=count, seed=0, max_envs=count, device=bench.device)

    for count, seconds in step_seconds(bench, args.environments, roll_out).items():
        yield {"environments": count, "seconds": seconds, "steps_per_second": count / seconds}


def episodes(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per number of episodes of a few steps, `TOGETHER` side by side, at guidance scale 1."""
    bench = make_bench(args, folder)
    policy, env = guided_policy(bench), limited(bench.env, bench.sizes.env_steps[0])

    def roll_out(count: int) -> None:
        evaluate(policy, env, scales=[1.0], episodes=count, seed=0, max_envs=TOGETHER, device=bench.device)

    for count, seconds in in_turn(bench, args.episodes, roll_out).items():
        yield {"episodes": count, "seconds": seconds}


def images(args: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """One record per side of square images: training steps of the digits recipe's prior."""
    bench = make_bench(args, folder)
    batch, blocks = (2, 1) if args.quick else (16, bench.sizes.rounds)
    for side in args.images:
        data = image_cost.RandomImages(side, *image_cost.RECIPES[8][1:], block_size=2)
        data.setup()
        module = image_cost.module_of(image_cost.recipe(8, "plain", batch, data), "behavior", data)
        yield {"images": side, "seconds": image_cost.trained(module, data, bench.processes, blocks)["best"]}


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Record]]] = {
    "rows": rows,
    "actions": actions,
    "ensemble": ensemble,
    "solver": solver,
    "scales": scales,
    "environments": environments,
    "episodes": episodes,
    "images": images,
}


def tables(found: dict[str, list[Record]]) -> str:
    """One line per panel: the cost at each size, and in brackets per unit of work relative to the first size."""
    lines = []
    for part, keys, title in PANELS:
        for key in keys if part in found else ():
            records = found[part]
            per_work = [record[key] / work(part, record[part]) for record in records]
            cells = [
                f"{record[part]:,}: {record[key]:.3g} ({value / per_work[0]:.2f})"
                for record, value in zip(records, per_work, strict=True)
            ]
            lines.append(f"{LABELS[part]}, {title}, {key}: " + ", ".join(cells))
    return "\n".join(lines)


def short(count: int) -> str:
    """A round number as the label of a tick: 500, 500k, 2M."""
    return f"{count // 10**6}M" if count >= 10**6 else f"{count // 1000}k" if count >= 1000 else str(count)


@styled()
def plot(found: dict[str, list[Record]], path: Path) -> None:
    """Draw one panel per measured cost, with a dashed line that grows as the work does."""
    shown = [panel for panel in PANELS if panel[0] in found]
    figure, panels = new_panels(len(shown), 3, 3.8, 2.6)
    for axes, (part, keys, title) in zip(panels, shown, strict=True):
        ticks = [record[part] for record in found[part]]
        for key in keys:
            values = [record[key] for record in found[part]]
            axes.plot(ticks, values, "o-", label=key.replace("_", " "))
            expected = [values[-1] * work(part, tick) / work(part, ticks[-1]) for tick in ticks]
            axes.plot(ticks, expected, "--", color="0.6", linewidth=1, zorder=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(ticks, [short(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=LABELS[part], ylabel=textwrap.fill(title, 26))
        axes.grid()
        if len(keys) > 1:
            legend_above(axes)
    save_figure(figure, path)


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure the parts and write `growth.json` and `growth.png`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 500_000, 2_000_000])
    parser.add_argument("--actions", nargs="+", type=int, default=[4, 8, 16, 32, 64], help="K")
    parser.add_argument("--solver", nargs="+", type=int, default=[5, 10, 15, 25, 50], help="solver steps")
    parser.add_argument("--ensemble", nargs="+", type=int, default=[2, 4, 8, 16], help="critics")
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="numbers of guidance scales")
    parser.add_argument("--environments", nargs="+", type=int, default=[1, 4, 16, 64], help="episodes side by side")
    parser.add_argument("--episodes", nargs="+", type=int, default=[16, 32, 64, 128])
    parser.add_argument("--images", nargs="+", type=int, default=[8, 16, 32, 64], help="sides of images, in pixels")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="32-true", help="Lightning's, e.g. bf16-mixed (%(default)s)")
    parser.add_argument("--matmul_precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that it runs")
    parser.add_argument("--output", type=Path, default=Path("report"))
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the file of one buffer size, in its own process
    args = parser.parse_args(None if arguments is None else list(arguments))
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    with tempfile.TemporaryDirectory() as name:
        if args.child:
            child(args, Path(name))
            return
        found: dict[str, list[Record]] = {}
        bench = make_bench(args, Path(name), rows=BASELINE_ROWS)
        words = machine(bench.device)
        print(words)
        for part in args.parts:
            folder = Path(name) / part
            folder.mkdir()
            for record in PARTS[part](args, folder):
                print(part, "  ".join(f"{k} {v:.4g}" for k, v in record.items()), flush=True)
                found.setdefault(part, []).append(record)
    sizes = asdict(bench.sizes)
    args.output.mkdir(parents=True, exist_ok=True)
    options = {name: value for name, value in vars(args).items() if name not in ("output", "child")}
    target = args.output / "growth.json"
    write_json(target, {"machine": words, "options": options, "sizes": sizes, "records": found})
    plot(found, target.with_suffix(".png"))
    print(tables(found))
    print(f"written {target} and {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
