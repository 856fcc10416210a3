"""Standard normal noise as a plain function of a seed, in integer arithmetic that any tensor runtime repeats.

A generator with hidden state cannot be exported; a counter-based one can. This is SplitMix64 (Steele et al. 2014, "Fast
splittable pseudorandom number generators") with the Box-Muller transform.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Constants of SplitMix64 as signed 64-bit numbers: tensors have no unsigned arithmetic, and products wrap the same.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; the operator `>>` repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def mix(values: Tensor) -> Tensor:
    """SplitMix64's finalizer, a bijection of 64-bit integers; every output bit depends on every input bit."""
    values = (values ^ _shifted(values, 30)) * MULTIPLIERS[0]
    values = (values ^ _shifted(values, 27)) * MULTIPLIERS[1]
    return values ^ _shifted(values, 31)


def noise_of_seed(seed: Tensor, num_rows: int, size: int) -> Tensor:
    """Standard normal noise (num_rows, size) float32 of a seed () int64; a row does not depend on `num_rows`.

    Element i is made of the i-th output of SplitMix64 in the state mix(seed): its upper half is the radius, its lower
    half the angle. The seed is mixed first, or neighbouring seeds would be neighbouring states. Computed in float64 and
    rounded last, so that runtimes with other sine tables give the same float32. |noise| <= 6.7.
    """
    device = seed.device
    rows, columns = torch.arange(num_rows, device=device), torch.arange(size, device=device)
    counters = rows.unsqueeze(-1) * size + columns + 1  # (B, A), from 1: state + GOLDEN is the first output's
    bits = mix(mix(seed) + counters * GOLDEN)
    radius = (_shifted(bits, 32) + 1).double() * 2.0**-32  # in (0, 1]
    angle = (bits & 0xFFFFFFFF).double() * 2.0**-32
    return ((-2.0 * radius.log()).sqrt() * (2.0 * math.pi * angle).cos()).float()
