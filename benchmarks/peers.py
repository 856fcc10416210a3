"""Scores by training time on one core: d3rlpy's TD3+BC, IQL and BC, and runs of `cepdiff fit` on the same buffers.

    peers/bin/python benchmarks/peers.py train --output peer-runs --datasets NAME ...   # in d3rlpy's environment
    python benchmarks/peers.py score --output peer-runs                                 # in cepdiff's
    python benchmarks/peers.py report --output peer-runs --runs cepdiff runs/*/*

Two Python environments are needed because d3rlpy 2.8 requires gymnasium 1.0.0. Its policies are scored in the same
environments and episodes as those of cepdiff. `train` and `score` skip what is done already.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

ALGORITHMS = ("TD3+BC", "IQL", "BC")
MINUTES = (2.5, 5.0, 7.5, 10.0, 12.5, 15.0)


def arguments(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", type=Path, required=True, help="folder of the peers' runs")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, default=os.environ.get("D4RL_DATASET_DIR"), help="folder of the buffers")

    train = commands.add_parser("train", parents=[output, data], help="train d3rlpy's algorithms (in its environment)")
    train.add_argument("--datasets", nargs="+", required=True, help="names of .hdf5 files, without the suffix")
    train.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    train.add_argument("--seeds", nargs="+", type=int, default=[0])
    train.add_argument("--minutes", nargs="+", type=float, default=MINUTES, help="CPU minutes of the checkpoints")

    score = commands.add_parser("score", parents=[output, data], help="score the policies of `train`")
    score.add_argument("--episodes", type=int, default=20)

    report = commands.add_parser("report", parents=[output], help="a table, a figure and peers.json in the folder")
    report.add_argument("--runs", nargs="+", action="append", default=[], metavar=("LABEL", "FOLDER"),
                        help="a name and finished run folders of `cepdiff fit`; can be repeated")  # fmt: skip
    report.add_argument("--scales", nargs="*", type=float, default=[], help="fixed guidance scales to show as well")
    report.add_argument("--minutes", type=float, default=MINUTES[-1], help="budget of the comparison, in minutes")

    found = parser.parse_args(args)
    if found.command != "report" and found.data is None:
        parser.error("say where the buffers are: --data FOLDER, or set D4RL_DATASET_DIR")
    if found.command == "report" and any(len(named) < 2 for named in found.runs):
        parser.error("--runs takes a label and at least one folder")
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; each imports only the packages of its environment."""
    found = arguments(args)
    if found.command == "train":
        try:
            from peers_train import train_all
        except ModuleNotFoundError as error:
            raise SystemExit(f"{error}: `train` runs in an environment with d3rlpy, see docs/peers.md") from None

        train_all(found)
    elif found.command == "score":
        from peers_score import score_all

        score_all(found)
    else:
        from peers_report import report

        report(found)


if __name__ == "__main__":
    main()
