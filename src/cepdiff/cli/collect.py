"""`cepdiff collect`: collect a dataset in D4RL's layout from any environment with continuous actions."""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cepdiff.cli.arguments import RowBar, json_object, positive
from cepdiff.collect.kinds import KINDS, check_kinds
from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import ConfigError
from cepdiff.files import check_output

if TYPE_CHECKING:
    from cepdiff.data.rl.arrays import RawArrays
    from cepdiff.data.rl.ogbench import OGBenchName
    from cepdiff.rollout.envs import EnvSpec

# Tasks with a controller in this package.
_MAZES = ("maze2d-", "antmaze-")
_EPILOG = """kinds, as D4RL defines them (Fu et al. 2020); all requested kinds share one SAC training:
{kinds}

examples:
  cepdiff collect Hopper-v4 --kind medium,medium-replay,expert --train_steps 1000000 --output buffers
  cepdiff collect Reacher-v5 --policy my_module:my_policy --steps 20000 --output mine.hdf5
  cepdiff collect maze2d-umaze-v1
  cepdiff collect antmaze-umaze-v2 --steps 300000
  cepdiff collect cube-single-play-v0 --steps 100000    in OGBench's layout, as a .npz file
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command; heavy modules are only imported when it runs."""
    parser = subparsers.add_parser(
        "collect",
        help="collect a dataset in D4RL's layout",
        description=__doc__,
        epilog=_EPILOG.format(kinds="\n".join(f"  {kind:<14} {what}" for kind, what in KINDS.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "env_id",
        metavar="ENV_ID|TASK",
        help="a Gymnasium environment (Hopper-v4, module:Mine-v0), a task or an OGBench dataset",
    )
    add("--kind", action="append", metavar="KIND[,KIND...]", help="kinds to collect (see below); can be repeated")
    policy = "record this policy instead of SAC; with navigate, the walking policy"
    add("--policy", metavar="FILE.zip|MODULE:FUNCTION", help=policy)
    add("--trust_policy", action="store_true", help="load a .zip policy, which can run arbitrary code")
    rows = "rows per buffer (default: --train_steps; in mazes, as in D4RL's file)"
    add("--steps", type=positive, metavar="N", help=rows)
    noise = "action noise of navigate (Maze2D: 0, AntMaze: 0.2)"
    add("--action_noise", type=float, metavar="SIGMA", help=noise)
    add("--train_steps", type=positive, default=1_000_000, metavar="N", help="SAC's environment steps (%(default)s)")
    medium = "position of medium between random (0) and expert (1) (default: 1/3)"
    add("--medium_fraction", type=_fraction, default=1 / 3, metavar="F", help=medium)
    episodes = "episodes per reference return (%(default)s)"
    add("--reference_episodes", type=positive, default=100, metavar="N", help=episodes)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path(), metavar="DIR|FILE.hdf5", help="default: ./ENV_ID-KIND.hdf5")
    add("--overwrite", action="store_true", help="replace existing files")
    add("--env_kwargs", default="{}", metavar="JSON", help="arguments of the environment")
    add("--env_module", metavar="MODULE", help="module to import first, which registers the environment")
    add("--states", action="store_true", help="also store MuJoCo's qpos and qvel of each row")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and write one file per kind; a file only appears once complete."""
    from cepdiff.data.rl.ogbench import parse_name

    if args.env_id not in TASKS and (name := parse_name(args.env_id)) is not None:
        return _run_ogbench(args, name)
    kinds = _kinds(args)
    outputs = _outputs(args, kinds or ["policy"])
    from cepdiff.collect.recipes import Collector, Plan  # these load torch and gymnasium
    from cepdiff.data.rl.hdf5 import write_arrays

    # The options are named like the plan's fields.
    plan = Plan(_env_spec(args), **{f.name: getattr(args, f.name) for f in fields(Plan) if f.name != "env"})
    plan.check(kinds)
    bars: dict[str, RowBar] = {}

    def progress(what: str, done: int, total: int, remark: str) -> None:
        bar = bars.setdefault(what, RowBar(what, stays=True))
        bar.show(done, total, remark)
        if done == total:
            bar.close()

    collector = Collector(plan, progress)
    collector.check(kinds, args.policy)
    for kind, path in outputs.items():
        if kind == "navigate":
            made = collector.make_navigation(args.policy, trust=args.trust_policy)
        elif args.policy is not None:
            made = collector.make_from_policy(args.policy, trust=args.trust_policy)
        else:
            made = collector.make(kind)
        write_arrays(path, made)
        references = (
            f"{key} {made.metadata[key]:.2f}" for key in ("reference_min", "reference_max") if key in made.metadata
        )
        print(f"{path}: {len(made)} rows, {', '.join(references)}")
        if kind == "navigate":
            _draw_map(plan.env, made, path.with_suffix(".png"))
    return 0


def _run_ogbench(args: argparse.Namespace, name: OGBenchName) -> int:
    """Record a dataset of OGBench; its file only appears once complete."""
    from cepdiff.collect.ogbench import recipe_of, record_ogbench, write_ogbench

    for option in ("kind", "policy", "action_noise", "states", "env_module"):
        if getattr(args, option) not in (None, False):
            raise ConfigError(f"--{option} does not apply to {name.stem}, which is recorded as OGBench does: remove it")
    total = args.steps or recipe_of(name).rows
    path = _checked(args.output if args.output.suffix == ".npz" else args.output / f"{name.stem}.npz", args.overwrite)
    with closing(RowBar(f"recording {name.stem}", stays=True)) as bar:
        arrays = record_ogbench(name, total, seed=args.seed, on_progress=lambda rows: bar.show(rows, total))
    write_ogbench(path, arrays)
    print(f"{path}: {total} rows in {int(arrays['terminals'].sum())} trajectories")
    return 0


def _kinds(args: argparse.Namespace) -> list[str]:
    """Return the kinds to collect; D4RL's mazes default to navigate."""
    kinds = [kind for text in args.kind or [] for kind in text.split(",")]
    if not kinds and args.policy is None and args.env_id.removeprefix("cepdiff/").startswith(_MAZES):
        return ["navigate"]
    if bool(kinds) == bool(args.policy) and not (args.policy and kinds == ["navigate"]):
        raise ConfigError("expected either --kind or --policy; only --kind navigate takes both")
    check_kinds(kinds)
    return kinds


def _env_spec(args: argparse.Namespace) -> EnvSpec:
    """Return the environment called `env_id`, or that of the task with this name."""
    from cepdiff.rollout.envs import EnvSpec

    kwargs = json_object(args.env_kwargs)
    task = TASKS.get(args.env_id)
    if task is None:
        # The file names the module too.
        whole = f"{args.env_module}:{args.env_id}" if args.env_module and ":" not in args.env_id else args.env_id
        return EnvSpec(whole, kwargs, args.env_module)
    return EnvSpec(task.env_id, {**task.env_kwargs, **kwargs}, args.env_module or task.env_module)


def _draw_map(env: EnvSpec, made: RawArrays, path: Path) -> None:
    from cepdiff.rollout.mazes import draw_visits, maze_of

    layout = maze_of(env)
    assert layout is not None  # navigating has already found it
    draw_visits(layout, made.observations[:, :2], path, f"{env.env_id}, {len(made):,} rows")
    print(f"{path}: map of the visited positions")


def _outputs(args: argparse.Namespace, kinds: list[str]) -> dict[str, Path]:
    """Return the file of each kind, after checking that it can be written: training takes hours."""
    if args.output.suffix in (".hdf5", ".h5"):
        if len(kinds) > 1:
            raise ConfigError(f"--output {args.output} is one file for {len(kinds)} kinds; expected a folder")
        outputs = {kinds[0]: args.output}
    else:
        stem = args.env_id.replace("/", "-").replace(":", "-")
        outputs = {kind: args.output / f"{stem}-{kind}.hdf5" for kind in kinds}
    for path in outputs.values():
        _checked(path, args.overwrite)
    return outputs


def _checked(path: Path, overwrite: bool) -> Path:
    """Return `path` if a file can be written there."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} already exists; choose another --output, or add --overwrite")
    check_output(path)
    return path


def _fraction(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1] such as 0.3 or 1/3, found {text}")
    return value
