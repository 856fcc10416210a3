"""`cepdiff data convert`: lossless conversion between D4RL's layout and Minari, and conversion from other layouts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cepdiff.cli.arguments import RowBar, json_object

if TYPE_CHECKING:
    from cepdiff.data.minari.write import Environment

_EPILOG = """--dataset_dir is both the folder of tasks and files and the root of Minari's datasets; by default, each has
its own ($D4RL_DATASET_DIR or ~/.d4rl/datasets; $MINARI_DATASETS_PATH or ~/.minari/datasets).

examples:
  cepdiff data convert reacher-replay minari:mine/reacher-v0
  cepdiff data convert minari:mujoco/hopper/medium-v0 hopper-medium.hdf5
  cepdiff data convert low_dim_v15.hdf5 lift.hdf5                  from robomimic's layout
  cepdiff data convert medium.hdf5,expert.hdf5 medium-expert.hdf5  several files in one
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser) -> None:
    """Add `convert` to the commands of `cepdiff data`; `shared` has --dataset_dir and --json."""
    text, raw = (
        "convert between D4RL's HDF5 layout and Minari without loss, or from other layouts",
        argparse.RawDescriptionHelpFormatter,
    )
    parser = commands.add_parser(
        "convert", help=text, description=text, epilog=_EPILOG, formatter_class=raw, parents=[shared]
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a task, a file, the name of a file in the dataset folder, or minari:ID")
    add("target", metavar="TARGET", help="minari:NAMESPACE/NAME-vN, or a .hdf5 file")
    add("--overwrite", action="store_true", help="replace an existing target")
    add("--env_id", metavar="ENV_ID", help="the environment, if the source does not name it")
    add("--env_kwargs", metavar="JSON", help="arguments of the environment")
    add("--no-compress", dest="compress", action="store_false", help="write an uncompressed .hdf5 file: larger, faster")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and print paths, rows, episodes and sizes."""
    from cepdiff.data.minari.convert import convert

    def describe(env_id: str, env_kwargs: Mapping[str, Any], module: str | None) -> Environment | None:
        return _describe(env_id, env_kwargs, module, named=env_id == args.env_id)

    with closing(RowBar("rows")) as bar:
        done = convert(
            args.source,
            args.target,
            args.dataset_dir,
            env_id=args.env_id,
            env_kwargs=None if args.env_kwargs is None else json_object(args.env_kwargs),
            describe=describe,
            overwrite=args.overwrite,
            compress=args.compress,
            progress=bar.show,
        )
    if args.json:
        print(json.dumps(asdict(done), indent=2))
        return 0
    print(f"{done.source} ({_megabytes(done.source_bytes)}) -> {done.target} ({_megabytes(done.target_bytes)})")
    print(f"{done.rows:,} rows in {done.episodes:,} episodes")
    if args.target.startswith("minari:") and not done.env_installed:
        fails = f"'{done.env_id}' cannot be made here: Minari's recover_environment will fail for this dataset"
        print("the dataset has no environment; name one with --env_id" if done.env_id is None else fails)
    return 0


def _describe(env_id: str, env_kwargs: Mapping[str, Any], module: str | None, named: bool) -> Environment | None:
    """Make the environment and return its spec and bounds; None if it cannot be made here.

    Only a module that is installed, or that the user `named`, is imported.
    """
    from dataclasses import replace

    from cepdiff.data.minari.write import Environment, bare_environment
    from cepdiff.errors import MissingExtraError, SimulationError
    from cepdiff.rollout.envs import EnvSpec, box_spaces, make_env
    from cepdiff.rollout.registry import refuse_untrusted

    spec = EnvSpec(env_id, env_kwargs, module)
    with suppress(SimulationError, MissingExtraError):
        if not named:
            refuse_untrusted(spec.modules, "the source", "name it with --env_id")
        with closing(make_env(spec)) as env:
            if env.spec is not None:
                actions = box_spaces(env)[1]
                try:
                    text = replace(env.spec, id=env_id).to_json()  # with its module
                except ValueError:  # registered with a class, which JSON cannot hold
                    text = bare_environment(env_id, env_kwargs, env.spec.max_episode_steps).spec
                return Environment(text, tuple(actions.low.tolist()), tuple(actions.high.tolist()))
    return None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
