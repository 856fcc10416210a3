"""Goal-conditioned data: the goal follows the observation in one vector, and goals are relabelled by hindsight."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from cepdiff.data.checks.findings import Finding, info
from cepdiff.data.rl.arrays import GOAL_COLUMNS, NEEDS_GOAL, BoolArray, FloatArray, RawArrays
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.episodes import trajectories_of
from cepdiff.data.rl.ogbench import ENVIRONMENTS
from cepdiff.data.rl.settings import family_of_env, settings_of
from cepdiff.data.rl.source import MINARI_PREFIX, load_dataset
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import stream_seed
from cepdiff.ranges import Count, NonNegative, OpenUnit, Range, check_arguments

# This package's environments, and those of them that show their goal.
OWN = "cepdiff/"
WITH_GOAL = "cepdiff/with_goal-v0"
# Info: the goal that the episode was recorded with.
_RECORDED = "desired_goal"
# Findings about what hindsight replaces.
_REPLACED = ("returns", "terminals")
_SUM = 1e-6
_OF_VALUES = (0.2, 0.5)  # the defaults of `current` and `future`
# Families of mazes whose observations begin with the position.
_MAZES = ("antmaze", "maze2d")
Probability = Annotated[float, Range(0, 1, "[]")]


class GoalDataModule(OfflineDataModule):
    """Rows with goals: OGBench's goal-conditioned datasets, D4RL's mazes, and Minari's with dictionary observations.

    The observation is (s, g), of size S + G. By default each row gets goals by hindsight (Andrychowicz et al. 2017):
    its own state with probability `current`, a later state of its trajectory with probability `future`, else the state
    of any row; these probabilities are HIQL's (Park et al. 2023) and OGBench's for values. The reward is 0 at the goal
    and -1 elsewhere, and the goal is terminal. The goals are drawn once, from (seed, "goals").

    With `per` "segment" goals are drawn for segments of the trajectories: from a row drawn uniformly to a later state,
    the goal, ended where that is reached; those that begin at their goal are left out. Rows then stay in time order,
    which `action_steps` and backups over several steps need.

    Args:
        dataset: "pointmaze-medium-navigate-v0", "antmaze-medium-play-v2", "minari:D4RL/pointmaze/umaze-v2", ...
        relabel: false keeps the recorded goals, rewards and terminals.
        per: "row" or "segment".
        current: probability that the goal is the row's own state, if per row.
        future: probability that it is a later state of the same trajectory, if per row.
        sampling: how much later: "geometric", k steps with probability (1 - `goal_discount`) `goal_discount`^(k - 1)
            and at most to the trajectory's end, or "uniform".
        goal_discount: of geometric sampling, in (0, 1).
        radius: distance from the goal within which it is reached; null: only in the row that it was taken from.
        copies: goals per row, each in a row of its own, or segments per trajectory.
        options: those of `OfflineDataModule`.
    """

    def __init__(
        self,
        dataset: str,
        relabel: bool = True,
        per: Literal["row", "segment"] = "row",
        current: Probability = 0.2,
        future: Probability = 0.5,
        sampling: Literal["geometric", "uniform"] = "geometric",
        goal_discount: OpenUnit = 0.99,
        radius: NonNegative | None = None,
        copies: Count = 1,
        **options: Any,
    ) -> None:
        check_arguments(GoalDataModule, locals(), "data")
        if current + future > 1 + _SUM:
            raise ConfigError(f"data.current {current:g} and data.future {future:g}: expected at most 1 in all")
        super().__init__(dataset, **options)
        if relabel and self.fraction != 1 and self.choose == "best":
            raise ConfigError('data.choose: "best" is by recorded rewards, which data.relabel replaces; use "random"')
        if relabel and self.reward_rule not in (None, "none"):
            raise ConfigError(f'data.reward_rule: "{self.reward_rule}"; rewards by hindsight are -1 and 0: use "none"')
        if per == "segment" and (current, future) != _OF_VALUES:
            raise ConfigError('data.current and data.future are for goals per row; data.per is "segment"')
        self.relabel, self.per, self.current, self.future = relabel, per, current, future
        self.sampling, self.goal_discount = sampling, goal_discount
        self.radius, self.copies = radius, copies
        self._recorded: list[Finding] = []  # about the rows before hindsight

    def load_arrays(self) -> RawArrays:
        raw = load_dataset(self.dataset, self.dataset_dir, infos=True)
        known = str(raw.metadata.get("env_id"))
        if known.startswith(OWN) and family_of_env(known) in _MAZES:
            raw.metadata[GOAL_COLUMNS] = (0, 1)
        if GOAL_COLUMNS not in raw.metadata:
            raise DataError(
                f"{raw.source}: no goals are known; expected a goal-conditioned dataset of OGBench "
                "(pointmaze-medium-navigate-v0), one of D4RL's mazes or one of Minari's"
            )
        raw.metadata |= _environment(raw, self.dataset)
        if not self.relabel:
            return _as_recorded(raw)
        self._recorded = [finding for finding in super().inspect(raw) if finding.name not in _REPLACED]
        return self._per_row(raw) if self.per == "row" else self._per_segment(raw)

    def inspect(self, raw: RawArrays) -> list[Finding]:
        if not self.relabel:
            return super().inspect(raw)
        message = f"{len(raw):,} rows with a goal each, which {int(raw.terminals.sum()):,} of them have reached"
        return [*self._recorded, info("goals", message, "drawn by hindsight; a reached goal is terminal")]

    def summary(self) -> str:
        """With hindsight, rows and reached goals: there are no episodes, as each row has another goal."""
        if not self.relabel:
            return super().summary()
        return f"{len(self.buffer):,} rows, {int(self.buffer.terminals.sum()):,} of them at their goal"

    def _per_row(self, raw: RawArrays) -> RawArrays:
        rows = np.tile(np.arange(len(raw)), self.copies)
        last = last_rows(raw)[rows]
        numbers = np.random.default_rng(stream_seed(self.seed, "goals"))
        goals = draw_goals(rows, last, len(raw), self.current, self.future, self._offsets(rows, last, numbers), numbers)
        achieved, reached = achieved_goals(raw), goals == rows
        if self.radius is not None:
            reached |= np.linalg.norm(achieved[goals] - achieved[rows], axis=1) <= self.radius
        if raw.next_observations is None:  # of a trajectory's last state nothing more is known
            used = reached | (rows != last)
            rows, last, goals, reached = rows[used], last[used], goals[used], reached[used]
        return _relabelled(raw, rows, achieved[goals], reached, (rows == last) & ~reached)

    def _per_segment(self, raw: RawArrays) -> RawArrays:
        whole = trajectories_of(raw)
        firsts, lengths = np.tile(whole.starts, self.copies), np.tile(whole.lengths, self.copies)
        last = firsts + lengths - 1
        numbers = np.random.default_rng(stream_seed(self.seed, "goals"))
        starts = firsts + (numbers.random(len(firsts)) * (lengths - 1)).astype(np.int64)
        goals = starts + self._offsets(starts, last, numbers)
        ends, achieved = goals.copy(), achieved_goals(raw)
        if self.radius is not None:
            for index, (start, goal) in enumerate(zip(starts, goals, strict=True)):
                distance = np.linalg.norm(achieved[start : goal + 1] - achieved[goal], axis=1)
                ends[index] = start + int((distance <= self.radius).argmax())
        starts, goals, ends = (values[starts < ends] for values in (starts, goals, ends))
        if not len(starts):
            raise DataError(f"{raw.source}: every segment begins at its goal (data.radius: {self.radius})")
        lengths = ends - starts + 1
        rows = np.arange(lengths.sum()) + np.repeat(starts - (lengths.cumsum() - lengths), lengths)
        reached = rows == np.repeat(ends, lengths)
        return _relabelled(raw, rows, np.repeat(achieved[goals], lengths, axis=0), reached, np.zeros_like(reached))

    def _offsets(
        self, rows: npt.NDArray[np.int64], last: npt.NDArray[np.int64], numbers: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Steps to a later row of the trajectory, at least 1 if there is one."""
        left = last - rows
        if self.sampling == "uniform":
            offsets = 1 + (numbers.random(len(rows)) * left).astype(np.int64)
        else:
            offsets = numbers.geometric(1 - self.goal_discount, len(rows))
        shorter: npt.NDArray[np.int64] = np.minimum(offsets, left)
        return shorter


def draw_goals(
    rows: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    count: int,
    current: float,
    future: float,
    offsets: npt.NDArray[np.int64],
    numbers: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Row of the goal of each of `rows`: itself, `offsets` later, or any of `count` rows."""
    kind, anywhere = numbers.random(len(rows)), numbers.integers(count, size=len(rows))
    return np.where(kind < current, rows, np.where(kind < current + future, rows + offsets, anywhere))


def last_rows(raw: RawArrays) -> npt.NDArray[np.int64]:
    """Last row (N,) of each row's trajectory."""
    found = trajectories_of(raw)
    return np.repeat(found.starts + found.lengths - 1, found.lengths)


def achieved_goals(raw: RawArrays) -> FloatArray:
    """The part (N, G) of each row's state that a goal is about."""
    return raw.observations[:, list(raw.metadata[GOAL_COLUMNS])]


def _relabelled(
    raw: RawArrays, rows: npt.NDArray[np.int64], goals: FloatArray, reached: BoolArray, timeouts: BoolArray
) -> RawArrays:
    metadata = {**raw.metadata, "reward_rule": "none"}
    return _joined(raw, rows, goals, reached.astype(np.float32) - 1, reached, timeouts, metadata)


def _as_recorded(raw: RawArrays) -> RawArrays:
    if _RECORDED not in raw.infos:
        raise ConfigError(f"data.relabel is false, but {raw.source} has no recorded goals: its goals are relabelled")
    rows = np.arange(len(raw))
    goals = np.asarray(raw.infos[_RECORDED], np.float32)
    return _joined(raw, rows, goals, raw.rewards, raw.terminals, raw.timeouts, raw.metadata)


def _joined(
    raw: RawArrays,
    rows: npt.NDArray[np.int64],
    goals: FloatArray,
    rewards: FloatArray,
    terminals: npt.NDArray[np.bool_],
    timeouts: npt.NDArray[np.bool_],
    metadata: dict[str, Any],
) -> RawArrays:
    following = raw.next_observations
    if following is None:
        following = np.concatenate([raw.observations[1:], raw.observations[-1:]])
    return replace(
        raw,
        observations=np.concatenate([raw.observations[rows], goals], axis=1),
        next_observations=np.concatenate([following[rows], goals], axis=1),
        actions=raw.actions[rows],
        rewards=rewards,
        terminals=terminals,
        timeouts=timeouts,
        metadata={key: value for key, value in metadata.items() if key not in (NEEDS_GOAL, "goal_range")},
        infos={},
    ).validate()


def _environment(raw: RawArrays, dataset: str) -> dict[str, Any]:
    """Metadata of the environment that shows the goal behind the observation."""
    known = raw.metadata.get("env_id")
    if known is not None and known.startswith(OWN):
        return {"env_id": WITH_GOAL, "env_kwargs": {"env_id": known, **raw.metadata.get("env_kwargs", {})}}
    if known is None or known.startswith(ENVIRONMENTS) or not dataset.startswith(MINARI_PREFIX):
        return {}
    from cepdiff.data.minari.read import VECTOR_PARTS

    inner = {"env_id": known, "parts": list(VECTOR_PARTS[known.split("_")[0]]), **raw.metadata.get("env_kwargs", {})}
    if "horizon" in raw.metadata:
        inner["max_episode_steps"] = raw.metadata["horizon"]
    rule = settings_of(None, None, raw.metadata).reward_rule
    return {"env_id": WITH_GOAL, "env_kwargs": inner, "reward_rule": rule}
