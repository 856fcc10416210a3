"""`cepdiff completion SHELL`: a script with which a shell completes commands, options, recipes and tasks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from cepdiff.data.rl.tasks import TASKS
from cepdiff.errors import MissingExtraError
from cepdiff.runs.recipes import recipes

COMPLETING = "_ARGCOMPLETE"  # environment variable that the script sets when it asks for completions
_EPILOG = """Needs the extra 'completion'. In bash or zsh, add to the shell's startup file:
  eval "$(cepdiff completion bash)"
and in fish:
  cepdiff completion fish > ~/.config/fish/completions/cepdiff.fish
Keys of the configuration are not completed: listing them takes seconds.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands in bash, zsh or fish",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script. Raises MissingExtraError without argcomplete."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise MissingExtraError("Completion", "completion") from None
    print(shellcode(["cepdiff"], shell=args.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and exit. Recipes and tasks stand where an argument's metavar names them."""
    import argcomplete
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()
    for action in _actions(parser):
        metavar = str(action.metavar)
        names = [*recipes()] if "RECIPE" in metavar else [*TASKS] if "TASK" in metavar else []
        if names:
            action.completer = lambda prefix, names=names, **_: [*names, *files(prefix)]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
