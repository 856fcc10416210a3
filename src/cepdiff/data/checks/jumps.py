"""Find jumps inside episodes without next observations: missing rows, or ends without a flag."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cepdiff.data.checks.findings import Finding, warning
from cepdiff.data.rl.arrays import BoolArray, FloatArray, RawArrays, first_rows
from cepdiff.data.rl.buffer import IntArray
from cepdiff.data.rl.episodes import Episodes

# A jump is this many times what 99.9% of the steps reach; in sound MuJoCo buffers and parts of them it is at most 7.5.
_FACTOR = 8.0
_USUAL = 0.999
# Fewer rows say too little about usual steps.
_MIN_ROWS = 1000
# Share of a dimension's variance that a linear fit must explain: positions, whose steps follow from velocities.
_EXPLAINED = 0.99
# Most dimensions for the fit, whose cost grows with their fourth power.
_MOST_DIMENSIONS = 64
# Rows are processed in parts of this many numbers, so that temporaries stay small.
_NUMBERS = 4_000_000

Wide = npt.NDArray[np.float64]


def jump_findings(raw: RawArrays, episodes: Episodes) -> Iterator[Finding]:
    """Yield a finding about steps that are far larger than usual, or far from what the velocities say."""
    rows = np.flatnonzero(~episodes.ends[:-1])
    moving = np.flatnonzero(raw.observations.max(axis=0) > raw.observations.min(axis=0))
    if raw.next_observations is not None or len(rows) < _MIN_ROWS or not len(moving):
        return
    parts = np.array_split(rows, -(-len(rows) * len(moving) // _NUMBERS))
    found = np.concatenate([part[_jumps(raw.observations, part, moving)] for part in parts])
    if len(found):
        message = f"the observation jumps to the next row inside an episode after {first_rows(found)}"
        handling = (
            "used as recorded: the critic bootstraps across the gap; set 'timeouts' there to 1 if rows are missing"
        )
        yield warning("jumps", f"{message}: rows are missing, or an end has no flag", handling)


def _jumps(observations: FloatArray, rows: IntArray, moving: IntArray) -> BoolArray:
    """Mask (M,) of the rows with a jump to the next one in one of the `moving` dimensions."""
    steps, middles = _steps(observations, rows, moving)
    sizes = [np.abs(steps)]
    if len(moving) <= _MOST_DIMENSIONS:
        weights, explained = _fit(steps, middles)
        sizes.append(np.abs(steps - middles @ weights)[:, explained])
    jumps = np.zeros(len(rows), dtype=np.bool_)
    for size in sizes:
        usual = np.quantile(size, _USUAL, axis=0)
        jumps |= ((size > _FACTOR * usual) & (usual > 0)).any(axis=1)
    return jumps


def _steps(observations: FloatArray, rows: IntArray, moving: IntArray) -> tuple[Wide, Wide]:
    """Steps (M, S) from the rows to the next ones, and standardised midpoints (M, S + 1) whose last column is 1."""
    now, after = (observations[np.ix_(place, moving)].astype(np.float64) for place in (rows, rows + 1))
    middles = (now + after) / 2
    middles -= middles.mean(axis=0)
    middles /= np.maximum(middles.std(axis=0), 1e-12)
    return after - now, np.concatenate([middles, np.ones((len(rows), 1))], axis=1)


def _fit(steps: Wide, middles: Wide) -> tuple[Wide, BoolArray]:
    """Weights (S + 1, S) of each dimension's step on the midpoints of the others, and the dimensions they explain."""
    gram, cross = middles.T @ middles, middles.T @ steps
    weights = np.zeros_like(cross)
    for dimension in range(steps.shape[1]):
        others = np.arange(len(gram)) != dimension
        weights[others, dimension] = np.linalg.lstsq(
            gram[np.ix_(others, others)], cross[others, dimension], rcond=1e-9
        )[0]
    left = (steps - middles @ weights).var(axis=0)
    return weights, left < (1 - _EXPLAINED) * steps.var(axis=0)
