"""Known defects of dataset files, D4RL's and others: how to find them in the arrays and how each is handled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cepdiff.data.checks.findings import Finding, info, warning
from cepdiff.data.checks.jumps import jump_findings
from cepdiff.data.checks.maze_defects import goal_findings, maze_findings
from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, blocks, first_rows, layout_notes
from cepdiff.data.rl.buffer import Bounds, IntArray, action_bounds, equal_rows, rows_beyond
from cepdiff.data.rl.episodes import Episodes, episodes_of, going_on
from cepdiff.data.rl.settings import env_id_of, horizon_of, task_of
from cepdiff.data.rl.tasks import Task

# If more than this fraction of the rows inside episodes is odd, the whole array is shifted.
_MOST = 0.5
# Actions with more distinct values than this are not discrete.
_FEW = 64
# If this fraction of the terminals come after the same number of steps, they are a time limit.
_NEARLY_ALL = 0.9


def findings_of(
    raw: RawArrays,
    task: Task | None = None,
    env_id: str | None = None,
    action_low: Bounds = None,
    action_high: Bounds = None,
) -> list[Finding]:
    """Return the findings about a dataset, grouped by subject.

    `env_id` is the user's environment; without `task`, it is looked up by the environment. Bounds are as for
    `TransitionBuffer.from_arrays`. Needs memory for a few numbers per row; a million rows take seconds.
    """
    named = env_id_of(env_id, task, raw.metadata)
    horizon = horizon_of(env_id, task, raw.metadata)
    task = task_of(env_id, task, raw.metadata)
    episodes = episodes_of(raw)
    found = [
        *_layout(raw),
        *_ends(raw, episodes),
        *_lengths(raw, episodes, horizon),
        *_limits_as_terminals(raw, episodes, horizon),
        *_successors(raw, episodes),
        *_duplicates(raw),
        *_actions(raw, *action_bounds(raw, action_low, action_high)),
        *_whole_numbers(raw),
        *_constants(raw),
        *_rewards(raw, episodes),
        *goal_findings(raw),
    ]
    if task is not None and task.max_move is not None:
        found += maze_findings(raw, task, episodes)
    else:
        found += jump_findings(raw, episodes)
    if named is None:
        advice = "name it with --data.env_id, or train without scores: --evaluation.episodes 0"
        found.append(warning("environment", "the environment is unknown", advice))
    return found


def _layout(raw: RawArrays) -> Iterator[Finding]:
    """Yield the choices made by the reader of another layout."""
    if "observation_keys" in raw.metadata:
        yield info("layout", f"observations are, in this order: {raw.metadata['observation_keys']}")
    for note in layout_notes(raw):
        yield warning("layout", note)


def _ends(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    rows, count, complete = len(raw), len(episodes.starts), int(episodes.complete.sum())
    terminals, timeouts = int(raw.terminals.sum()), int(raw.timeouts.sum())
    yield info("rows", f"{rows:,} rows in {count:,} episodes, {complete:,} complete")
    counts = f"{terminals:,} terminals, {timeouts:,} timeouts"
    if episodes.chained and episodes.breaks.any():
        counts += f", {int(episodes.breaks.sum()):,} breaks in the chain of next observations"
    yield info("ends", counts, "each ends an episode; only terminals stop bootstrapping")
    single = int((episodes.lengths == 1).sum())
    goals = bool(going_on(raw).any())  # rows at a goal, rather than ends
    if count > 1 and 2 * single > count and not goals:
        handling = "kept: such a row has no step after it, so returns and values are those of single steps"
        yield warning("ends", f"{single:,} of {count:,} episodes have a single row: are the flags right?", handling)
    if "timeouts_from_horizon" in raw.metadata:
        cut = f"episodes are cut after {raw.metadata['timeouts_from_horizon']:,} steps, the task's limit"
        yield info("timeouts", "the file has no array 'timeouts'", cut)
    if complete == 0:
        message = "no terminals and no timeouts: all rows are one incomplete episode"
        yield warning("ends", message, "each row's successor is the next row")
    elif terminals == 0:
        handling = "the critic bootstraps everywhere, which is right if episodes only end at time limits"
        yield info("terminals", "no row is terminal", handling)
    if raw.next_observations is None:
        return
    follows = equal_rows(raw.next_observations[:-1], raw.observations[1:])
    same = int((raw.terminals[:-1] & follows).sum())
    if same and not goals:
        message = f"{same:,} terminal rows have the following row's observation as their next one"
        reason = "the episode goes on, or it is the next episode's first"
        handling = "bootstrapping stops there, so this next observation is not used"
        yield warning("terminals", f"{message}: {reason}", handling)


def _lengths(raw: RawArrays, episodes: Episodes, horizon: int | None) -> Iterator[Finding]:
    if horizon is None:
        return
    longer = int((episodes.lengths > horizon).sum())
    if longer:
        message = f"{longer:,} episodes are longer than the limit of {horizon} steps, up to {episodes.lengths.max():,}"
        handling = "kept whole: a row's successor is the next row, even if the environment was reset in between"
        yield warning("horizon", f"{message}: timeouts are missing, or the limit was different", handling)
    last = episodes.starts + episodes.lengths - 1
    early = int(((raw.timeouts & ~raw.terminals)[last] & (episodes.lengths < horizon)).sum())
    if early:
        message = f"{early:,} timeouts are earlier than the limit of {horizon} steps (D4RL issue 162)"
        yield info("timeouts", message, "they end the episode, but the state after them still has a value")


def _limits_as_terminals(raw: RawArrays, episodes: Episodes, horizon: int | None) -> Iterator[Finding]:
    """Find time limits stored as terminals: no timeouts, and terminals at the limit, or all after the same time."""
    lengths = episodes.lengths[raw.terminals[episodes.starts + episodes.lengths - 1]]
    if raw.timeouts.any() or len(lengths) < 2 or lengths.max() == 1:  # one-step episodes end by themselves
        return
    at_limit = 0 if horizon is None else int((lengths == horizon).sum())
    limit = horizon if at_limit > 1 else int(lengths.max())
    count = int((lengths == limit).sum())
    if at_limit > 1 or count >= _NEARLY_ALL * len(lengths):
        message = f"{count:,} of {len(lengths):,} terminals come after exactly {limit:,} steps, with no timeouts"
        handling = (
            "used as recorded: values are wrong if this is a time limit, as bootstrapping stops there; move these "
            "flags to 'timeouts'"
        )
        yield warning("terminals", f"{message}: time limits are stored as terminals", handling)


def _successors(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    cut = episodes.ends & ~raw.terminals
    if raw.next_observations is None:
        if cut.any():
            message = f"{int(cut.sum()):,} rows have no known successor: they are at time limits or the end of the file"
            handling = "they train the behavior model but not the critic; nothing is taken from the next episode"
            yield info("successors", f"{message}, which has no next observations (D4RL issue 145)", handling)
        return
    following, own = raw.next_observations, raw.observations
    follows, repeats = equal_rows(following[:-1], own[1:]), equal_rows(following, own)
    if episodes.breaks.any():
        yield _strange_successors(raw, episodes, repeats)
    limits = cut[:-1] & ~episodes.breaks[:-1]
    taken = int((limits & follows).sum())
    if taken:
        message = f"{taken:,} of {limits.sum():,} time limits have the following row's observation as their next one"
        reason = "the next episode's first, unless the episode goes on (D4RL issue 145)"
        yield warning("successors", f"{message}: {reason}", "used as recorded: the critic bootstraps from it")
    stays = int((limits & repeats[:-1] & ~follows).sum())
    if stays:
        message = f"{stays:,} time limits repeat their own observation as the next one"
        yield warning("successors", message, "used as recorded: the critic bootstraps from it")
    yield from _last_successor(raw, bool(repeats[-1]))


def _strange_successors(raw: RawArrays, episodes: Episodes, repeats: BoolArray) -> Finding:
    assert raw.next_observations is not None
    strange = episodes.breaks[:-1]
    count, inside = int(strange.sum()), int((~(raw.terminals | raw.timeouts))[:-1].sum())
    stays = int((strange & repeats[:-1]).sum())
    ahead = int((strange[:-1] & equal_rows(raw.next_observations[:-2], raw.observations[2:])).sum())
    kinds = [f"{stays:,} repeat their own observation"] * bool(stays)
    kinds += [f"{ahead:,} have the observation after the next"] * bool(ahead)
    message = (
        f"{count:,} of {inside:,} rows inside episodes have a next observation that differs from the following row"
        f"{': ' * bool(kinds)}{', '.join(kinds)}"
    )
    if episodes.chained:
        handling = "counted as a complete episode; each row keeps its own next observation"
        return warning("successors", f"{message}: an episode ends at each", handling)
    shifted = max(stays, ahead) > _MOST * inside
    reason = "the array is shifted by one row" if shifted else "rows are not in time order, or in other units there"
    handling = (
        "used as recorded; only flags end episodes, and the reward rule return_range refuses them. Remove "
        "'next_observations' if the rows are in time order: the next row is used then"
    )
    return warning("successors", f"{message}: {reason}", handling)


def _last_successor(raw: RawArrays, repeats: bool) -> Iterator[Finding]:
    assert raw.next_observations is not None
    last = raw.next_observations[-1]
    if raw.terminals[-1]:
        return  # never bootstrapped from
    what = None
    if not last.any() and raw.observations[-1].any():
        what = "all zeros"
    elif repeats:
        what = "its own observation again"
    elif len(raw) > 1 and (last == raw.observations[0]).all():
        what = "the first row's observation"
    if what:
        handling = "used as recorded: the critic bootstraps from a wrong state in this row"
        yield warning("last row", f"the next observation of the last row is {what}", handling)


def _duplicates(raw: RawArrays) -> Iterator[Finding]:
    repeated = repeated_rows(raw.observations, raw.actions)
    if not len(repeated):
        return
    adjacent = equal_rows(raw.observations[1:], raw.observations[:-1]) & equal_rows(raw.actions[1:], raw.actions[:-1])
    message = f"{len(repeated):,} rows repeat the observation and action of an earlier row"
    just_before = f"{int(adjacent.sum()):,} of them of the row just before"
    yield warning("duplicates", f"{message}, {just_before}", "kept: averages count each of them")


def repeated_rows(*arrays: FloatArray) -> IntArray:
    """Ascending rows that exactly equal an earlier row in all of `arrays` (N, ...)."""
    keys = _row_keys(arrays)
    order = np.argsort(keys, kind="stable")
    alike = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    found = [np.empty(0, dtype=np.int64)]
    for part in blocks(len(alike)):
        later, earlier = order[alike[part] + 1], order[alike[part]]
        equal = np.logical_and.reduce([equal_rows(array[later], array[earlier]) for array in arrays])
        found.append(later[equal])
    return np.sort(np.concatenate(found))


def _row_keys(arrays: tuple[FloatArray, ...]) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(0)
    keys = np.zeros(len(arrays[0]), dtype=np.uint64)
    for array in arrays:
        factors = rng.integers(2**63, 2**64, size=(2, array.shape[1]), dtype=np.uint64) | np.uint64(1)
        for part in blocks(len(array)):
            bits = (array[part] + np.float32(0)).view(np.uint32) * factors[0]  # + 0 makes -0 equal to 0
            bits ^= bits >> np.uint64(32)  # mix in the high bits: the low bits of round numbers are all 0
            keys[part] += (bits * factors[1]).sum(axis=1)
    return keys


def _actions(raw: RawArrays, low: FloatArray, high: FloatArray) -> Iterator[Finding]:
    beyond = rows_beyond(raw.actions, low, high)
    if len(beyond):
        message = f"actions are outside [{low.min():g}, {high.max():g}] in {first_rows(beyond)}"
        found = f"found {raw.actions.min():g} to {raw.actions.max():g}"
        handling = "training refuses them: set the environment's bounds with --data.action_low and --data.action_high"
        yield warning("actions", f"{message} ({found})", handling)
    entries, rows = 0, 0
    for part in blocks(len(raw)):
        at_bound = (raw.actions[part] <= low) | (raw.actions[part] >= high)
        entries += int(at_bound.sum())
        rows += int(at_bound.any(axis=1).sum())
    if entries:
        share = entries / raw.actions.size
        message = f"{share:.2%} of the action entries are at or beyond a bound, in {rows:,} rows"
        yield info("actions", message, "kept; rounding errors beyond a bound are clipped, as are the policy's samples")


def _whole_numbers(raw: RawArrays) -> Iterator[Finding]:
    values: set[float] = set()
    for part in blocks(len(raw)):
        values.update(np.unique(raw.actions[part]).tolist())
        if len(values) > _FEW or not all(value.is_integer() for value in values):
            return
    if len(values) > 1:
        span = f"{len(values)} whole numbers from {min(values):g} to {max(values):g}"
        message = f"all entries are one of {span}: these seem to be discrete actions"
        yield warning("actions", message, "trained as real vectors: the policy will choose numbers in between")


def _constants(raw: RawArrays) -> Iterator[Finding]:
    for name, array in (("observations", raw.observations), ("actions", raw.actions)):
        constant = np.flatnonzero(array.max(axis=0) == array.min(axis=0))
        if len(constant):
            handling = "kept; they become 0 if observations are normalized" if name == "observations" else "kept"
            yield warning(name, f"dimensions {', '.join(map(str, constant))} never change", handling)


def _rewards(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    if len(episodes.starts) > 1 and raw.rewards.min() == raw.rewards.max():
        message = "all rewards are equal: returns only depend on episode lengths"
        yield warning("returns", message, "used as recorded; the reward rule return_range refuses equal returns")
