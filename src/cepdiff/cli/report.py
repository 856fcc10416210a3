"""`cepdiff report RUN ...`: tables and figures over finished runs."""

from __future__ import annotations

import argparse
import sys

from cepdiff.cli.arguments import add_trust, require_run
from cepdiff.tables import FORMS

EPILOG = """\
Runs of densities and of images are compared by method (multiples of the noise floor, samples side by side), runs of
offline RL by guidance scale (best, offline choice, regret) and over seeds, tasks and settings (mean and standard error,
interquartile mean, median, optimality gap, probability of improvement, performance profiles), runs of your own problem
by metric. All may be mixed. Runs are found at any depth below a folder; those that are not finished are listed.

examples:
  cepdiff report runs
  cepdiff report runs --html
  cepdiff report runs --scale 1 --format latex --output report
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="compare finished runs in tables and figures",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", help="run folders, or folders with runs below")
    parser.add_argument(
        "--output", default="report", metavar="DIR", help="report.md, report.json and figures; default: ./report"
    )
    parser.add_argument(
        "--scale", default="offline", metavar="S",
        help="guidance scale of offline RL's scores over seeds: a number, offline (each run's choice, the default) or "
        "best (in hindsight)",
    )  # fmt: skip
    parser.add_argument("--html", action="store_true", help="also write report.html: one page that needs no network")
    parser.add_argument("--format", choices=FORMS, default="text", help="of the tables on the screen")
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    for place in args.run_dirs:
        require_run(place)
    from pathlib import Path

    from cepdiff.runs.report import HTML, report

    output = Path(args.output)
    sections = report([Path(name) for name in args.run_dirs], output, args.trust_sources, args.scale, args.html)
    print("\n\n".join(section.text(args.format) for section in sections))
    figures = [figure for section in sections for figure in section.figures]
    pages = [f"report {output / 'report.md'}", *([HTML] if args.html else []), "report.json"]
    files = ", ".join([*pages, *figures])
    if args.format == "text":
        print(f"\n{files}")
    else:  # the tables alone, for a file
        print(files, file=sys.stderr)
    return 0
