"""`cepdiff data replay`: check that an environment reproduces the transitions of a file."""

from __future__ import annotations

import argparse
from contextlib import closing

from cepdiff.cli.arguments import RowBar, json_object

_DESCRIPTION = """Sets the environment to recorded states, applies the recorded actions and compares the next
observations, rewards and terminal flags with the file. Exits with 0 if they match or are close, 1 if they differ."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Add `replay` to the commands of `cepdiff data`; `shared` has their common options."""
    text = "compare the steps of a file with an environment"
    parser = commands.add_parser("replay", help=text, description=_DESCRIPTION, parents=[shared])
    add = parser.add_argument
    add("dataset", metavar="TASK_OR_FILE", help="a task, a file, or the name of a file in the dataset folder")
    add("--rows", type=int, default=1000, metavar="N", help="rows to replay (default: 1000)")
    add("--seed", type=int, default=0, help="seed for choosing the rows")
    add("--env_id", metavar="ID", help="the environment; default: from the task or the file")
    add("--env_kwargs", metavar="JSON", help="additional arguments of the environment")
    add("--output", metavar="FILE.json", help="also write the result as JSON")
    add("--plot", metavar="FILE.png", help="plot the sorted deviations of each group")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the result as a table or JSON; returns 1 for "differs", else 0."""
    import json
    from pathlib import Path

    from cepdiff.data.rl.source import load_dataset
    from cepdiff.data.rl.tasks import TASKS
    from cepdiff.errors import ConfigError
    from cepdiff.figures import check_figure
    from cepdiff.files import check_output, write_json

    if args.rows < 1:
        raise ConfigError(f"--rows is {args.rows}; expected at least 1")
    if args.output:
        check_output(Path(args.output))
    if args.plot:
        check_figure(Path(args.plot))
    env_kwargs = json_object(args.env_kwargs) if args.env_kwargs else None
    raw = load_dataset(args.dataset, args.dataset_dir, allow_download=False, infos=True)
    from cepdiff.rollout.environment import choose_environment  # these load torch and gymnasium
    from cepdiff.rollout.replay import replay
    from cepdiff.rollout.replay_report import format_replay, plot_replay

    spec = choose_environment(args.dataset, TASKS.get(args.dataset), raw.metadata, args.env_id, env_kwargs, "--env_id")
    with closing(RowBar("replay")) as bar:
        report = replay(raw, spec, rows=args.rows, seed=args.seed, on_progress=bar.show)
    print(json.dumps(report.to_dict(), indent=2) if args.json else format_replay(report))
    if args.output:
        write_json(Path(args.output), report.to_dict())
    if args.plot:
        plot_replay(report, Path(args.plot))
    return int(report.verdict == "differs")
