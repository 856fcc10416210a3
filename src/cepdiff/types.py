"""What the rooms of this package hand to each other. Axis letters: B batch, K support actions, S observation
size, A action size, N rows of a buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

# Where a block of minibatches carries the seeds of its optimiser steps, (T,) int64.
STEP_SEEDS = "step_seeds"
# One minibatch: field name -> tensor with the batch as its first axis.
Batch = dict[str, Tensor]
# What a loss returns beside its value: short name -> scalar tensor. The caller adds the prefix.
Metrics = dict[str, Tensor]
# A predictor as the solver sees it: (x_t, t) -> prediction of the shape of x_t, the condition already bound.
Predictor = Callable[[Tensor, Tensor], Tensor]


class NoisePredictor(Protocol):
    """eps_pred(x_t (..., A), t, condition (..., S)) -> (..., A); leading axes broadcast against each other."""

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor: ...


class EnergyLogits(Protocol):
    """logits(x_t (..., A), t, condition (..., S)) -> (...); `-E_t` up to a constant of t and the condition."""

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor: ...


class Policy(Protocol):
    """What a rollout asks for an action."""

    @property
    def action_size(self) -> int: ...

    def act(self, observations: Tensor, *, guidance_scale: float | Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A) in the environment's units for raw observations (B, S); `guidance_scale` is one
        number or one a row (B,); `noise` (B, A) is standard normal and makes the result deterministic."""
        ...


@dataclass(frozen=True)
class DataSpec:
    """Everything about a buffer that networks and policies must know.

    Actions are trained on in [-1, 1]; `action_low` and `action_high` (A values each) are the environment's
    bounds. `observation_mean` and `observation_std` (S values each) are None where observations are used raw.
    """

    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    observation_mean: tuple[float, ...] | None = None
    observation_std: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataSpec:
        """Inverse of `to_dict`; JSON's lists become tuples."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
