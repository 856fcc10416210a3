"""`cepdiff sample RUN`: images of a trained run, as a picture or an array."""

from __future__ import annotations

import argparse

from cepdiff.cli.arguments import RowBar, add_trust, positive, require_run

EPILOG = """\
examples:
  cepdiff sample runs/digits/0 --head 3 --num 64 --output threes.png
  cepdiff sample runs/digits/0 --head 3 --scale 2 --num 1000 --output threes.npz
Image i of a head starts from the same noise at every scale. An .npz file holds `images` (N, C, H, W) as bytes.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "sample",
        help="draw images from a run on images",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN", help="run folder of cepdiff fit on images")
    parser.add_argument(
        "--head", metavar="NAME", help="energy to guide by: its name or number; needed if there are several"
    )
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="guidance scale; 0 is the prior")
    parser.add_argument("--num", type=positive, default=64, metavar="N", help="images; default: 64")
    parser.add_argument("--output", required=True, metavar="FILE", help="a grid as .png, or an array as .npz")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default: 0")
    parser.add_argument("--batch_size", type=positive, default=250, metavar="N", help="images at a time; default: 250")
    parser.add_argument(
        "--num_solver_steps", type=positive, metavar="N", help="steps of the sampler; default: the run's"
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu")
    parser.add_argument(
        "--precision", default="32-true", choices=["32-true", "bf16-mixed"], help="of the networks; default: 32-true"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    require_run(args.run_dir)
    from pathlib import Path

    from cepdiff.errors import ConfigError
    from cepdiff.files import check_output
    from cepdiff.policy.images import WRITERS, ImageSampler
    from cepdiff.runs.processes import Processes, TrainerSettings
    from cepdiff.runs.threads import settle_threads

    output = Path(args.output)
    writer = WRITERS.get(output.suffix.lower())
    if writer is None:
        raise ConfigError(f"--output {output} ends with '{output.suffix}'; expected {' or '.join(WRITERS)}")
    check_output(output)
    if output.exists() and not args.force:
        raise ConfigError(f"{output} exists: use --force to replace it, or --output for another place")
    processes = Processes(TrainerSettings(args.accelerator, precision=args.precision))
    sampler = ImageSampler.from_run(args.run_dir, processes.device, args.num_solver_steps, args.trust_sources)
    rows = min(args.num, args.batch_size)
    bar = RowBar("sampling")
    try:
        with processes.autocast():
            calls = sampler.sampler.solver.num_steps * args.num / rows
            settle_threads(processes, "sample", sampler.evaluation(rows), calls)
            images = sampler.sample(args.num, args.head, args.scale, args.seed, args.batch_size, bar.show)
    finally:
        bar.close()
    writer(output, images)
    guided = "the prior" if args.scale == 0.0 else f"head {args.head or sampler.head_names[0]} at scale {args.scale:g}"
    print(f"{output}: {len(images)} images {tuple(images.shape[1:])} of {guided}, seed {args.seed}")
    return 0
