"""The known defects of D4RL's and home-made files: what is found in the arrays, and how each is handled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cepdiff.data.checks.findings import Episodes, Finding, env_id_of, episodes_of, horizon_of
from cepdiff.data.checks.maze_defects import maze_findings
from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, blocks, first_rows
from cepdiff.data.rl.buffer import Bounds, IntArray, action_bounds, equal_rows, rows_beyond
from cepdiff.data.rl.tasks import Task, task_for_env

# Above this share, what rows inside episodes do is the file's rule and not its exception.
_MOST = 0.5


def findings_of(
    raw: RawArrays,
    task: Task | None = None,
    action_low: Bounds | None = None,
    action_high: Bounds | None = None,
) -> list[Finding]:
    """What is worth knowing about a dataset before training on it, worst not first but in order of subject.

    Of a dataset that is no task's, the task is looked up by its environment. Bounds are as for
    `TransitionBuffer.from_arrays`. Temporary memory is a few numbers a row; a million rows take seconds.
    """
    env_id = env_id_of(raw, task)
    task = task or (task_for_env(env_id) if env_id else None)
    episodes = episodes_of(raw)
    found = [
        *_ends(raw, episodes),
        *_lengths(raw, episodes, horizon_of(raw, task)),
        *_successors(raw, episodes),
        *_duplicates(raw),
        *_actions(raw, *action_bounds(raw, action_low, action_high)),
        *_constants(raw),
        *_rewards(raw, episodes),
    ]
    if task is not None and task.max_move is not None:
        found += maze_findings(raw, task, episodes)
    if env_id is None:
        found.append(
            Finding(
                "warning",
                "environment",
                "no environment is named",
                "give it with --data.env_id, or train without scores: --evaluation.episodes 0",
            )
        )
    return found


def _ends(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    rows, count, complete = len(raw), len(episodes.starts), int(episodes.complete.sum())
    terminals, timeouts = int(raw.terminals.sum()), int(raw.timeouts.sum())
    yield Finding("info", "rows", f"{rows:,} rows in {count:,} episodes, {complete:,} complete")
    yield Finding(
        "info",
        "ends",
        f"{terminals:,} terminals, {timeouts:,} timeouts",
        "both end an episode; only terminals stop bootstrapping",
    )
    if "timeouts_from_horizon" in raw.metadata:
        yield Finding(
            "info",
            "timeouts",
            "the file has no array 'timeouts'",
            f"episodes are cut after {raw.metadata['timeouts_from_horizon']:,} steps, the task's limit",
        )
    if complete == 0:
        yield Finding(
            "warning",
            "ends",
            "no terminal and no timeout: all rows are one cut episode",
            "each row's successor is the next row",
        )
    elif terminals == 0:
        yield Finding(
            "info",
            "terminals",
            "no row is terminal",
            "the critic bootstraps everywhere, which is right where time limits alone end an episode",
        )
    if raw.next_observations is None:
        return
    follows = equal_rows(raw.next_observations[:-1], raw.observations[1:])
    going_on = int((raw.terminals[:-1] & follows).sum())
    if going_on:
        yield Finding(
            "warning",
            "terminals",
            f"{going_on:,} terminal rows lead to the following row: the episode goes on after them, "
            "or the next observation is the next episode's first",
            "bootstrapping stops there all the same, so that this next observation is not used",
        )


def _lengths(raw: RawArrays, episodes: Episodes, horizon: int | None) -> Iterator[Finding]:
    if horizon is None:
        return
    longer = int((episodes.lengths > horizon).sum())
    if longer:
        yield Finding(
            "warning",
            "horizon",
            f"{longer:,} episodes are longer than the limit of {horizon} steps, the longest has "
            f"{int(episodes.lengths.max()):,}: timeouts are missing, or it was recorded with another limit",
            "kept whole: a row's successor is the next row, even where the environment was reset in between",
        )
    last = episodes.starts + episodes.lengths - 1
    early = int(((raw.timeouts & ~raw.terminals)[last] & (episodes.lengths < horizon)).sum())
    if early:
        yield Finding(
            "info",
            "timeouts",
            f"{early:,} timeouts come before the limit of {horizon} steps (D4RL issue 162)",
            "they cut the episode, and the state after them keeps its value",
        )


def _successors(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    cut = episodes.ends & ~raw.terminals
    if raw.next_observations is None:
        if cut.any():
            yield Finding(
                "info",
                "successors",
                f"{int(cut.sum()):,} rows have no known successor: the file holds no next observations, and these are "
                "at time limits or its end (D4RL issue 145)",
                "they train the behavior model and not the critic; nothing is taken from the next episode",
            )
        return
    following, own = raw.next_observations, raw.observations
    follows, repeats = equal_rows(following[:-1], own[1:]), equal_rows(following, own)
    inside = ~episodes.ends[:-1]
    strange = inside & ~follows
    if strange.any():
        yield _strange_successors(raw, strange, repeats, int(inside.sum()))
    limits = cut[:-1]
    taken = int((limits & follows).sum())
    if taken:
        yield Finding(
            "warning",
            "successors",
            f"{taken:,} of {int(limits.sum()):,} time limits have the following row's observation as their next one: "
            "it is the next episode's first, unless the episode goes on (D4RL issue 145)",
            "used as recorded: the critic bootstraps from it",
        )
    stays = int((limits & repeats[:-1] & ~follows).sum())
    if stays:
        yield Finding(
            "warning",
            "successors",
            f"{stays:,} time limits repeat their own observation as the next one",
            "used as recorded: the critic bootstraps from it",
        )
    yield from _last_successor(raw, bool(repeats[-1]))


def _strange_successors(raw: RawArrays, strange: BoolArray, repeats: BoolArray, inside: int) -> Finding:
    assert raw.next_observations is not None
    count = int(strange.sum())
    stays = int((strange & repeats[:-1]).sum())
    ahead = int((strange[:-1] & equal_rows(raw.next_observations[:-2], raw.observations[2:])).sum())
    kinds = [f"{stays:,} repeat their own observation"] * bool(stays)
    kinds += [f"{ahead:,} hold the observation after the next"] * bool(ahead)
    message = (
        f"{count:,} of {inside:,} rows inside episodes have another next observation than the following row, yet no "
        f"end is set{': ' * bool(kinds)}{', '.join(kinds)}"
    )
    if max(stays, ahead) > _MOST * inside:
        handling = "used as recorded, which is wrong here: leave 'next_observations' out, and the next row is taken"
        return Finding("warning", "successors", f"{message}: the array is shifted by one row", handling)
    return Finding("warning", "successors", message, "each row keeps its own next observation")


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
        yield Finding(
            "warning",
            "last row",
            f"the next observation of the last row is {what}",
            "used as recorded: one row in which the critic bootstraps from a wrong state",
        )


def _duplicates(raw: RawArrays) -> Iterator[Finding]:
    repeated = repeated_rows(raw.observations, raw.actions)
    if not len(repeated):
        return
    adjacent = equal_rows(raw.observations[1:], raw.observations[:-1]) & equal_rows(raw.actions[1:], raw.actions[:-1])
    yield Finding(
        "warning",
        "duplicates",
        f"{len(repeated):,} rows repeat the observation and action of an earlier row, {int(adjacent.sum()):,} of them "
        "that of the row before",
        "kept: each counts once more in every average",
    )


def repeated_rows(*arrays: FloatArray) -> IntArray:
    """Ascending rows which equal an earlier row in all of `arrays` (N, ...), exactly."""
    keys = _row_keys(arrays)
    order = np.argsort(keys, kind="stable")
    alike = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    found = [np.empty(0, dtype=np.int64)]
    for part in blocks(len(alike)):
        later, earlier = order[alike[part] + 1], order[alike[part]]
        equal = np.ones(len(later), dtype=np.bool_)
        for array in arrays:
            equal &= equal_rows(array[later], array[earlier])
        found.append(later[equal])
    return np.sort(np.concatenate(found))


def _row_keys(arrays: tuple[FloatArray, ...]) -> npt.NDArray[np.uint64]:
    rng = np.random.default_rng(0)
    keys = np.zeros(len(arrays[0]), dtype=np.uint64)
    for array in arrays:
        factors = rng.integers(2**63, 2**64, size=(2, array.shape[1]), dtype=np.uint64) | np.uint64(1)
        for part in blocks(len(array)):
            bits = (array[part] + np.float32(0)).view(np.uint32) * factors[0]  # + 0 makes -0 equal to 0
            bits ^= bits >> np.uint64(32)  # or numbers of few digits would share their low bits, all zero
            keys[part] += (bits * factors[1]).sum(axis=1)
    return keys


def _actions(raw: RawArrays, low: FloatArray, high: FloatArray) -> Iterator[Finding]:
    beyond = rows_beyond(raw.actions, low, high)
    if len(beyond):
        yield Finding(
            "warning",
            "actions",
            f"actions lie beyond [{low.min():g}, {high.max():g}] in {first_rows(beyond)} (found "
            f"{raw.actions.min():g} to {raw.actions.max():g})",
            "refused by training: give the environment's bounds with --data.action_low and --data.action_high",
        )
    entries, rows = 0, 0
    for part in blocks(len(raw)):
        at_bound = (raw.actions[part] <= low) | (raw.actions[part] >= high)
        entries += int(at_bound.sum())
        rows += int(at_bound.any(axis=1).sum())
    if entries:
        yield Finding(
            "info",
            "actions",
            f"{entries / raw.actions.size:.2%} of the actions' entries lie at a bound or beyond it, in {rows:,} rows",
            "kept; rounding beyond a bound is clipped, and so is what the policy samples",
        )


def _constants(raw: RawArrays) -> Iterator[Finding]:
    for name, array in (("observations", raw.observations), ("actions", raw.actions)):
        constant = np.flatnonzero(array.max(axis=0) == array.min(axis=0))
        if len(constant):
            yield Finding(
                "warning",
                name,
                f"dimensions {', '.join(map(str, constant))} never change",
                "kept; where observations are normalized, these become 0" if name == "observations" else "kept",
            )


def _rewards(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    if len(episodes.starts) > 1 and raw.rewards.min() == raw.rewards.max():
        yield Finding(
            "warning",
            "returns",
            "all rewards are equal: there is nothing to learn from them but the lengths of episodes",
            "used as recorded; the reward rule return_range refuses equal returns",
        )
