"""The command `cepdiff`. Only the standard library is imported before a command runs, so that `--help` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cepdiff.cli import collect, data, evaluate, export, fit, report, sample


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failed training, 2 for bad input, 128 + n on signal n."""
    from cepdiff.errors import CepdiffError

    parser = build_parser()
    parsed, rest = parser.parse_known_args(args)
    if rest and not getattr(parsed, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.overrides = rest
    try:
        code: int = parsed.run(parsed)
    except CepdiffError as error:
        from cepdiff.cli.messages import is_first_process

        if is_first_process():
            print(f"cepdiff: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        advice = "; run the same command to go on" if parsed.command == "fit" else ""
        print(f"cepdiff: interrupted{advice}", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from cepdiff import __version__

    parser = argparse.ArgumentParser(
        prog="cepdiff", description="Exact energy-guided diffusion policies from logged data.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"cepdiff {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (fit, evaluate, sample, export, report, data, collect):
        command.add_parser(commands)
    return parser
