"""D4RL's kinds of buffers (Fu et al. 2020). Has no heavy imports, to keep the command line's help fast."""

from __future__ import annotations

from collections.abc import Iterable

from cepdiff.errors import ConfigError, nearest

# Kind -> description, used in the help and in each file's metadata.
KINDS = {
    "random": "rollouts of a policy with uniformly random actions",
    "medium": "rollouts of the SAC policy stopped early, at --medium_fraction of the way from random to expert",
    "expert": "rollouts of the fully trained SAC policy",
    "medium-replay": "all transitions of the SAC training up to the medium policy",
    "medium-expert": "the medium buffer followed by the expert buffer, with the same number of rows",
    "navigate": "only mazes: from goal to goal, Maze2D by D4RL's controller, AntMaze by a trained ant (or --policy)",
    "replay": "the first --steps transitions of the SAC training (default: all, D4RL's full-replay)",
}


def check_kinds(kinds: Iterable[str]) -> None:
    """Raise `ConfigError` for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind '{kind}'; expected {', '.join(KINDS)}.{nearest(kind, KINDS)}")
