"""Types that the rooms of this package share. Axis letters: B batch, K support actions, S observation size,
A action size, N rows of a buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

# The key of a block's seeds, one per optimiser step, (T,) int64.
STEP_SEEDS = "step_seeds"
# One minibatch: field name -> tensor with the batch as its first axis.
Batch = dict[str, Tensor]
# Metrics of a loss: short name -> scalar tensor. The caller adds the prefix.
Metrics = dict[str, Tensor]
# A predictor as the solver sees it: (x_t, t) -> prediction of the shape of x_t, the condition already bound.
Predictor = Callable[[Tensor, Tensor], Tensor]


class NoisePredictor(Protocol):
    """eps_pred(x_t (..., A), t, condition (..., S)) -> (..., A); leading axes broadcast against each other."""

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor: ...


class EnergyLogits(Protocol):
    """logits(x_t (..., A), t, condition (..., S)) -> (...); `-E_t` up to a constant of t and the condition."""

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor: ...


# Key in the info of an episode's last step: True if the episode succeeded, in environments that say so.
SUCCESS = "episode_success"


class Policy(Protocol):
    """A policy, as a rollout calls it."""

    @property
    def action_size(self) -> int: ...
    @property
    def noise_size(self) -> int: ...

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A) in the environment's units for raw observations (B, S); `guidance_scale` is one number or one
        per row (B,); standard normal `noise` (B, `noise_size`) makes the result deterministic."""
        ...


@dataclass(frozen=True)
class DataSpec:
    """The facts about a buffer that networks and policies need.

    Actions are trained on in [-1, 1]; `action_low` and `action_high` (A values each) are the environment's
    bounds. `observation_mean` and `observation_std` (S values each) are None if observations are used raw.
    Networks see `action_steps` consecutive actions as one of `modeled_size` numbers; a policy returns the first.
    """

    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation_mean: tuple[float, ...] | None = None
    observation_std: tuple[float, ...] | None = None
    action_steps: int = 1

    @property
    def modeled_size(self) -> int:
        """Numbers in an action as networks see it."""
        return self.action_steps * self.action_size

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        """Inverse of `to_dict`; JSON's lists become tuples."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
