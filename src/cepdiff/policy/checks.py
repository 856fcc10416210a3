"""Checks of the numbers that go into a policy, in any layout, and come out of it, from any engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cepdiff.errors import DataError, DivergenceError


def numbers(values: Any, name: str) -> Tensor:
    """Return `values` as float32; tensors stay on their device. Raises DataError if they are not numbers."""
    if isinstance(values, Tensor):
        if values.is_complex() or values.is_quantized or values.is_meta or values.layout != torch.strided:
            kind = f"{values.dtype}, {values.layout}, on {values.device}"
            raise DataError(f"{name} are a tensor of {kind}; expected dense real numbers")
        return values.to(torch.float32)
    if isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], dict):
        raise DataError(f"{name} are a pair (observation, info), as reset() returns it; pass the observation only")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, or tensors on a GPU
        raise DataError(f"{name} are not an array of numbers: {str(error).splitlines()[0]}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} are {type(values).__name__} of type {array.dtype}; expected an array of numbers")
    with np.errstate(over="ignore"):  # numbers beyond float32 become infinite and are refused elsewhere
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def require_finite_observations(observations: Tensor) -> None:
    """Raise DataError for observations that are NaN or infinite."""
    if not bool(observations.isfinite().all()):
        raise DataError("observations hold NaN or infinite values")


def require_finite_actions(actions: Tensor, guidance_scale: float | Tensor) -> None:
    """Raise DivergenceError for NaN or infinite actions (B, A); it names the first such row's guidance scale."""
    bad = ~actions.isfinite().all(dim=-1)
    if bool(bad.any()):
        scale = float(torch.as_tensor(guidance_scale, device=bad.device).expand(len(bad))[bad][0])
        raise DivergenceError(
            f"the policy returned a NaN or infinite action at guidance scale {scale:g}: the observation is far outside "
            "the data, or a network diverged"
        )
