"""`cepdiff data info|download|check`: what a dataset is, where it comes from, whether it can be trained on."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `data` and its three commands; each sets `run`, a function of the parsed arguments -> exit code."""
    data = subparsers.add_parser("data", help="show, download or check a dataset")
    commands = data.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dataset_dir", metavar="DIR", help="default: $D4RL_DATASET_DIR or ~/.d4rl/datasets")
    shared.add_argument("--json", action="store_true", help="print JSON")
    what = "a task, a file, the name of a file in the dataset folder, or minari:ID"
    for name, run, text in (
        ("info", info, "show what a dataset holds; without a name, list the tasks"),
        ("download", download, "fetch the file of a task"),
        ("check", check, "exit 0 if a dataset can be trained on, 2 and one line if not"),
    ):
        command = commands.add_parser(name, help=text, description=text, parents=[shared])
        command.add_argument("dataset", metavar="TASK_OR_FILE", nargs="?" if name == "info" else None, help=what)
        command.set_defaults(run=run)


def info(args: argparse.Namespace) -> int:
    """Registry facts of a task, then the facts of its file if it is there; of a file its facts alone."""
    from dataclasses import asdict

    from cepdiff.data.source import load_dataset, task_path
    from cepdiff.data.tasks import TASKS

    if args.dataset is None:
        rows = [{"task": t.name, "env_id": t.env_id, "url": t.url or t.embedded} for t in TASKS.values()]
        _print_rows(rows, args.json)
        return 0
    task = TASKS.get(args.dataset)
    facts: dict[str, Any] = {}
    if task is not None:
        path = task_path(task, args.dataset_dir)
        facts["task"] = asdict(task) | {"file": str(path), "file_present": path.is_file()}
    if task is None or facts["task"]["file_present"]:
        from cepdiff.data.report import describe

        facts["data"] = describe(load_dataset(args.dataset, args.dataset_dir, allow_download=False), task)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for part in facts.values():
        _print_facts(part)
    if "data" not in facts:
        print(f"\nnot downloaded yet; fetch it with: cepdiff data download {args.dataset}")
    return 0


def download(args: argparse.Namespace) -> int:
    """Fetches what is not there yet, and prints where it lies."""
    from cepdiff.data.source import MINARI_PREFIX, load_dataset, resolve

    if args.dataset.startswith(MINARI_PREFIX):
        place = load_dataset(args.dataset, args.dataset_dir).source
    else:
        place = str(resolve(args.dataset, args.dataset_dir, allow_download=True))
    print(json.dumps({"file": place}) if args.json else place)
    return 0


def check(args: argparse.Namespace) -> int:
    """Prints the findings; what makes a dataset unusable is raised."""
    from dataclasses import asdict

    from cepdiff.data.report import check as find

    findings = find(args.dataset, args.dataset_dir)
    _print_rows([asdict(finding) for finding in findings], args.json)
    if not args.json:
        print("\nusable")
    return 0


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    widths = {key: max(len(str(row[key])) for row in rows) for key in rows[0]}
    for row in rows:
        print("  ".join(str(value).ljust(widths[key]) for key, value in row.items()).rstrip())


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        if value not in (None, "", {}, []):
            print(f"{name.ljust(width)}{_text(value)}")


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
