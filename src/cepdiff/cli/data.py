"""`cepdiff data`: list, show, download and check datasets."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cepdiff.cli.data_convert import add_parser as add_convert
from cepdiff.cli.data_replay import add_parser as add_replay
from cepdiff.data.rl.tasks import FAMILIES, REWARD_RULES, TASKS, Task
from cepdiff.errors import ConfigError, DataError, nearest
from cepdiff.tables import Table

_WHAT = (
    "a task, an OGBench dataset, a file, the name of a file in the dataset folder, or minari:ID; several, separated by "
    "commas, are one"
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` and its commands; each sets `run`, a function of the parsed arguments -> exit code."""
    data = subparsers.add_parser("data", help="list, show, download or check datasets")
    commands = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--dataset_dir", "--data.dataset_dir", metavar="DIR", help="default: $D4RL_DATASET_DIR or ~/.d4rl/datasets"
    )
    shared.add_argument("--json", action="store_true", help="print JSON")
    listing = _add(commands, shared, "list", list_tasks, "list the tasks, one per line")
    listing.add_argument("--family", metavar="NAME", help="only this family: locomotion, antmaze, maze2d, adroit, ...")
    showing = _add(commands, shared, "info", info, "show one task or file; without a name, list the tasks")
    showing.add_argument("dataset", metavar="TASK_OR_FILE", nargs="?", help=_WHAT)
    fetching = _add(commands, shared, "download", download, "download the file of a task")
    fetching.add_argument("dataset", metavar="TASK_OR_FILE", help=_WHAT)
    mirror = "address of a folder with D4RL's files, tried before $D4RL_DATASET_URL and D4RL's server; can be repeated"
    fetching.add_argument("--mirror", metavar="URL", action="append", default=[], help=mirror)
    checking = _add(commands, shared, "check", check, "check that a dataset is usable: exit code 0, else 2")
    checking.add_argument("dataset", metavar="TASK_OR_FILE", help=_WHAT)
    options = checking.add_argument_group("as of fit, also with its prefix (--data.env_id)")
    rule = ", ".join(REWARD_RULES)
    options.add_argument("--reward_rule", "--data.reward_rule", metavar="RULE", choices=REWARD_RULES, help=rule)
    options.add_argument("--env_id", "--data.env_id", metavar="ID", help="the environment that the data are from")
    for name, bound in (("action_low", "lower"), ("action_high", "upper")):
        text = f"{bound} bound of the actions: a number, or a list such as [-1,-2]"
        options.add_argument(f"--{name}", f"--data.{name}", metavar="X", type=_bound, help=text)
    checking.add_argument("--plot", metavar="FILE.png", type=Path, help="plot returns, lengths and actions")
    add_convert(commands, shared)
    add_replay(commands, shared)


def _add(commands: Any, shared: argparse.ArgumentParser, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, parents=[shared])
    command.set_defaults(run=run)
    return command


def list_tasks(args: argparse.Namespace) -> int:
    """Print the registry as a table; with --json, all fields of every task and its file."""
    family = getattr(args, "family", None)  # `info` without a name has no --family
    if family is not None and family not in FAMILIES:
        raise ConfigError(f"unknown family '{family}'; expected {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
    tasks = [task for task in TASKS.values() if family in (None, task.family)]
    if args.json:
        print(json.dumps([asdict(task) | _file_facts(task, args.dataset_dir) for task in tasks], indent=2))
        return 0
    rows = [_row(task, _file_facts(task, args.dataset_dir)) for task in tasks]
    print(Table([list(rows[0]), *(list(row.values()) for row in rows)], labels=len(rows[0])).text())
    return 0


def info(args: argparse.Namespace) -> int:
    """Print the registered facts of a task, and the facts of the file if it is present."""
    from cepdiff.data.rl.source import load_dataset

    if args.dataset is None:
        return list_tasks(args)
    task = TASKS.get(args.dataset)
    facts: dict[str, Any] = {}
    if task is not None:
        from cepdiff.data.rl.mirrors import minari_counterpart

        counterpart = {"minari_counterpart": minari_counterpart(task)}
        facts["task"] = asdict(task) | _file_facts(task, args.dataset_dir) | counterpart
    if task is None or facts["task"]["file_present"]:
        raw = load_dataset(args.dataset, args.dataset_dir, allow_download=False)
        from cepdiff.data.checks.report import describe  # it loads torch

        facts["data"] = describe(raw, task)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for part in facts.values():
        known = [(name, _text(value)) for name, value in part.items() if value not in (None, "", {}, [])]
        print(Table(known, labels=2).text())
    if "data" not in facts:
        print(f"\nnot downloaded yet; run: cepdiff data download {args.dataset}")
    return 0


def download(args: argparse.Namespace) -> int:
    """Download a missing file and print its path."""
    from cepdiff.data.rl.source import MINARI_PREFIX, load_dataset, part_names, resolve

    for name in part_names(args.dataset):
        if name.startswith(MINARI_PREFIX):
            place = load_dataset(name, args.dataset_dir).source
        else:
            place = str(resolve(name, args.dataset_dir, mirrors=args.mirror))
        print(json.dumps({"file": place}) if args.json else place)
    return 0


def check(args: argparse.Namespace) -> int:
    """Print the findings; raises if the dataset is unusable."""
    from cepdiff.data.rl.source import local_files
    from cepdiff.figures import check_figure

    local_files(args.dataset, args.dataset_dir)
    if args.plot:
        check_figure(args.plot)
    from cepdiff.data.checks.report import check as find  # it loads torch

    bounds = args.action_low, args.action_high
    findings = find(args.dataset, args.dataset_dir, args.plot, args.reward_rule, args.env_id, *bounds)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return 0
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.level.ljust(8)} {finding.name.ljust(width)}  {finding.message}")
        if finding.handling:
            print(f"{' ' * (width + 9)}  -> {finding.handling}")
    print("\nusable" + (f"; plotted in {args.plot}" if args.plot else ""))
    return 0


def _file_facts(task: Task, dataset_dir: str | None) -> dict[str, Any]:
    """Path of a task's file and its number of rows: None if it is missing or unreadable."""
    from cepdiff.data.rl.source import task_path

    path = task_path(task, dataset_dir)
    rows: int | None = None
    if path.is_file():
        from cepdiff.data.rl.hdf5 import read_header

        with suppress(DataError):  # `check` and `info` explain it
            rows, _ = read_header(path)
    return {"file": str(path), "file_present": path.is_file(), "rows": rows}


def _bound(text: str) -> float | list[float]:
    """A number or a list of numbers, as YAML and JSON write them."""
    value = json.loads(text)
    return [float(each) for each in value] if isinstance(value, list) else float(value)


def _row(task: Task, file: dict[str, Any]) -> dict[str, str]:
    present = "yes" if file["rows"] is not None else "unreadable" if file["file_present"] else "-"
    return {
        "task": task.name,
        "environment": task.env_id,
        "rows": "-" if file["rows"] is None else f"{file['rows']:,}",
        "horizon": str(task.horizon),
        "score 0": f"{task.reference_min:.6g}",
        "score 100": f"{task.reference_max:.6g}",
        "rewards": task.reward_rule,
        "K": str(task.num_support_actions),
        "scales": " ".join(f"{scale:g}" for scale in task.evaluation_scales),
        "episodes": str(task.evaluation_episodes),
        "file": present,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        if len(value) > 1 and len(set(map(str, value))) == 1:
            return f"{_text(value[0])} (all {len(value)})"
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
