"""Reward rules: how rewards are scaled for the critic (Lu et al. 2023, appendix)."""

from __future__ import annotations

from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.tasks import REWARD_RULES
from cepdiff.errors import ConfigError, DataError, nearest


def apply_rule(rule: str, buffer: TransitionBuffer) -> Tensor:
    """Scaled rewards (N,) in float32.

    - "return_range": r * 1000 / (max return - min return) over the complete episodes (or all episodes if fewer than
      two are complete). Raises `DataError` if all returns are equal up to rounding, or if the buffer is not `chained`.
    - "minus_one": r - 1.
    - "none": r.

    Raises `ConfigError` for any other rule.
    """
    if rule == "return_range":
        return buffer.rewards * _range_factor(buffer)
    if rule == "minus_one":
        return buffer.rewards - 1
    if rule == "none":
        return buffer.rewards
    raise ConfigError(f"unknown reward rule '{rule}'; expected {', '.join(REWARD_RULES)}.{nearest(rule, REWARD_RULES)}")


def _range_factor(buffer: TransitionBuffer) -> float:
    if not buffer.chained:
        raise DataError(
            "the reward rule 'return_range' needs episodes, but most next observations are not the following row's: "
            "rows are not in time order, or 'next_observations' are shifted or in other units. Sort the rows, remove "
            "'next_observations' if they are in order, or use --data.reward_rule none"
        )
    returns, complete = buffer.episode_returns()
    if int(complete.sum()) >= 2:
        returns = returns[complete]
    spread = float(returns.max() - returns.min())
    if spread == 0:
        raise DataError(
            f"the reward rule 'return_range' needs episodes with different returns, but all {len(returns)} "
            f"have {float(returns[0]):g}; use --data.reward_rule none"
        )
    return 1000 / spread
