"""What is known to be wrong with the files of D4RL's mazes, where the first two observations are a position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cepdiff.data.checks.findings import Episodes, Finding
from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, first_rows
from cepdiff.data.rl.tasks import Task


def maze_findings(raw: RawArrays, task: Task, episodes: Episodes) -> Iterator[Finding]:
    """Ends which are not where the walk breaks off, and rewards which are not where the goal is."""
    assert task.max_move is not None
    positions = raw.observations[:, :2]
    goes_on = np.linalg.norm(np.diff(positions, axis=0), axis=1) <= task.max_move  # (N - 1,)
    yield from _breaks(raw, episodes, goes_on, task.max_move)
    if task.goal_radius is not None:
        yield from _goals(raw, positions, goes_on, task.goal_radius, task.goal)


def _breaks(raw: RawArrays, episodes: Episodes, goes_on: BoolArray, max_move: float) -> Iterator[Finding]:
    jumps = np.flatnonzero(~goes_on & ~episodes.ends[:-1])
    if len(jumps):
        own = raw.next_observations is not None
        yield Finding(
            "warning",
            "jumps",
            f"the position jumps by more than {max_move:g} to the next row, yet no end is set, in {first_rows(jumps)} "
            "(D4RL issue 77)",
            "each row keeps its own next observation"
            if own
            else "used as they are: the critic bootstraps across the jump; take the -v2 file where there is one",
        )
    for name, ends, handling in (
        (
            "terminals",
            raw.terminals[:-1],
            "bootstrapping stops at each, and each ends an episode: returns and lengths here count up to the first",
        ),
        (
            "timeouts",
            raw.timeouts[:-1] & ~raw.terminals[:-1],
            "the walk is cut there: returns and lengths here are those of its parts",
        ),
    ):
        count = int((ends & goes_on).sum())
        if count:
            yield Finding(
                "info",
                name,
                f"at {count:,} of {int(ends.sum()):,} {name} the position "
                f"goes on (less than {max_move:g} to the next row): they are no resets",
                handling,
            )


def _goals(
    raw: RawArrays, positions: FloatArray, goes_on: BoolArray, radius: float, goal: tuple[float, float] | None
) -> Iterator[Finding]:
    rewarded = raw.rewards == 1
    if not (rewarded | (raw.rewards == 0)).all():
        yield Finding(
            "warning",
            "rewards",
            f"rewards go from {raw.rewards.min():g} to {raw.rewards.max():g}; expected only 0, and 1 at the goal",
            "used as recorded",
        )
        return
    if not rewarded.any():
        yield Finding("warning", "rewards", "no row is rewarded: the goal is never reached", "used as recorded")
        return
    yield _visits(raw, rewarded, goes_on)
    middle = (positions[rewarded].min(axis=0) + positions[rewarded].max(axis=0)) / 2
    widest = float(np.linalg.norm(positions[rewarded] - middle, axis=1).max())
    if widest > 2 * radius:
        yield Finding(
            "warning",
            "goals",
            f"rewarded positions lie up to {widest:.1f} from their middle, a goal's radius is {radius:g}: rewards are "
            "for several goals, which observations do not show",
            "used as recorded: the critic learns the value of being near any of them",
        )
    if goal is not None:
        yield from _late_rewards(positions, rewarded, goes_on, goal, radius)


def _visits(raw: RawArrays, rewarded: BoolArray, goes_on: BoolArray) -> Finding:
    stays = rewarded[1:] & rewarded[:-1] & goes_on
    first = np.flatnonzero(rewarded & ~np.concatenate(([False], stays)))
    rows = np.flatnonzero(rewarded)
    lengths = np.diff(np.append(np.searchsorted(rows, first), len(rows)))
    message = f"{len(rows):,} rewarded rows in {len(first):,} visits to the goal, the longest of {lengths.max():,} rows"
    ends = int((rewarded & raw.terminals).sum())
    handling = f"{ends:,} of them are terminal, where a value is the row's own reward, however long a visit lasts"
    if lengths.max() == 1:
        return Finding("warning", "rewards", f"{message}: a visit is rewarded once (D4RL issue 199)", handling)
    return Finding("info", "rewards", message, handling)


def _late_rewards(
    positions: FloatArray, rewarded: BoolArray, goes_on: BoolArray, goal: tuple[float, float], radius: float
) -> Iterator[Finding]:
    """Whether rewards are those of the row's own position, or of the one it leads to, as the environment has it."""
    inside = np.linalg.norm(positions - np.asarray(goal, dtype=np.float32), axis=1) <= radius
    at_own = int((inside[:-1] != rewarded[:-1])[goes_on].sum())
    at_next = int((inside[1:] != rewarded[:-1])[goes_on].sum())
    if at_own < at_next:
        yield Finding(
            "warning",
            "rewards",
            f"a row's reward is that of its own position ({at_own:,} rows disagree) and not of the one that the step "
            f"leads to ({at_next:,} disagree): rewards come one row late (D4RL issue 194)",
            "used as recorded, as in published results: values are discounted by one step more",
        )
