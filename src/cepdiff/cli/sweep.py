"""`cepdiff sweep SWEEP.yaml`: many runs of one recipe, on this machine, a Ray cluster or SLURM."""

from __future__ import annotations

import argparse

EPILOG = """\
Every key of the recipe can be given as an option, for all runs. Run the same command again to go on where it stopped:
finished runs are skipped, stopped ones resume, on any engine.

example:
  cepdiff sweep sweeps/quickstart --dry_run
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "sweep",
        help="run a recipe for many tasks, seeds and settings",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "file", metavar="SWEEP.yaml|RECIPE", help="the recipe, the axes and where the runs are carried out"
    )
    parser.add_argument("--dry_run", action="store_true", help="show the runs and what they take from each other")
    parser.add_argument("--engine", choices=["local", "ray", "slurm"], help="in place of the file's")
    parser.add_argument("--folder", metavar="DIR", help="in place of the file's; default: sweeps/NAME")
    parser.add_argument("--KEY", dest="_overrides", metavar="VALUE", help="any key of the recipe, dotted")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import replace
    from pathlib import Path

    from cepdiff.cli.fit import parse_overrides
    from cepdiff.runs.recipes import find
    from cepdiff.sweeps.settings import read_sweep

    path = find(args.file)
    settings = read_sweep(path)
    settings = replace(settings, engine=args.engine or settings.engine)
    overrides = parse_overrides(args.overrides)
    from cepdiff.sweeps.engines import make_engine  # these load torch and Lightning
    from cepdiff.sweeps.plan import make_plan
    from cepdiff.sweeps.state import FINISHED, SweepFolder
    from cepdiff.sweeps.sweep import Sweep, outcome

    folder = SweepFolder(Path(args.folder or settings.folder or Path("sweeps") / path.stem))
    if settings.search is not None:
        from cepdiff.sweeps.search import Search, table

        search = Search(settings, path.parent, overrides, folder)
        if args.dry_run:
            print(search)
            print(Sweep(settings, search.plan(search.known()), folder).table().text())
            return 0
        tried = search.carry_out(lambda: make_engine(settings, folder.jobs))
        print(table(tried, settings.search).text())
        return int(any(trial.value is None for trial in tried))
    sweep = Sweep(settings, make_plan(settings, path.parent, overrides), folder)
    if args.dry_run:
        print(sweep.table().text())
        return 0
    status = sweep.carry_out(make_engine(settings, folder.jobs))
    print(outcome(folder, list(sweep.runs), status).text())
    return int(any(found != FINISHED for found in status.values()))
