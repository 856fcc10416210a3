"""The 2-D densities of Lu et al. 2023 (Sec. 5.1, Fig. 2) with their energies, and exact draws of p ∝ q exp(-beta E).

A point x ~ q(x) comes with an energy E in [0, 1]. E may depend on the component the point was drawn from instead of x:
then p(x) ∝ Σ_labels q(x, label) exp(-beta E(label)). Rows are independent, so component counts are random too.

**Sign.** The official code tilts by exp(+beta e); here E = 1 - e, so exp(-beta E) gives the same relative weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cepdiff.errors import ConfigError, DataError, nearest

Sampler = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]  # points (n, 2) and energies (n,) in float32

CHUNK = 16384  # proposals per draw; changing it changes the samples


@dataclass(frozen=True)
class Density:
    """q(x) with an energy: `sample(n, generator)` draws points (n, 2) and energies (n,); `title` is for figures."""

    name: str
    title: str
    sample: Sampler


def swissroll(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A noisy spiral of one and a half turns (scikit-learn's, from the side, over 5); E = max(0, 1 - |x|² / 9)."""
    angle = 1.5 * math.pi * (1.0 + 2.0 * _uniform(n, generator))
    curve = angle.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)  # (n, 2)
    points = (curve + _normal(n, generator)) / 5.0
    return points, (1.0 - points.square().sum(-1) / 9.0).clamp(min=0.0)


def eight_gaussians(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussians with standard deviation 0.5/√2 around 4/√2 (-sin kπ/4, cos kπ/4), k = 0...7; E = 1 - k / 7."""
    k = _choice(8, n, generator)
    points = (4.0 * _on_circle(math.pi / 2.0 + k * (math.pi / 4.0)) + 0.5 * _normal(n, generator)) / math.sqrt(2.0)
    return points, 1.0 - k / 7.0


def moons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles with noise 0.1 (scikit-learn's), times 2, shifted by (-1, -0.2); E = 1 and 0."""
    moon = _choice(2, n, generator)
    upper = _on_circle(math.pi * _uniform(n, generator))
    lower = upper.new_tensor([1.0, 0.5]) - upper
    points = torch.where(moon.unsqueeze(-1) == 0, upper, lower) + 0.1 * _normal(n, generator)
    return 2.0 * points + points.new_tensor([-1.0, -0.2]), 1.0 - moon


def rings(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Equally likely circles of radius 0.75, 1.5, 2.25, 3 with noise 0.08; E = 1, 0, 2/3, 1/3 from the innermost."""
    ring = _choice(4, n, generator)
    circle = _on_circle(2.0 * math.pi * _uniform(n, generator))
    points = 0.75 * (ring + 1.0).unsqueeze(-1) * circle + 0.08 * _normal(n, generator)
    return points, ring.new_tensor([1.0, 0.0, 2.0 / 3.0, 1.0 / 3.0])[ring.long()]


def checkerboard(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform on every other square of a 4x4 board over [-4, 4]²; E = 0, 1, 0, 1 by column from the left."""
    across = 4.0 * _uniform(n, generator) - 2.0
    odd_column = across.floor().remainder(2.0)
    up = _uniform(n, generator) - 2.0 * _choice(2, n, generator) + odd_column
    return 2.0 * torch.stack([across, up], -1), odd_column


def two_spirals(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two arms of one and a half turns, point-symmetric; E rises from 0 at the centre to 1 at the ends."""
    angle = 3.0 * math.pi * _uniform(n, generator).sqrt()
    thickness = 0.5 * torch.stack([_uniform(n, generator), _uniform(n, generator)], -1)
    arm = angle.unsqueeze(-1) * torch.stack([-angle.cos(), angle.sin()], -1) + thickness  # (n, 2)
    sign = 1.0 - 2.0 * _choice(2, n, generator)
    points = sign.unsqueeze(-1) * arm / 3.0 + 0.1 * _normal(n, generator)
    return points, (angle / (3.0 * math.pi)).clamp(0.0, 1.0)


DENSITIES: dict[str, Density] = {
    density.name: density
    for density in (
        Density("swissroll", "Swiss roll", swissroll),
        Density("8gaussians", "8 Gaussians", eight_gaussians),
        Density("moons", "Moons", moons),
        Density("rings", "Rings", rings),
        Density("checkerboard", "Checkerboard", checkerboard),
        Density("2spirals", "2 spirals", two_spirals),
    )
}


def find_density(name: str) -> Density:
    """Return the density called `name`. Raises ConfigError with suggestions."""
    if name not in DENSITIES:
        raise ConfigError(f"unknown density '{name}'; expected {', '.join(DENSITIES)}.{nearest(name, DENSITIES)}")
    return DENSITIES[name]


def tilted_sample(
    density: Density,
    n: int,
    inverse_temperature: float,
    generator: torch.Generator,
    max_draws: int = 100_000_000,
    lowest: float = 0.0,
) -> Tensor:
    """`n` exact, independent draws (n, 2) of p(x) ∝ q(x) exp(-beta E), by rejection sampling from q.

    A draw is accepted with probability exp(-beta (E - lowest)). Raises ConfigError if beta is negative or not finite,
    or if `max_draws` draws of q do not yield `n`; DataError if an energy is below `lowest`.
    """
    if not (inverse_temperature >= 0.0 and math.isfinite(inverse_temperature)):
        raise ConfigError(f"inverse_temperature is {inverse_temperature}; expected a finite number, at least 0")
    if n < 1:
        raise ConfigError(f"n is {n}; expected at least 1")
    if inverse_temperature == 0.0:
        return density.sample(n, generator)[0]
    accepted: list[Tensor] = []
    found = drawn = 0
    while found < n:
        if drawn >= max_draws:
            raise ConfigError(
                f"only {found} of {drawn} draws of '{density.name}' were accepted at inverse_temperature "
                f"{inverse_temperature:g}, expected {n}; lower it or raise max_draws"
            )
        points, energies = density.sample(CHUNK, generator)
        if not bool((energies >= lowest).all()):
            raise DataError(f"'{density.name}' has energies below {lowest:g}, or NaN; rejection needs a lower bound")
        # float64: a float32 uniform is 0 once in 2^24 draws, and 0 accepts any energy.
        u = torch.rand(CHUNK, generator=generator, device=generator.device, dtype=torch.float64)
        kept = points[u < (-inverse_temperature * (energies.double() - lowest)).exp()]
        accepted.append(kept)
        found, drawn = found + len(kept), drawn + CHUNK
    return torch.cat(accepted)[:n]


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on [0, 1), (n,)."""
    return torch.rand(n, generator=generator, device=generator.device)


def _normal(n: int, generator: torch.Generator) -> Tensor:
    """Standard normal, (n, 2)."""
    return torch.randn(n, 2, generator=generator, device=generator.device)


def _choice(count: int, n: int, generator: torch.Generator) -> Tensor:
    """Uniform on 0...count-1, as floats (n,)."""
    return torch.randint(count, (n,), generator=generator, device=generator.device).float()


def _on_circle(angle: Tensor) -> Tensor:
    """(n,) -> (n, 2) on the unit circle."""
    return torch.stack([angle.cos(), angle.sin()], -1)
