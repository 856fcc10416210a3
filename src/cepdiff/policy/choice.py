"""The choice of a guidance scale without an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cepdiff.policy.ranking import Ranking

# `choose_inside` asks for this fraction of the inside share that unguided samples have.
KEPT_INSIDE = 0.9


@dataclass(frozen=True)
class ScaleEvidence:
    """Guided actions at one scale, means over the states; the noise is the same at every scale.

    Args:
        guidance_scale: s.
        value: Q of the guided actions, in scaled reward.
        gain: `value` minus that of scale 0.
        inside_support: share inside the support, see `energy.support_distance.inside_support`.
        distance: to the nearest support action.
        nearest_value: Q of the support action nearest to each guided action.
        penalized_value: `nearest_value` minus the critic's slope times the distance: the lowest value that a critic of
            this slope allows there, given its values at the support actions; never above `nearest_value`.
        twin_gap: largest minus smallest critic at the guided actions.
        effective_sample_size: of the weighted candidates of an action; None if the sampler has none.
    """

    guidance_scale: float
    value: float
    gain: float
    inside_support: float
    distance: float
    nearest_value: float
    penalized_value: float
    twin_gap: float
    effective_sample_size: float | None = None


def choose_scale(evidence: Sequence[ScaleEvidence], ranking: Ranking) -> tuple[float, str]:
    """The offline choice and its reason: the scale with the highest `penalized_value`, the smallest among equals.

    The critic's value of guided actions keeps growing with the scale as long as its errors do. It is therefore used at
    support actions only, and an action away from them gets the lowest value that the critic's slope allows. The choice
    is scale 0, the behavior policy, if a test of the critic's ranking is not above chance, or if the critic was trained
    on the returns that would test it.
    """
    lowest = min(e.guidance_scale for e in evidence)
    if failed := ranking.not_above_chance:
        where = {name: "below" if ranking.figures[name].below_chance else "not above" for name in failed}
        why = " and ".join(f"{name.replace('_', ' ')} is {place} chance" for name, place in where.items())
        return lowest, f"offline choice: scale {lowest:g}, because {why}"
    if ranking.is_untested:
        why = "the critic learned all returns, and stages.support.max_rows keeps none to test its ranking on"
        return lowest, f"offline choice: scale {lowest:g}, because {why}"
    best = max(evidence, key=lambda e: (e.penalized_value, -e.guidance_scale)).guidance_scale
    return best, f"offline choice: scale {best:g}, with the highest offline value"


def choose_inside(evidence: Sequence[ScaleEvidence], unguided_inside: float, kept: float = KEPT_INSIDE) -> float:
    """A bolder choice: the highest value among scales whose inside share is at least `kept` times the unguided one.

    The smallest scale among equals; if no scale stays inside, the one with the largest share.
    """
    inside = [e for e in evidence if e.inside_support >= kept * unguided_inside]
    if not inside:
        return max(evidence, key=lambda e: (e.inside_support, -e.guidance_scale)).guidance_scale
    return max(inside, key=lambda e: (e.value, -e.guidance_scale)).guidance_scale
