"""`cepdiff evaluate RUN`: rolls a trained policy out again, with other scales, episodes, seeds or solver steps."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("evaluate", help="score the policy of a run folder", allow_abbrev=False)
    parser.add_argument("run_dir", metavar="RUN", help="run folder of cepdiff fit")
    parser.add_argument("--scales", type=float, nargs="+", metavar="S", help="guidance scales; default: the run's")
    parser.add_argument("--episodes", type=int, metavar="N", help="episodes a scale; default: the run's")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="seeds of the episodes; default: the run's"
    )
    parser.add_argument("--num_solver_steps", type=int, metavar="N", help="steps of the sampler; default: the run's")
    parser.add_argument("--max_envs", type=int, default=128, metavar="N", help="environments side by side a process")
    parser.add_argument(
        "--backend", choices=("gymnasium", "gym"), help="where to run episodes; default: as the run did"
    )
    parser.add_argument(
        "--engine", metavar="NAME", help="torch, onnx or cuda_graph; default: cuda_graph on a GPU, else torch"
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    parser.add_argument("--devices", type=int, default=1, help="processes to share the episodes")
    parser.add_argument("--output", metavar="FILE", help="scores as JSON; default: RUN/evaluation.json")
    parser.add_argument(
        "--video", nargs="?", const="", metavar="FILE", help="MP4 of the best scale; default: RUN/best.mp4"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from cepdiff.stages.evaluate import evaluate_run

    return evaluate_run(args)
