"""Replay of recorded steps: put the environment into a row's state, apply its action, compare the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.episodes import episodes_of
from cepdiff.errors import DataError, SimulationError
from cepdiff.randomness import stream_seed
from cepdiff.rollout.checked import CheckedEnv
from cepdiff.rollout.envs import Env, EnvSpec, box_spaces, make_env
from cepdiff.rollout.replay_groups import Family, family_of, observation_groups, state_from_observation
from cepdiff.rollout.replay_report import WORTH_A_LOOK, Deviation, ReplayReport

Rows = NDArray[np.int64]
# Number of rows used to decide whether states were recorded before or after the step.
_PROBE_ROWS = 64


class _Steps(NamedTuple):
    """The environment's results for M rows: observations (M, S) and rewards (M,) as float32, terminated (M,)."""

    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]


@dataclass(frozen=True)
class _States:
    """States per row: `qpos` and `qvel`, or whatever the environment's `set_env_state` takes; `exact` (N,) if known.

    The first `hidden` positions are not known: a step continues from where the previous one ended.
    """

    source: str
    arrays: dict[str, NDArray[Any]]
    exact: NDArray[np.bool_]
    hidden: int = 0


def replay(
    raw: RawArrays,
    spec: EnvSpec,
    *,
    rows: int = 1000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> ReplayReport:
    """Replay a random sample of `rows` rows of `raw` (read with its `infos`), determined by `seed`.

    A row is eligible if its successor is known or it is terminal (then only reward and flag are compared). Its
    predecessor is replayed first, to restore what MuJoCo carries from step to step (the last computed body positions,
    which Ant's reward uses, and the solver's warm start); then the recorded state is set. `on_progress` gets the
    number of replayed rows and the total.

    Where D4RL's files differ, both options are tried: states recorded before or after the step, rewards for the goals
    of the file or of the environment, and (Maze2D) rewards one step late.

    Raises:
        DataError: the file has no states and its observations do not determine them, states contain NaN, the
            environment cannot use them, or no row has a known successor.
        SimulationError: the environment's state cannot be set, its sizes differ from the file's, or it fails in a step.
    """
    made = make_env(spec, max_episode_steps=-1, disable_env_checker=True)  # without a time limit
    with closing(CheckedEnv(made, spec.env_id, finite=False)) as env:
        family = family_of(spec.env_id)
        _check_sizes(env, spec, raw)
        env.reset(seed=0)
        states = _states_of(raw, env, spec, family)
        return _Replay(env, raw, states, family).report(spec, rows, seed, on_progress)


class _Replay:
    """Replay of one file in one environment."""

    def __init__(self, env: Env, raw: RawArrays, states: _States, family: Family | None) -> None:
        self.env, self.raw, self.states, self.family = env, raw, states, family
        ends = episodes_of(raw).ends
        self.goes_on = ~ends
        self.episode: Rows = np.cumsum(ends) - ends
        self.has_successor = np.ones(len(raw), np.bool_) if raw.next_observations is not None else self.goes_on
        has_goal = family is not None and family.has_goal
        self.goals = ("file" if "goal" in raw.infos else "missing") if has_goal else None

    def report(
        self, spec: EnvSpec, count: int, seed: int, on_progress: Callable[[int, int], None] | None
    ) -> ReplayReport:
        """Replay rows and compare."""
        rng = np.random.default_rng(stream_seed(seed, "replay"))
        lags = (0, 1) if self.states.source == "recorded" else (0,)
        rows = self._draw(rng, count, max(lags))
        probe = np.sort(rng.permutation(rows)[:_PROBE_ROWS]) if len(lags) > 1 else rows[:0]
        goals = [None, self.raw.infos["goal"]] if self.goals == "file" else [None]
        total = len(lags) * len(probe) + len(goals) * len(rows)
        done = itertools.count(1)

        def count_row() -> None:
            if on_progress is not None:
                on_progress(next(done), total)

        lag = 0
        if len(probe):
            found = [self._observation_deviation(probe, self._run(probe, lag, None, count_row))[0] for lag in lags]
            lag = lags[int(np.argmin([np.median(deviation.max(axis=1)) for deviation in found]))]
        runs = [self._run(rows, lag, goal, count_row) for goal in goals]
        may_be_late = self.family is not None and self.family.reward_of_state and bool(self.goes_on[rows].any())
        late = (False, True) if may_be_late else (False,)
        choices = [(which, shifted) for which in range(len(runs)) for shifted in late]
        fits = [float(self._reward_deviation(rows, runs[which], shifted)[0].mean()) for which, shifted in choices]
        which, shifted = choices[int(np.argmin(fits))]
        goal = self.goals if which or self.goals != "file" else "environment"
        return self._compare(spec, rows, runs[which], lag, goal, shifted)

    def _draw(self, rng: np.random.Generator, count: int, lag: int) -> Rows:
        """Rows to replay, ascending, at most `count`; their states and those `lag` rows before are known."""
        before = np.arange(len(self.raw)) - lag
        exact = self.states.exact & self.states.exact[before]
        known = (before >= 0) & (self.episode[before] == self.episode) & exact
        eligible = np.flatnonzero(known & (self.has_successor | self.raw.terminals))
        chosen: Rows = np.sort(rng.permutation(eligible)[:count])
        if not self.has_successor[chosen].any():
            raise DataError(f"{self.raw.source}: found no row to replay; expected some with known state and successor")
        return chosen

    def _run(self, rows: Rows, lag: int, goals: NDArray[Any] | None, on_row: Callable[[], None]) -> _Steps:
        """Replay `rows` from the states of the rows `lag` before, with each row's own goal if `goals` are given."""
        observations = np.empty((len(rows), self.raw.observations.shape[1]), np.float32)
        rewards = np.empty(len(rows), np.float32)
        terminated = np.empty(len(rows), np.bool_)
        inner: Any = self.env.unwrapped
        for place, row in enumerate(rows.tolist()):
            if goals is not None:
                inner.goal = goals[row]
            self._set_state(row - lag, lag)
            observation, reward, ended, _, _ = self.env.step(self.raw.actions[row])
            observations[place], rewards[place], terminated[place] = observation, reward, ended
            on_row()
        if not (np.isfinite(observations).all() and np.isfinite(rewards).all()):
            raise DataError(
                f"{self.raw.source}: the environment returns NaN or infinity for recorded states; check infos/"
            )
        return _Steps(observations, rewards, terminated)

    def _set_state(self, source: int, lag: int) -> None:
        inner: Any = self.env.unwrapped
        arrays = self.states.arrays
        if hasattr(inner, "set_env_state"):
            inner.set_env_state({name: values[source] for name, values in arrays.items()})
            return
        before = source - 1
        if before >= 0 and self.episode[before] == self.episode[source] and self.states.exact[before]:
            inner.set_state(arrays["qpos"][before].astype(np.float64), arrays["qvel"][before].astype(np.float64))
            self.env.step(self.raw.actions[before + lag])
            # Not `set_state`, which would recompute what the previous step left behind.
            known = slice(self.states.hidden, None)
            inner.data.qpos[known], inner.data.qvel[:] = arrays["qpos"][source][known], arrays["qvel"][source]
        else:
            inner.set_state(arrays["qpos"][source].astype(np.float64), arrays["qvel"][source].astype(np.float64))

    def _observation_deviation(
        self, rows: Rows, steps: _Steps
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], Rows]:
        """Return deviations and recorded observations (M', S) of the rows with a known successor, and these rows."""
        known = self.has_successor[rows]
        following = self.raw.next_observations
        recorded = self.raw.observations[rows[known] + 1] if following is None else following[rows[known]]
        return np.abs(steps.observations[known].astype(np.float64) - recorded), recorded, rows[known]

    def _reward_deviation(self, rows: Rows, steps: _Steps, late: bool) -> tuple[NDArray[np.float64], Rows]:
        """Return deviations (M',) and the rows compared; with `late`, the following row holds a step's reward."""
        kept = self.goes_on[rows] if late else np.ones(len(rows), np.bool_)
        recorded = self.raw.rewards[rows[kept] + late]
        return np.abs(steps.rewards[kept].astype(np.float64) - recorded), rows[kept]

    def _compare(
        self, spec: EnvSpec, rows: Rows, steps: _Steps, lag: int, goal: str | None, late: bool
    ) -> ReplayReport:
        found, expected, known = self._observation_deviation(rows, steps)
        groups = observation_groups(self.family, expected.shape[1], *(_sizes(self.env) or (0, 0)))
        rewards, reward_rows = self._reward_deviation(rows, steps, late)
        parts = {name: (found[:, part].max(axis=1), expected[:, part], known) for name, part in groups.items()}
        parts["reward"] = rewards, self.raw.rewards[reward_rows + late], reward_rows
        deviations = [Deviation.of(name, values, recorded) for name, (values, recorded, _) in parts.items()]
        relative = {d.name: parts[d.name][0] / d.scale for d in deviations}
        flags = ~self.raw.timeouts[rows]
        terminals = self.raw.terminals[rows[flags]]
        return ReplayReport(
            dataset=Path(self.raw.source).name,
            env_id=spec.env_id,
            env_kwargs=spec.kwargs,
            rows=len(rows),
            file_rows=len(self.raw),
            states=self.states.source,
            state_time="after" if lag else "before",
            goal=goal,
            reward_time="state" if late else "step",
            skipped=int((~self.states.exact).sum()),
            deviations=deviations,
            terminals=len(terminals),
            terminals_set=int(terminals.sum()),
            terminals_equal=int((terminals == steps.terminated[flags]).sum()),
            worst_rows=_worst((relative[name], parts[name][2]) for name in parts),
            remark=self.family.remark if self.family is not None else "",
            row_deviations=relative,
        )


def _check_sizes(env: Env, spec: EnvSpec, raw: RawArrays) -> None:
    observations, actions = box_spaces(env)
    found = (observations.shape[0], actions.shape[0])
    expected = (raw.observations.shape[1], raw.actions.shape[1])
    if found != expected:
        raise SimulationError(
            f"'{spec.env_id}' has {found[0]} observations and {found[1]} actions, {raw.source} has {expected[0]} and "
            f"{expected[1]}. Name the environment that made the file with --env_id and --env_kwargs."
        )


def _states_of(raw: RawArrays, env: Env, spec: EnvSpec, family: Family | None) -> _States:
    inner: Any = env.unwrapped
    sizes = _sizes(env)
    exact = np.ones(len(raw), np.bool_)
    for name, values in raw.infos.items():
        if name in ("qpos", "qvel") and not np.isfinite(values).all():
            raise DataError(f"{raw.source}: infos/{name} is NaN or infinite in some rows; remove these rows")
    if hasattr(inner, "set_env_state"):
        try:
            inner.set_env_state({name: values[0] for name, values in raw.infos.items()})
        except Exception as error:  # environments raise any type
            there = ", ".join(sorted(raw.infos)) or "nothing"
            raise DataError(
                f"{raw.source}: '{spec.env_id}' cannot restore a row's state from infos/, which holds {there} "
                f"({' '.join(str(error).split()) or type(error).__name__})"
            ) from error
        return _States("recorded", raw.infos, exact)
    if sizes is None or not hasattr(inner, "set_state"):
        raise SimulationError(f"'{spec.env_id}' cannot be put into a recorded state: expected a MuJoCo environment")
    if {"qpos", "qvel"} <= raw.infos.keys():
        found = (raw.infos["qpos"].shape[1:], raw.infos["qvel"].shape[1:])
        if found != ((sizes[0],), (sizes[1],)):
            raise DataError(
                f"{raw.source}: infos/qpos and infos/qvel have rows of shape {found[0]} and {found[1]}, "
                f"'{spec.env_id}' has {sizes[0]} positions and {sizes[1]} velocities"
            )
        return _States("recorded", {name: raw.infos[name] for name in ("qpos", "qvel")}, exact)
    made = state_from_observation(family, raw.observations, *sizes)
    if made is None:
        raise DataError(
            f"{raw.source}: holds no states (infos/qpos and infos/qvel), and the observations of '{spec.env_id}' do "
            "not determine them; collect with --states"
        )
    qpos, qvel, determined, hidden = made
    return _States("observations", {"qpos": qpos, "qvel": qvel}, determined, hidden)


def _sizes(env: Env) -> tuple[int, int] | None:
    """(nq, nv) of a MuJoCo environment, None for others."""
    model = getattr(env.unwrapped, "model", None)
    return None if model is None else (int(model.nq), int(model.nv))


def _worst(deviations: Iterator[tuple[NDArray[np.float64], Rows]]) -> list[int]:
    """Up to five rows that deviate by more than `WORTH_A_LOOK`, worst first."""
    worst: dict[int, float] = {}
    for values, rows in deviations:
        for place in np.flatnonzero(values > WORTH_A_LOOK).tolist():
            row = int(rows[place])
            worst[row] = max(worst.get(row, 0.0), float(values[place]))
    return sorted(worst, key=lambda row: -worst[row])[:5]
