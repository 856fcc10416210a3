"""Reward rules: how rewards are scaled for the critic (Lu et al. 2023, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cepdiff.data.rl.buffer import TransitionBuffer
from cepdiff.data.rl.tasks import REWARD_RULES
from cepdiff.errors import ConfigError, DataError, nearest

# Relative to the sum of absolute rewards; equal returns differ by float32 rounding (6e-8).
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Scaling:
    """A reward rule with its numbers: the critic trains on factor * r + offset. `basis` shows them."""

    rule: str
    factor: float = 1.0
    offset: float = 0.0
    basis: str = ""

    def apply(self, rewards: Tensor) -> Tensor:
        """Scaled rewards (N,)."""
        scaled = rewards if self.factor == 1 else rewards * self.factor
        return scaled if self.offset == 0 else scaled + self.offset

    def __str__(self) -> str:
        return f"{self.rule} ({self.basis})" if self.basis else self.rule

    @property
    def record(self) -> dict[str, str]:
        """For the critic's record: the last digits of the factor may differ from machine to machine."""
        return {"reward_rule": self.rule, "reward_factor": f"{self.factor:.6g}"}


def usable_scaling(rule: str, buffer: TransitionBuffer) -> Scaling:
    """`scaling_of` a buffer that all stages can train on; the test that `cepdiff data check` and `fit` share.

    Raises `DataError` if no row is terminal or has a known successor.
    """
    if not len(buffer.transitions):
        raise DataError(
            f"no transition: none of the {len(buffer):,} rows is terminal or has a known next state, as each is the "
            "last of its episode; add 'next_observations', or correct 'timeouts'"
        )
    return scaling_of(rule, buffer)


def scaling_of(rule: str, buffer: TransitionBuffer) -> Scaling:
    """The scaling of a reward rule:

    - "return_range": r * 1000 / (max return - min return) over the complete episodes (or all episodes if fewer than
      two are complete). Raises `DataError` if all returns are equal up to rounding, or if the buffer is not `chained`.
    - "minus_one": r - 1.
    - "none": r.

    Raises `ConfigError` for any other rule.
    """
    if rule == "return_range":
        return _return_range(buffer)
    if rule == "minus_one":
        return Scaling(rule, offset=-1.0, basis="r - 1")
    if rule == "none":
        return Scaling(rule)
    raise ConfigError(f"unknown reward rule '{rule}'; expected {', '.join(REWARD_RULES)}.{nearest(rule, REWARD_RULES)}")


def _return_range(buffer: TransitionBuffer) -> Scaling:
    if not buffer.chained:
        raise DataError(
            "the reward rule 'return_range' needs episodes, but most next observations are not the following row's: "
            "rows are not in time order, or 'next_observations' are shifted or in other units. Sort the rows, remove "
            "'next_observations' if they are in order, or use --data.reward_rule none"
        )
    returns, complete = buffer.episode_returns()
    absolute = returns.new_zeros(len(returns)).index_add_(0, buffer.episode_index, buffer.rewards.double().abs())
    kind = "complete episodes"
    if int(complete.sum()) >= 2:
        returns, absolute = returns[complete], absolute[complete]
    else:
        kind = "episodes, of which fewer than two are complete"
    spread = float(returns.max() - returns.min())
    if spread <= _ROUNDING * float(absolute.max()):
        found = f"all {len(returns):,} have" if len(returns) > 1 else "there is only one, with"
        raise DataError(
            f"the reward rule 'return_range' needs episodes with different returns, but {found} {float(returns[0]):g}; "
            "use --data.reward_rule none"
        )
    factor = 1000 / spread
    return Scaling("return_range", factor, basis=f"x {factor:.4g} over {len(returns):,} {kind}; range {spread:.5g}")
