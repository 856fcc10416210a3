"""`cepdiff report RUN ...`: tables and figures over finished runs."""

from __future__ import annotations

import argparse

from cepdiff.cli.arguments import add_trust

EPILOG = """\
Runs of densities and of images are compared by method (multiples of the noise floor, samples side by side), runs of
offline RL by guidance scale (best, offline choice, regret), runs of your own problem by metric. All may be mixed;
folders that are no runs are named and skipped.

example:
  cepdiff report runs/*/* --output report
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
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", help="run folders of cepdiff fit")
    parser.add_argument(
        "--output", default="report", metavar="DIR", help="report.md, report.json and figures; default: ./report"
    )
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from cepdiff.runs.report import report

    output = Path(args.output)
    sections = report([Path(name) for name in args.run_dirs], output, args.trust_sources)
    print("\n\n".join(section.text() for section in sections))
    figures = [figure for section in sections for figure in section.figures]
    print("\n" + ", ".join([f"report {output / 'report.md'}", "report.json", *figures]))
    return 0
