"""`cepdiff fit`: train all stages of a configuration and show the results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cepdiff.errors import ConfigError, RunError
from cepdiff.runs.recipes import find

EPILOG = """\
Every key of the configuration can be given as an option, e.g.
  cepdiff fit --config walker2d --seed 1 --critic.discount 0.97 --stages.behavior.max_steps 1000
Run the same command again to go on where it stopped: finished stages are skipped.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "fit",
        help="train all stages of a configuration, and judge the result",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action="append", metavar="FILE|RECIPE", default=[],
        help="YAML file, or a name in `cepdiff config list`; several are merged in order",
    )  # fmt: skip
    parser.add_argument("--stage", metavar="NAME", help="run this stage only; those before it must be finished")
    parser.add_argument(
        "--reuse", metavar="RUN_DIR", help="take over finished stages of another run that were made from the same"
    )
    parser.add_argument("--print_config", action="store_true", help="show the complete configuration and exit")
    parser.add_argument("--KEY", dest="_overrides", metavar="VALUE", help="any key of the configuration, dotted")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    files = [find(name) for name in args.config]
    overrides = parse_overrides(args.overrides)
    if args.reuse is not None and not Path(args.reuse).is_dir():
        raise RunError(f"--reuse {args.reuse} is no run folder")
    require_data(files, overrides)
    from cepdiff.runs.config import load_config

    config = load_config(files, overrides)
    if args.print_config:
        print(config.to_yaml(loaded=False), end="")
        return 0
    from cepdiff.runs.fit import fit

    fit(config, args.stage, [str(file.resolve().parent) for file in files], args.reuse)
    return 0


def parse_overrides(arguments: Sequence[str]) -> list[str]:
    """`--critic.discount 0.97` and `--critic.discount=0.97` as OmegaConf's "critic.discount=0.97"."""
    overrides = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(f"'{word}' is no option; keys of the configuration are written --section.key VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value")
            value = remaining.pop(0)
        overrides.append(f"{key}={value}")
    return overrides


def require_data(files: Sequence[Path], overrides: Sequence[str]) -> None:
    """Raise for a dataset that does not exist, before the libraries are loaded.

    Only for the default data module without interpolation; all else is left to the complete check.
    """
    from omegaconf import OmegaConf

    from cepdiff.data.rl.source import require
    from cepdiff.runs.recipes import read_layer

    data: Any = None
    with suppress(Exception):  # of several libraries: the complete check explains it
        layers = [*map(read_layer, files), OmegaConf.from_dotlist([*overrides])]
        merged: Any = OmegaConf.to_container(OmegaConf.merge(*layers))
        data = merged["data"]
    known = isinstance(data, dict) and not {"class_path", "init_args"} & data.keys() and "$" not in str(data)
    if known and isinstance(data.get("dataset"), str):
        require(data["dataset"], data.get("dataset_dir"))
