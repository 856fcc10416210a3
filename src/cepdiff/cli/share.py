"""`cepdiff push` and `cepdiff pull`: share a run's policy on the Hugging Face hub."""

from __future__ import annotations

import argparse

PUSH = """\
examples:
  cepdiff push runs/hopper/0 me/hopper-cep --private --license mit
  cepdiff push runs/hopper/0 me/hopper-cep --dry_run
Pushed are the policy, config.yaml, results.json, a model card, and best.mp4 if there is one. The token is that of
`hf auth login`, or HF_TOKEN. Needs the extra 'hub'.
"""
PULL = """\
examples:
  cepdiff pull me/hopper-cep && cepdiff evaluate hopper-cep
  cepdiff pull me/hopper-cep --revision v1.0 --output old
No code is downloaded, and nothing is unpickled. Needs the extra 'hub'.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    plain = argparse.RawDescriptionHelpFormatter
    push = subparsers.add_parser(
        "push", help="put a run's policy on the Hugging Face hub",
        description="Put a finished run's policy on the Hugging Face hub, with a model card.",
        epilog=PUSH, formatter_class=plain, allow_abbrev=False,
    )  # fmt: skip
    push.add_argument("run_dir", metavar="RUN", help="run folder of cepdiff fit")
    push.add_argument("repo", metavar="USER/NAME", help="repository; made if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--license", metavar="ID", help="of the policy, such as mit or cc-by-4.0; default: none")
    push.add_argument("--dry_run", action="store_true", help="only list what would be pushed")
    push.set_defaults(run=run_push)
    pull = subparsers.add_parser(
        "pull", help="get a shared policy from the Hugging Face hub",
        description="Get a policy that `cepdiff push` has put on the Hugging Face hub.",
        epilog=PULL, formatter_class=plain, allow_abbrev=False,
    )  # fmt: skip
    pull.add_argument("repo", metavar="USER/NAME", help="repository")
    pull.add_argument("--revision", metavar="REV", help="branch, tag or commit; default: main")
    pull.add_argument("--output", metavar="DIR", help="new folder; default: ./NAME")
    pull.set_defaults(run=run_pull)


def run_push(args: argparse.Namespace) -> int:
    """Run `push`."""
    from pathlib import Path

    from cepdiff.runs.share import push

    place = push(Path(args.run_dir), args.repo, private=args.private, licence=args.license, dry_run=args.dry_run)
    if place is not None:
        print(place)
    return 0


def run_pull(args: argparse.Namespace) -> int:
    """Run `pull`."""
    from pathlib import Path

    from cepdiff.policy.hub import check_name
    from cepdiff.runs.share import pull

    check_name(args.repo)
    folder = pull(args.repo, Path(args.output or args.repo.partition("/")[2]), args.revision)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
