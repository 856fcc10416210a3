"""Known defects of D4RL's maze files, in which the first two observations are a position."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cepdiff.data.checks.findings import Finding, info, warning
from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, first_rows
from cepdiff.data.rl.episodes import Episodes
from cepdiff.data.rl.tasks import Task

# In cells: gymnasium-robotics moves one goal by up to a quarter of a cell to each side.
_ONE_GOAL = 0.51


def goal_findings(raw: RawArrays) -> Iterator[Finding]:
    """Yield a finding about the goals that a goal-conditioned Minari dataset stores next to its observations."""
    cells = raw.metadata.get("goal_range")
    if cells is None:
        return
    if cells <= _ONE_GOAL:
        yield info("goals", "'desired_goal' is one place in all episodes", "left out of the observations, as in D4RL")
        return
    message = f"'desired_goal' differs by up to {cells:.1f} cells, but is left out of the observations, as in D4RL"
    handling = "rewards depend on a goal that the critic does not see: it learns the value of being near any of them"
    yield warning("goals", message, handling)


def maze_findings(raw: RawArrays, task: Task, episodes: Episodes) -> Iterator[Finding]:
    """Yield findings about ends that do not match the jumps in position, and rewards that do not match the goal."""
    assert task.max_move is not None
    positions = raw.observations[:, :2]
    goes_on = np.linalg.norm(np.diff(positions, axis=0), axis=1) <= task.max_move  # (N - 1,)
    yield from _breaks(raw, episodes, goes_on, task.max_move)
    if task.goal_radius is not None:
        yield from _goals(raw, positions, goes_on, task.goal_radius, task.goal)


def _breaks(raw: RawArrays, episodes: Episodes, goes_on: BoolArray, max_move: float) -> Iterator[Finding]:
    jumps = np.flatnonzero(~goes_on & ~episodes.ends[:-1])
    if len(jumps):
        message = f"the position jumps by more than {max_move:g} to the next row without an end in {first_rows(jumps)}"
        handling = "used as recorded: the critic bootstraps across the jump; use the -v2 file if there is one"
        if raw.next_observations is not None:
            handling = "each row keeps its own next observation"
        yield warning("jumps", f"{message} (D4RL issue 77)", handling)
    stop = "bootstrapping stops at each, and each ends an episode: returns and lengths stop there"
    cut = "they cut the walk: returns and lengths are those of its parts"
    flags = (("terminals", raw.terminals, stop), ("timeouts", raw.timeouts & ~raw.terminals, cut))
    for name, flagged, handling in flags:
        ends = flagged[:-1]
        count = int((ends & goes_on).sum())
        if count:
            message = f"at {count:,} of {int(ends.sum()):,} {name} the position continues"
            moves = f"moves at most {max_move:g} to the next row"
            yield info(name, f"{message} ({moves}): they are not resets", handling)


def _goals(
    raw: RawArrays, positions: FloatArray, goes_on: BoolArray, radius: float, goal: tuple[float, float] | None
) -> Iterator[Finding]:
    rewarded = raw.rewards == 1
    if not (rewarded | (raw.rewards == 0)).all():
        span = f"rewards range from {raw.rewards.min():g} to {raw.rewards.max():g}"
        yield warning("rewards", f"{span}; expected 1 at the goal, else 0", "used as recorded")
        return
    if not rewarded.any():
        yield warning("rewards", "all rewards are 0: the goal is never reached", "used as recorded")
        return
    yield _visits(raw, rewarded, goes_on)
    middle = (positions[rewarded].min(axis=0) + positions[rewarded].max(axis=0)) / 2
    widest = float(np.linalg.norm(positions[rewarded] - middle, axis=1).max())
    if widest > 2 * radius:
        message = f"rewarded positions are up to {widest:.1f} from their centre, but a goal's radius is {radius:g}"
        reason = "there are several goals, which the observations do not show"
        handling = "used as recorded: the critic learns the value of being near any of the goals"
        yield warning("goals", f"{message}: {reason}", handling)
    if goal is not None:
        yield from _late_rewards(positions, rewarded, goes_on, goal, radius)


def _visits(raw: RawArrays, rewarded: BoolArray, goes_on: BoolArray) -> Finding:
    stays = rewarded[1:] & rewarded[:-1] & goes_on
    first = np.flatnonzero(rewarded & ~np.concatenate(([False], stays)))
    rows = np.flatnonzero(rewarded)
    lengths = np.diff(np.append(np.searchsorted(rows, first), len(rows)))
    message = f"{len(rows):,} rewarded rows in {len(first):,} visits to the goal, at most {lengths.max():,} rows long"
    ends = int((rewarded & raw.terminals).sum())
    handling = f"{ends:,} of them are terminal: their value is the row's own reward, however long the visit"
    if lengths.max() == 1:
        return warning("rewards", f"{message}: a visit is only rewarded once (D4RL issue 199)", handling)
    return info("rewards", message, handling)


def _late_rewards(
    positions: FloatArray, rewarded: BoolArray, goes_on: BoolArray, goal: tuple[float, float], radius: float
) -> Iterator[Finding]:
    """Find rewards that belong to the row's own position; the environment's belong to the next position."""
    inside = np.linalg.norm(positions - np.asarray(goal, dtype=np.float32), axis=1) <= radius
    at_own = int((inside[:-1] != rewarded[:-1])[goes_on].sum())
    at_next = int((inside[1:] != rewarded[:-1])[goes_on].sum())
    if at_own < at_next:
        message = f"rewards match the row's own position ({at_own:,} rows disagree) better than the next one"
        late = f"({at_next:,} disagree): they come one row late (D4RL issue 194)"
        handling = "used as recorded, as in published results: values are discounted by one extra step"
        yield warning("rewards", f"{message} {late}", handling)
