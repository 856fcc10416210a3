"""`cepdiff evaluate RUN`: roll a trained policy out again, with other scales, episodes, seeds or solver steps."""

from __future__ import annotations

import argparse

from cepdiff.cli.arguments import add_one_step, add_trust, require_run

OPTIONS = (
    "scales", "inverse_temperatures", "episodes", "seeds", "num_solver_steps", "max_envs", "num_workers",
    "env_id", "max_episode_steps", "backend", "engine", "accelerator", "devices", "trust_sources", "one_step",
)  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("evaluate", help="score the policy of a run folder", allow_abbrev=False)
    add = parser.add_argument
    add("run_dir", metavar="RUN", help="run folder of cepdiff fit")
    add("--scales", type=float, nargs="+", metavar="S", help="guidance scales; default: the run's")
    add("--inverse_temperatures", type=float, nargs="+", metavar="B", help="scale times beta, in place of --scales")
    add("--episodes", type=int, metavar="N", help="episodes per scale; default: the run's")
    add("--seeds", type=int, nargs="+", metavar="SEED", help="seeds of the episodes; default: the run's")
    add("--num_solver_steps", type=int, metavar="N", help="steps of the sampler; default: the run's")
    add("--max_envs", type=int, default=128, metavar="N", help="environments per process, stepped side by side")
    add("--num_workers", type=int, default=0, metavar="N", help="processes that step them; 0: in the process itself")
    add("--env_id", metavar="ID", help="another environment, or the run's own module:ID, also from the working folder")
    add("--max_episode_steps", type=int, metavar="N", help="cut episodes after N steps")
    add("--backend", choices=("gymnasium", "gym"), help="where to run episodes; default: as the run did")
    add("--engine", metavar="NAME", help="torch, onnx or cuda_graph; default: cuda_graph on a GPU, else torch")
    add("--accelerator", default="auto", help="auto, cpu, gpu")
    add("--devices", type=int, default=1, help="processes to share the episodes")
    add(
        "--output",
        metavar="FILE",
        help="results as JSON; default: RUN/evaluation.json, with the options in its name if it has other results",
    )
    add("--video", nargs="?", const="", metavar="FILE", help="MP4 of the best scale; default: RUN/best.mp4")
    add_one_step(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    require_run(args.run_dir)
    from pathlib import Path

    from cepdiff.cli.messages import is_first_process
    from cepdiff.problems.offline.evaluate import evaluate_run

    place = Path(args.run_dir)
    folder = place if place.is_dir() else place.parent
    output = Path(args.output) if args.output else None
    video = None if args.video is None else Path(args.video) if args.video else folder / "best.mp4"
    options = {name: value for name, value in vars(args).items() if name in OPTIONS}
    results = evaluate_run(place, output=output, video=video, **options)
    if is_first_process():
        print(f"{results.table().text()}\nresults {results.file}" + (f"\nvideo {video}" if video else ""))
    return 0
