"""`cepdiff export RUN`: the guided sampler of a run as one file that runs without cepdiff."""

from __future__ import annotations

import argparse

from cepdiff.cli.arguments import add_one_step, add_trust, require_run

ONE_STEP = "one_step.pt"  # default file name of the distilled policy, before the suffix is replaced
EPILOG = """\
examples:
  cepdiff export runs/hopper/0 --format onnx
  cepdiff export runs/hopper/0 --format torch --num_solver_steps 5 --output hopper.pt2
The file takes observations, a guidance scale per row and a seed (or noise), and returns actions.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="write the policy as one file for plain torch or ONNX",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN", help="run folder of cepdiff fit")
    parser.add_argument(
        "--format", choices=("torch", "onnx"), required=True, help="torch.export's .pt2, or .onnx for onnxruntime"
    )
    parser.add_argument("--output", metavar="FILE", help="default: RUN/policy.pt2 or .onnx, RUN/one_step.pt2 or .onnx")
    parser.add_argument("--num_solver_steps", type=int, metavar="N", help="steps of the sampler; default: the run's")
    parser.add_argument(
        "--randomness",
        choices=("seed", "noise"),
        default="seed",
        help="the file's random input: one seed per call (default), or standard normal noise",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX operators, 18 or later; default: 18")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare the file with the policy, and time both (default)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_one_step(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command: nothing is written unless the file acts as the policy does."""
    require_run(args.run_dir)
    from pathlib import Path

    from cepdiff.errors import ConfigError, RunError
    from cepdiff.files import check_output, written_aside
    from cepdiff.policy.export import check, graph
    from cepdiff.policy.guided import GuidedPolicy
    from cepdiff.policy.recipe import POLICY_FILE

    if args.opset is not None and args.format != "onnx":
        raise ConfigError("--opset belongs to --format onnx")
    opset = graph.DEFAULT_OPSET if args.opset is None else args.opset
    if args.format == "onnx":
        graph.require_onnx(opset)
    place = Path(args.run_dir)
    folder = place if place.is_dir() else place.parent
    name = ONE_STEP if args.one_step else POLICY_FILE
    output = Path(args.output) if args.output else (folder / name).with_suffix(graph.SUFFIXES[args.format])
    check_output(output)
    if output.exists() and not args.overwrite:
        raise ConfigError(f"{output} exists: use --overwrite to replace it, or --output for another place")
    policy = GuidedPolicy.from_run(
        place, num_solver_steps=args.num_solver_steps, trust_sources=args.trust_sources, one_step=args.one_step
    )
    if policy.recipe is not None and policy.recipe.image_shape is not None:
        raise ConfigError(f"{place} is a run on images, which `cepdiff sample` draws; only policies are exported")
    sampler = graph.trace(policy, args.randomness)
    content = graph.torch_file(sampler) if args.format == "torch" else graph.onnx_file(sampler, opset)
    result = None
    if args.check:
        result = check.check(policy, check.load(content, args.format), list(sampler.inputs))
        if not result.passed:
            raise RunError(
                f"nothing written: the file would not act as the policy within {check.TOLERANCE:g} "
                f"({result.differences_text()})"
            )
    with written_aside(output) as file:
        file.write(content)
    print(f"{output}: {len(content) / 1e6:.1f} MB, {sampler.call_text()}")
    if result is not None:
        print(f"{result.differences_text()}\n{result.table()}")
    return 0
