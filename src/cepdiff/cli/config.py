"""`cepdiff config`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from cepdiff.errors import ConfigError
from cepdiff.files import check_output, write_text
from cepdiff.runs.recipes import find, recipes, summary
from cepdiff.tables import Table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `config` and its commands."""
    text = "list, show or copy the recipes that come with the package"
    commands = subparsers.add_parser("config", help=text, description=text).add_subparsers(
        dest="config_command", metavar="COMMAND", required=True
    )
    listing = commands.add_parser("list", help="the recipes, each in a few words")
    listing.set_defaults(run=list_recipes)
    showing = commands.add_parser("show", help="print a recipe")
    showing.add_argument("name", metavar="RECIPE", help="its name, such as quickstart or toy/rings")
    showing.set_defaults(run=show)
    copying = commands.add_parser("copy", help="write a recipe to a file of your own; never replaces one")
    copying.add_argument("name", metavar="RECIPE", help="its name, such as quickstart or toy/rings")
    copying.add_argument("--output", type=Path, metavar="FILE", help="default: the recipe's file name, here")
    copying.set_defaults(run=copy)


def list_recipes(args: argparse.Namespace) -> int:
    """Print the recipes as a table; the names are those of `--config`."""
    rows = [[name, summary(file)] for name, file in recipes().items()]
    print(Table([["recipe", "what it is"], *rows], labels=2).text())
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the file of a recipe."""
    print(find(args.name).read_text(encoding="utf-8"), end="")
    return 0


def copy(args: argparse.Namespace) -> int:
    """Copy a recipe. Raises ConfigError if the target exists."""
    source = find(args.name)
    target = args.output or Path(source.name)
    check_output(target)
    if target.exists():
        raise ConfigError(f"{target} exists; choose another --output")
    write_text(target, source.read_text(encoding="utf-8"))
    print(target)
    return 0
