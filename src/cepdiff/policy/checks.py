"""Numbers that go into a policy and come out of it, by whatever engine runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from cepdiff.errors import DataError, DivergenceError


def require_finite_observations(observations: Tensor) -> None:
    """Raise DataError for observations that are NaN or infinite."""
    if not bool(observations.isfinite().all()):
        raise DataError("observations hold NaN or infinite values")


def require_finite_actions(actions: Tensor, guidance_scale: float | Tensor) -> None:
    """Raise DivergenceError for actions (B, A) that are NaN or infinite, with the first such row's guidance scale."""
    bad = ~actions.isfinite().all(dim=-1)
    if bool(bad.any()):
        scale = float(torch.as_tensor(guidance_scale, device=bad.device).expand(len(bad))[bad][0])
        raise DivergenceError(
            f"the policy returned a NaN or infinite action at guidance scale {scale:g}: the observation is far outside "
            "the data, or a network diverged"
        )
