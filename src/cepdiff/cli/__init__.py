"""The command `cepdiff`. Only the standard library is imported before a command runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cepdiff.cli import collect, completion, config, data, evaluate, export, fit, report, sample, share, sweep
from cepdiff.cli.messages import complain
from cepdiff.errors import CepdiffError, ConfigError


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for bad input, 128 + n on signal n.

    With $CEPDIFF_TRACEBACK set, an error that this package did not foresee is raised instead of reported.
    """
    parsed = parse(args)
    as_json = getattr(parsed, "json", False)
    try:
        code: int = parsed.run(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe can still be reported
    except CepdiffError as error:
        return complain(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        advice = "; run the same command to go on" if parsed.command in ("fit", "sweep") else ""
        print(f"cepdiff: interrupted{advice}", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("CEPDIFF_TRACEBACK"):
            raise
        from cepdiff.cli.messages import report_unforeseen

        return report_unforeseen(error, as_json)
    return code


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command's arguments; those that match no option become `overrides`."""
    parser = build_parser()
    if completion.COMPLETING in os.environ:
        completion.complete(parser)
    try:
        parsed, rest = parser.parse_known_args(args)
        if rest and not getattr(parsed, "takes_overrides", False):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    except ConfigError as error:
        raise SystemExit(complain(str(error), 2, "--json" in (sys.argv if args is None else args))) from None
    except SystemExit:  # after --help
        from cepdiff.cli.messages import close_output

        close_output()
        raise
    parsed.overrides = rest
    return parsed


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an exception with one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from cepdiff import __version__

    parser = Parser(
        prog="cepdiff",
        description=f"cepdiff {__version__}: exact energy-guided diffusion policies from logged data.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cepdiff {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (fit, sweep, evaluate, sample, export, report, share, data, collect, config, completion):
        command.add_parser(commands)
    return parser
