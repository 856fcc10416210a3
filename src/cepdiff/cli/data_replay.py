"""`cepdiff data replay`: does this environment make the transitions that a file holds?"""

from __future__ import annotations

import argparse

from cepdiff.cli.arguments import RowBar, json_object

_DESCRIPTION = """Puts the environment into recorded states, applies the recorded actions and compares what comes out
with the next observations, rewards and terminal flags of the file. Exits with 0 where they match or are close, with 1
where they differ."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Adds the command to those of `cepdiff data`; `shared` holds their common options."""
    parser = commands.add_parser(
        "replay",
        help="compare the steps of a file with those of an environment",
        description=_DESCRIPTION,
        parents=[shared],
    )
    parser.add_argument(
        "dataset", metavar="TASK_OR_FILE", help="a task, a file, or the name of a file in the dataset folder"
    )
    parser.add_argument("--rows", type=int, default=1000, metavar="N", help="rows to replay (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    parser.add_argument("--env_id", metavar="ID", help="the environment; default: the task's, or what the file names")
    parser.add_argument("--env_kwargs", metavar="JSON", help="arguments of the environment, on top of the known ones")
    parser.add_argument("--output", metavar="FILE.json", help="write the result as JSON too")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the sorted deviations of each group")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table or JSON; 0 for "matches" and "close", 1 for "differs"."""
    import json
    from pathlib import Path

    from cepdiff.data.rl.source import load_dataset
    from cepdiff.data.rl.tasks import TASKS
    from cepdiff.errors import ConfigError
    from cepdiff.files import write_json
    from cepdiff.rollout.replay import replay
    from cepdiff.rollout.replay_report import format_replay, plot_replay
    from cepdiff.stages.environment import choose_environment

    if args.rows < 1:
        raise ConfigError(f"--rows is {args.rows}; expected at least 1")
    env_kwargs = json_object(args.env_kwargs) if args.env_kwargs else None
    raw = load_dataset(args.dataset, args.dataset_dir, allow_download=False, infos=True)
    spec = choose_environment(args.dataset, TASKS.get(args.dataset), raw.metadata, args.env_id, env_kwargs, "--env_id")
    bar = RowBar("replay")
    try:
        report = replay(raw, spec, rows=args.rows, seed=args.seed, on_progress=bar.show)
    finally:
        bar.close()
    print(json.dumps(report.to_dict(), indent=2) if args.json else format_replay(report))
    if args.output:
        write_json(Path(args.output), report.to_dict())
    if args.plot:
        plot_replay(report, Path(args.plot))
    return int(report.verdict == "differs")
