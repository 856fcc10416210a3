"""Returns over several steps, for backups over n steps."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.errors import ConfigError


class Lookahead(NamedTuple):
    """Backups of N rows.

    `returns` (N,): the sum r_i + gamma r_{i+1} + ... over a number of steps. `last` (N,): the row of the last reward in
    it, after which the value is bootstrapped. `discounts` (N,): gamma^steps, the factor of that value.
    """

    returns: Tensor
    last: Tensor
    discounts: Tensor


class _Sums(NamedTuple):
    """A discounted sum per row (N + 1,), its number of steps, and the row after it (N if there is none)."""

    sums: Tensor
    steps: Tensor
    following: Tensor

    def then(self, other: _Sums, discount: float) -> _Sums:
        """Sums over these steps followed by `other`'s."""
        sums = self.sums + discount ** self.steps.double() * other.sums[self.following]
        return _Sums(sums, self.steps + other.steps[self.following], other.following[self.following])


def require_order(buffer: TransitionBuffer) -> None:
    """Raise ConfigError if the rows form no episodes."""
    if not buffer.chained:
        raise ConfigError("critic.num_steps: next observations are not the following rows', so only 1 step is known")


def look_ahead(
    buffer: TransitionBuffer, rewards: Tensor, discount: float, num_steps: int | Literal["episode"]
) -> Lookahead:
    """Sums of up to `num_steps` `rewards` (N,), or of all up to the end of the "episode", added in float64.

    A sum ends early at the end of the episode, or before a row whose next state is unknown (Sutton and Barto 2018,
    Eq. 7.1). Raises ConfigError if the rows form no episodes.
    """
    require_order(buffer)
    rows, count = torch.arange(len(buffer)), len(buffer)
    following = torch.where(rows + 1 == buffer.episode_ends[buffer.episode_index], count, rows + 1)
    unknown = torch.cat([buffer.next_index < 0, torch.ones(1, dtype=torch.bool)])  # (N + 1,)
    following = torch.where(unknown[following], count, following)

    def padded(values: Tensor, last: float) -> Tensor:
        return torch.cat([values, values.new_tensor([last])])

    nothing = padded(torch.zeros(count, dtype=torch.float64), 0.0)
    total = _Sums(nothing, nothing.long(), padded(rows, count))
    power = _Sums(padded(rewards.double(), 0.0), padded(torch.ones_like(rows), 0), padded(following, count))
    left = int((buffer.episode_ends - buffer.episode_starts).max()) if num_steps == "episode" else num_steps
    while left:  # a sum over n steps is made of sums over 1, 2, 4, ... steps
        if left % 2:
            total = total.then(power, discount)
        power, left = power.then(power, discount), left // 2
    steps = total.steps[:-1]
    return Lookahead(total.sums[:-1].float(), rows + steps - 1, (discount ** steps.double()).float())
