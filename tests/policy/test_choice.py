"""The rules that choose a guidance scale without an environment, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cepdiff.energy.ranking import Estimate
from cepdiff.policy.choice import ScaleEvidence, choose_inside, choose_scale
from cepdiff.policy.ranking import Ranking


def evidence(scale: float, value: float, inside: float, penalized: float) -> ScaleEvidence:
    return ScaleEvidence(scale, value, 0.0, inside, 0.1, value, penalized, 0.0)


def test_rules_by_hand() -> None:
    table = [evidence(0.0, 1.0, 0.95, 1.0), evidence(1.0, 2.0, 0.86, 1.5), evidence(2.0, 3.0, 0.85, 1.5)]
    chosen = 1.0, "offline choice: scale 1, with the highest offline value"
    assert choose_scale(table, Ranking()) == chosen  # the smaller of two equal scales
    assert choose_scale(table[::-1], Ranking(Estimate(0.2, 0.1), Estimate(0.5, 0.1), shared_targets=False)) == chosen
    assert choose_inside(table, 0.95) == 1.0  # needs 0.855
    assert choose_inside(table, 0.95, kept=0.8) == 2.0
    assert choose_inside([replace(e, value=5.0) for e in table], 0.95) == 0.0
    assert choose_inside(table[1:], 0.99) == 1.0  # no scale is inside enough: the nearest one


GOOD, CHANCE, BACKWARDS = Estimate(0.2, 0.1), Estimate(0.2, 0.2), Estimate(-0.2, 0.05)
REFUSED = [
    (Ranking(CHANCE, GOOD), "return agreement is not above chance"),
    (
        Ranking(CHANCE, CHANCE, shared_targets=False),
        "return agreement is not above chance and critic agreement is not above chance",
    ),
    (Ranking(GOOD, CHANCE, shared_targets=False), "critic agreement is not above chance"),
    (Ranking(BACKWARDS, GOOD), "return agreement is below chance"),
    (
        Ranking(GOOD, GOOD, learned_returns=True),
        "the critic learned all returns, and stages.support.max_rows keeps none to test its ranking on",
    ),
]


@pytest.mark.parametrize(("ranking", "why"), REFUSED)
def test_a_critic_that_cannot_rank_leaves_scale_0(ranking: Ranking, why: str) -> None:
    table = [evidence(0.0, 1.0, 0.95, 1.0), evidence(1.0, 2.0, 0.86, 1.5)]
    assert choose_scale(table, ranking) == (0.0, f"offline choice: scale 0, because {why}")
    assert choose_scale(table[1:], ranking) == (1.0, f"offline choice: scale 1, because {why}")  # 0 is not judged
    assert choose_scale(table, Ranking(GOOD, CHANCE))[0] == 1.0  # critics that share their targets are no test
    assert choose_scale(table, Ranking(GOOD, None, learned_returns=True, held_out=True))[0] == 1.0
