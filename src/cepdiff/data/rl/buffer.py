"""The transition buffer: a dataset as tensors, with its episodes and successors computed once.

"An episode ends here" and "do not bootstrap here" are two different things:

- An episode ends where `episodes_of` says: at `terminals | timeouts`, at a break in the chain of next observations,
  and at the last row. Returns are summed over these episodes.
- Only `terminals` stop bootstrapping. A time limit ends an episode, but the state after it still has a value.

A row's successor s' is an index into `states`, -1 if unknown:

- Without `next_observations`, s' is the observation of the following row of the same episode. It is unknown at a time
  limit and at the last row, so those rows only train the behavior model.
- With `next_observations`, s' is the following row's observation if the two are equal and the row does not end an
  episode; every other next observation is appended to `states`.
- A terminal row without a known s' points at itself, since its successor is never bootstrapped from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, blocks, first_rows, rows_where
from cepdiff.data.rl.episodes import episodes_of
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator
from cepdiff.types import DataSpec

IntArray = npt.NDArray[np.int64]
Bounds = float | Sequence[float] | None
# Relative to the bound; float32 rounding is 6e-8.
_BOUND_TOLERANCE = 1e-6
# Observations with a smaller deviation count as constant and are not divided by it.
_MIN_STD = 1e-6


@dataclass(frozen=True)
class TransitionBuffer:
    """N rows in E episodes, U >= N states; all tensors on the CPU.

    states (U, S): the observations of the N rows, then the next observations that are not the following row's.
    next_index (N,): row of s' in `states`, -1 if unknown. actions (N, A) in [-1, 1]. rewards (N,), raw. terminals,
    timeouts (N,). episode_index (N,): episode of each row. episode_starts, episode_ends (E,): first row and one past
    the last. episode_complete (E,): False for an episode that the end of the data cut. content_hash: of the data and
    the bounds. chained: False if next observations form no chain, so that only flags end episodes. action_steps:
    consecutive actions in a row's action.
    """

    states: Tensor
    next_index: Tensor
    actions: Tensor
    rewards: Tensor
    terminals: Tensor
    timeouts: Tensor
    episode_index: Tensor
    episode_starts: Tensor
    episode_ends: Tensor
    episode_complete: Tensor
    content_hash: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    chained: bool = True
    action_steps: int = 1

    @classmethod
    def from_arrays(cls, raw: RawArrays, action_low: Bounds = None, action_high: Bounds = None) -> TransitionBuffer:
        """Build a buffer from `raw`, sharing memory where possible: do not modify `raw` afterwards.

        Bounds are as for `action_bounds`. Raises `DataError` if an action exceeds them by more than rounding.
        """
        low, high = action_bounds(raw, action_low, action_high)
        beyond = rows_beyond(raw.actions, low, high)
        if len(beyond):
            found_low, found_high = float(raw.actions.min()), float(raw.actions.max())
            raise DataError(
                f"{raw.source}: actions are outside [{low.min():g}, {high.max():g}] in {first_rows(beyond)} "
                f"(found {found_low:g} to {found_high:g}); set the environment's bounds with "
                "--data.action_low and --data.action_high"
            )
        episodes = episodes_of(raw)
        states, next_index = _successors(raw, episodes.ends)
        numbers = np.arange(len(episodes.starts), dtype=np.int64)
        return cls(
            states=torch.from_numpy(states),
            next_index=torch.from_numpy(next_index),
            actions=torch.from_numpy(_unit_actions(raw.actions, low, high)),
            rewards=torch.from_numpy(raw.rewards),
            terminals=torch.from_numpy(raw.terminals),
            timeouts=torch.from_numpy(raw.timeouts),
            episode_index=torch.from_numpy(np.repeat(numbers, episodes.lengths)),
            episode_starts=torch.from_numpy(episodes.starts),
            episode_ends=torch.from_numpy(episodes.starts + episodes.lengths),
            episode_complete=torch.from_numpy(episodes.complete),
            content_hash=_content_hash(raw, low, high),
            action_low=tuple(low.tolist()),
            action_high=tuple(high.tolist()),
            chained=episodes.chained,
        )

    def with_action_steps(self, steps: int) -> TransitionBuffer:
        """Return a copy whose actions (N, steps * A) are those of a row and of the rows after it, one after another.

        At the end of an episode the last action is repeated. Raises ConfigError if the rows form no episodes.
        """
        if not self.chained:
            raise ConfigError(
                "data.action_steps: next observations are not the following rows', so only 1 step is known"
            )
        last = self.episode_ends[self.episode_index] - 1
        rows = torch.arange(len(self))
        sequences = [self.actions[torch.minimum(rows + step, last)] for step in range(steps)]
        own_hash = f"{self.content_hash}-{steps}"
        return replace(self, actions=torch.cat(sequences, -1), action_steps=steps, content_hash=own_hash)

    @property
    def whole_sequences(self) -> Tensor:
        """Mask (N,) of rows whose actions all are of their episode."""
        return torch.arange(len(self)) + self.action_steps <= self.episode_ends[self.episode_index]

    def __len__(self) -> int:
        return len(self.next_index)

    @property
    def observations(self) -> Tensor:
        """(N, S), a view of `states`."""
        return self.states[: len(self)]

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.episode_ends)

    @property
    def transitions(self) -> Tensor:
        """Ascending rows a critic can train on: terminal, or with a known successor."""
        return torch.nonzero(self.next_index >= 0).squeeze(-1)

    def episode_returns(self) -> tuple[Tensor, Tensor]:
        """Undiscounted returns (E,) in float64, and a mask (E,) of complete episodes."""
        sums = torch.zeros(self.num_episodes, dtype=torch.float64)
        sums.index_add_(0, self.episode_index, self.rewards.double())
        return sums, self.episode_complete

    def spec(self, normalize: bool = False) -> DataSpec:
        """Sizes and action bounds; with `normalize`, also mean and standard deviation of the N observations.

        Constant observations get a standard deviation of 1, so they normalise to 0.
        """
        mean, std = self._moments() if normalize else (None, None)
        return DataSpec(
            observation_size=self.states.shape[1],
            action_size=self.actions.shape[1] // self.action_steps,
            action_low=self.action_low,
            action_high=self.action_high,
            observation_mean=mean,
            observation_std=std,
            action_steps=self.action_steps,
        )

    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        parts = [self.observations[part] for part in blocks(len(self))]
        mean = sum((p.double().sum(0) for p in parts), torch.zeros(1)) / len(self)
        variance = sum(((p.double() - mean).square().sum(0) for p in parts), torch.zeros(1)) / len(self)
        std = variance.sqrt()
        std = torch.where(std < _MIN_STD, torch.ones_like(std), std)
        return tuple(mean.tolist()), tuple(std.tolist())


def select_episodes(buffer: TransitionBuffer, max_rows: int | None, seed: int) -> Tensor:
    """Ascending rows of randomly chosen whole episodes, about `max_rows` in total.

    At least one episode; all rows if `max_rows` is None or at least N.
    """
    if max_rows is None or max_rows >= len(buffer):
        return torch.arange(len(buffer))
    if max_rows < 1:
        raise ConfigError(f"max_rows is {max_rows}; expected at least 1, or null for all rows")
    order = torch.randperm(buffer.num_episodes, generator=generator(seed, "episodes"))
    chosen = leading_episodes(order, buffer.episode_ends - buffer.episode_starts, max_rows)
    return torch.nonzero(chosen[buffer.episode_index]).squeeze(-1)


def leading_episodes(order: Tensor, lengths: Tensor, rows: float) -> Tensor:
    """Mask (E,) of the first episodes in `order`, at least one, whose `lengths` (E,) add up to about `rows`."""
    totals = lengths[order].cumsum(0)
    count = int((totals - rows).abs().argmin()) + 1  # the total nearest to `rows`
    chosen = torch.zeros(len(lengths), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def action_bounds(raw: RawArrays, action_low: Bounds = None, action_high: Bounds = None) -> tuple[FloatArray, ...]:
    """(low (A,), high (A,)): the arguments (a number or A of them), else the metadata's, else [-1, 1].

    Raises `DataError` unless they are finite, low < high, and there are 1 or A of them."""
    size = raw.actions.shape[1]
    found = []
    for name, given, default in (("action_low", action_low, -1.0), ("action_high", action_high, 1.0)):
        value = np.asarray(given if given is not None else raw.metadata.get(name, default), dtype=np.float32)
        if value.ndim > 1 or value.size not in (1, size) or not np.isfinite(value).all():
            raise DataError(
                f"{raw.source}: {name} is {value.tolist()}; expected one finite number or {size}; "
                f"set it with --data.{name}"
            )
        found.append(np.broadcast_to(value.reshape(-1), (size,)))
    low, high = found
    if not (low < high).all():
        raise DataError(f"{raw.source}: action_low {low.tolist()} is not below action_high {high.tolist()}")
    return low, high


def rows_beyond(actions: FloatArray, low: FloatArray, high: FloatArray) -> IntArray:
    """Rows of actions (N, A) outside [low, high] by more than float32 rounding."""
    slack = _BOUND_TOLERANCE * np.maximum(high - low, np.maximum(np.abs(low), np.abs(high)))
    lowest, highest = low - slack, high + slack
    return rows_where(len(actions), lambda part: ((actions[part] < lowest) | (actions[part] > highest)).any(axis=1))


def equal_rows(a: FloatArray, b: FloatArray) -> BoolArray:
    """Mask (N,) of rows of `a` (N, S) that exactly equal those of `b`."""
    equal = np.empty(len(a), dtype=np.bool_)
    for part in blocks(len(a)):
        equal[part] = (a[part] == b[part]).all(axis=1)
    return equal


def _successors(raw: RawArrays, ends: BoolArray) -> tuple[FloatArray, IntArray]:
    rows = len(raw)
    next_index = np.arange(1, rows + 1, dtype=np.int64)
    if raw.next_observations is None:
        next_index[ends] = -1
        own = np.flatnonzero(raw.terminals)
        next_index[own] = own
        return raw.observations, next_index
    held = ~ends  # the last row is an end, so every held row has a next row
    held[:-1] &= equal_rows(raw.next_observations[:-1], raw.observations[1:])
    foreign = np.flatnonzero(~held)
    next_index[foreign] = rows + np.arange(len(foreign))
    states = np.empty((rows + len(foreign), raw.observations.shape[1]), dtype=np.float32)
    states[:rows] = raw.observations
    np.take(raw.next_observations, foreign, axis=0, out=states[rows:], mode="clip")  # clip: writes unbuffered
    return states, next_index


def _unit_actions(actions: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Scale actions (N, A) from [low, high] to [-1, 1] and clip them; no copy if nothing changes."""
    if (low == -1).all() and (high == 1).all():
        return actions if actions.min() >= -1 and actions.max() <= 1 else actions.clip(-1, 1)
    two = np.float32(2)
    unit: FloatArray = actions - (low + high) / two
    unit /= (high - low) / two
    return np.clip(unit, -1, 1, out=unit)


def _content_hash(raw: RawArrays, low: FloatArray, high: FloatArray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in {**raw.fields, "action_low": low, "action_high": high}.items():
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
