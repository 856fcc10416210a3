# ruff: noqa: E402
"""Inject faults: odd configurations, damaged buffers and run folders, kills, and lost processes.

    python benchmarks/faults.py [--quick] [--only configs,buffers] [--seed 0] [--output DIR]
    python benchmarks/faults.py --case buffers:17

Every case ends as "clear line" (one line beginning with `cepdiff:` and exit code 2, or 1 for a training that
diverged), "valid" (exit code 0 and the right numbers), "traceback" (or any exit without a clear line), "silent" (goes
on with another number, or with what must be refused) or "hang". The last three, foreign code that ran and leftover
files end the campaign with exit code 1. The same seed makes the same cases.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy: a process with threads cannot be forked safely

import fault_buffers
import fault_configs
import fault_kills
import fault_runs
from cepdiff.tables import Table
from fault_cases import Case, Part, Verdict, judge, start, verdict_of

_ALL = (fault_configs.PART, fault_buffers.PART, fault_runs.PART, fault_kills.KILLS, fault_kills.PROCESSES)
PARTS = {part.name: part for part in _ALL}
COLUMNS = ("clear line", "valid", "traceback", "silent", "hang")


def main(args: Sequence[str] | None = None) -> int:
    """Run the campaign and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short form, about a minute")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of cases")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="cases at a time (%(default)s)")
    parser.add_argument("--case", metavar="PART:INDEX", help="repeat one case, and show what the command printed")
    parser.add_argument("--output", type=Path, help="folder of faults.json and faults.md")
    options = parser.parse_args(args)
    unknown = set(options.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    preload()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        if options.case:
            name, _, index = options.case.partition(":")
            return repeat(PARTS[name], int(index), options, Path(folder))
        found = {name: campaign(PARTS[name], options, Path(folder) / name) for name in options.only.split(",")}
    print(f"\n{table(found).text()}\n")
    bad = list(bad_cases(found, options))
    for record in bad:
        print(f"{record['part']}:{record['index']}  {record['outcome']}  {record['name']}\n    {record['detail']}")
    if options.output is not None:
        write(options, found, bad)
    return 1 if bad else 0


def preload() -> None:
    """Import once what every case needs; the cases are forks of this process."""
    import torch

    import cepdiff.data.checks.report
    import cepdiff.problems.density.problem
    import cepdiff.problems.offline.evaluate
    import cepdiff.problems.offline.problem
    import cepdiff.runs.fit  # noqa: F401

    torch.set_num_threads(1)


def size_of(part: Part, options: argparse.Namespace) -> int:
    """Number of cases."""
    scale: float = options.scale
    return max(1, round((part.quick if options.quick else part.count) * scale))


def prepared(part: Part, options: argparse.Namespace, folder: Path) -> list[Case]:
    """The cases of a part, after writing their shared files."""
    shared = folder / "shared"
    shared.mkdir(parents=True)

    def prepare() -> Verdict:
        part.prepare(shared)
        return Verdict("valid")

    pid = start(prepare, shared, 10 * part.seconds)
    _, status = os.waitpid(pid, 0)
    verdict = verdict_of(shared, status, part.seconds)
    if verdict.outcome != "valid":
        raise SystemExit(f"faults: the {part.name} part cannot be prepared: {verdict.detail}")
    return part.cases(shared, options.seed, size_of(part, options))


def campaign(part: Part, options: argparse.Namespace, folder: Path) -> list[tuple[Case, Verdict]]:
    """All cases of a part, in order."""
    cases = prepared(part, options, folder)
    verdicts: dict[int, Verdict] = {}
    since = time.monotonic()
    for index, verdict in judge(cases, folder / "cases", part.seconds, options.workers):
        verdicts[index] = verdict
        show(part.name, verdicts, len(cases), time.monotonic() - since)
    print(file=sys.stderr)
    return [(case, verdicts[index]) for index, case in enumerate(cases)]


def show(name: str, verdicts: dict[int, Verdict], total: int, seconds: float) -> None:
    """Progress on stderr: one line that is replaced on a terminal, every tenth of the way elsewhere."""
    done, bad = len(verdicts), sum(verdict.bad for verdict in verdicts.values())
    if sys.stderr.isatty() or done == total or done % max(1, total // 10) == 0:
        end = "" if sys.stderr.isatty() else "\n"
        left = seconds / done * (total - done)
        text = f"{name}: {done} of {total}, {bad} bad, {seconds:.0f} s, about {left:.0f} s left"
        print(f"\r{text:<78}" if sys.stderr.isatty() else text, end=end, file=sys.stderr, flush=True)


def repeat(part: Part, index: int, options: argparse.Namespace, folder: Path) -> int:
    """Run one case again; its folder is kept."""
    case = prepared(part, options, folder / part.name)[index]
    place = Path(tempfile.mkdtemp(prefix=f"fault-{part.name}-{index}-")) / "case"
    place.mkdir()
    print(f"{case.name}\nin {place}", flush=True)
    pid = start(lambda: case.run(place), place, part.seconds)
    _, status = os.waitpid(pid, 0)
    for stream in ("out", "err"):
        print(f"--- std{stream}\n{place.with_suffix(f'.{stream}').read_text(errors='replace')}")
    verdict = verdict_of(place, status, part.seconds)
    print(f"--- {verdict.outcome}: {verdict.detail}")
    return 1 if verdict.bad else 0


def table(found: dict[str, list[tuple[Case, Verdict]]]) -> Table:
    """One row per part, and the total."""
    rows = [["part", "tried", *COLUMNS, "executions", "leftovers"]]
    for name, cases in {**found, "all": [pair for pairs in found.values() for pair in pairs]}.items():
        verdicts = [verdict for _, verdict in cases]
        outcomes = Counter(verdict.outcome.replace("line", "clear line") for verdict in verdicts)
        extra = [sum(v.executions for v in verdicts), sum(v.leftovers for v in verdicts)]
        rows.append([name, *map(str, [len(cases), *(outcomes[column] for column in COLUMNS), *extra])])
    return Table(rows)


def bad_cases(found: dict[str, list[tuple[Case, Verdict]]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """A record of each bad case, with the command that repeats it."""
    size = "--quick " * options.quick + f"--scale {options.scale:g} " * (options.scale != 1)
    return [
        {
            "part": part,
            "index": index,
            "name": case.name,
            **vars(verdict),
            "repeat": f"python benchmarks/faults.py {size}--seed {options.seed} --case {part}:{index}",
        }
        for part, cases in found.items()
        for index, (case, verdict) in enumerate(cases)
        if verdict.bad
    ]


def write(options: argparse.Namespace, found: dict[str, list[tuple[Case, Verdict]]], bad: list[dict[str, Any]]) -> None:
    """Write JSON with all cases, and Markdown with the table and the bad cases."""
    options.output.mkdir(parents=True, exist_ok=True)
    cases = [
        {"part": part, "index": index, "name": case.name, **vars(verdict)}
        for part, pairs in found.items()
        for index, (case, verdict) in enumerate(pairs)
    ]
    content = {"seed": options.seed, "quick": options.quick, "bad": bad, "cases": cases}
    (options.output / "faults.json").write_text(json.dumps(content, indent=1))
    lines = ["# Faults", "", table(found).markdown(), ""]
    lines += [f"- `{r['part']}:{r['index']}` {r['outcome']}: {r['name']}. {r['detail']} `{r['repeat']}`" for r in bad]
    (options.output / "faults.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
