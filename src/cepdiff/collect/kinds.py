"""D4RL's kinds of buffers (Fu et al. 2020). Imports nothing heavy, so that the command line's help stays fast."""

from __future__ import annotations

from collections.abc import Iterable

from cepdiff.errors import ConfigError, nearest

# What each kind holds; the sentence goes into the file and into the help.
KINDS = {
    "random": "rollouts of a policy that draws its actions uniformly",
    "medium": "rollouts of the SAC policy stopped early, at --medium_fraction of the way from random to expert",
    "expert": "rollouts of the fully trained SAC policy",
    "medium-replay": "all transitions of the SAC training until the medium policy",
    "medium-expert": "the medium buffer, then the expert buffer, equally many rows of both",
    "navigate": "mazes alone: from goal to goal; Maze2D by D4RL's planner and controller, AntMaze by --policy",
    "replay": "the first --steps transitions of the SAC training (without --steps all: D4RL's full-replay)",
}


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises `ConfigError` for a kind that is none."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"Unknown kind '{kind}'.{nearest(kind, KINDS)} All kinds: {', '.join(KINDS)}")
