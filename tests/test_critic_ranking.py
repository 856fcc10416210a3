"""Tests of a critic's ranking on a buffer whose advantages are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.returns import known_returns
from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.energy.ranking import Estimate
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.diagnostics import Diagnostics, diagnose
from cepdiff.policy.ranking import Ranking, rows_to_test
from cepdiff.problems.offline.diagnostics_report import diagnostic_scalars
from cepdiff.problems.offline.report import policy_row, policy_table
from cepdiff.runs.results import Results, Row
from gaussian_policy import SCALES, SLOPE, A, Data, N, Net, S, draw, make, run, values


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, data: Data) -> SupportCache:
    return draw(tmp_path_factory.mktemp("support"), data, torch.arange(0, N, 2))


@pytest.fixture(scope="module")
def found(data: Data, cache: SupportCache) -> Diagnostics:
    return run(data, cache, scales=SCALES, num_states=700)


def test_a_critic_agrees_with_the_returns_that_follow(found: Diagnostics) -> None:
    """A step's reward is its advantage; the window, half an episode, adds the rewards of 24 other steps."""
    ranking = found.ranking
    assert ranking.return_agreement is not None
    assert ranking.critic_agreement is not None
    exact = sum(0.99 ** (2 * k) for k in range(25)) ** -0.5
    assert ranking.return_agreement.value == pytest.approx(exact, abs=3 * ranking.return_agreement.error)
    assert ranking.return_agreement.error < 0.08
    assert ranking.return_agreement.above_chance
    assert ranking.critic_agreement.value == pytest.approx(1.0, abs=1e-4)  # up to ties by rounding
    assert ranking.shared_targets
    assert not ranking.held_out  # half of every episode's rows have support actions
    assert str(ranking) == (
        f"the critic's ranking of actions, by chance 0: return agreement {ranking.return_agreement} (episodes it was "
        f"trained on), critic agreement {ranking.critic_agreement} (upper bound: the critics share their targets)"
    )


def test_episodes_without_support_actions_are_held_out(data: Data, tmp_path: Path) -> None:
    some = draw(tmp_path / "some", data, torch.arange(500), num_actions=2)  # 10 of 30 episodes
    rows, returns, held_out = rows_to_test(data, some, 0.99, 0)
    assert held_out
    assert set(data.buffer.episode_index[rows].tolist()) == set(range(10, 30))
    assert int((rows % 50).max()) == 24  # the window, half an episode, ends before the cut
    assert torch.equal(returns, known_returns(data.buffer, data.rewards(), 0.99)[0][rows])
    ranking = run(data, some).ranking
    assert ranking.return_agreement is not None
    assert ranking.return_agreement.above_chance
    assert "(held-out episodes)" in str(ranking)

    class AllRows(SoftmaxQCritic):
        batch_fields = ("observations", "actions", "rewards", "terminals", "next_observations")

    critic = AllRows(S, A, lambda s, a: Net(values))
    assert not diagnose(make(), make(), critic, data, some, [0.0], seed=0, device="cpu", num_states=64).ranking.held_out


@pytest.mark.parametrize(("slope", "why"), [(-SLOPE, "is below chance"), (0.0, "is not above chance")])
def test_returns_that_contradict_the_critic(slope: float, why: str, cache: SupportCache) -> None:
    found = run(Data(slope=slope), cache, scales=SCALES, num_states=700)
    assert found.offline_choice == 0.0
    assert f"scale 0, because return agreement {why}" in found.choice_reason
    assert found.ranking.not_above_chance == ["return_agreement"]


def test_few_episodes_and_shuffled_rows_are_no_test(data: Data, tmp_path: Path) -> None:
    small = Data()
    small._buffer = small.buffer.from_arrays(
        RawArrays(
            observations=small.buffer.observations.numpy()[:400],
            actions=small.buffer.actions.numpy()[:400],
            rewards=small.buffer.rewards.numpy()[:400],
            terminals=np.zeros(400, bool),
            timeouts=np.arange(400) % 50 == 49,  # 8 episodes
        )
    )
    few = draw(tmp_path / "few", small, torch.arange(400), num_actions=2)
    ranking = run(small, few).ranking
    assert ranking == Ranking()
    assert str(ranking) == "the critic's ranking of actions is not tested: fewer than 10 episodes with known returns"
    shuffled = Data()
    shuffled._buffer = replace(shuffled.buffer, chained=False)
    some = draw(tmp_path / "some", data, torch.arange(0, N, 5), num_actions=2)
    assert run(shuffled, some).ranking.return_agreement is None
    assert run(data, some).ranking.return_agreement is not None


def test_independent_critics_and_one_critic(data: Data, cache: SupportCache) -> None:
    alone = SoftmaxQCritic(S, A, lambda s, a: Net(lambda states, actions: values(states, actions)[:1]))
    found = diagnose(make(), make(), alone, data, cache, [0.0, 1.0], seed=0, device="cpu", num_states=300)
    assert found.ranking.critic_agreement is None
    assert "critic agreement" not in str(found.ranking)
    assert "diagnostics/critic_agreement" not in diagnostic_scalars(found)

    def opposed(states: Tensor, actions: Tensor) -> Tensor:
        up, down = values(states, actions)
        return torch.stack([up, -down])

    against = SoftmaxQCritic(S, A, lambda s, a: Net(opposed), independent_targets=True)
    found = diagnose(make(), make(), against, data, cache, [0.0, 1.0], seed=0, device="cpu", num_states=300)
    assert found.ranking.not_above_chance[-1] == "critic_agreement"


def test_rankings_are_columns_of_the_report() -> None:
    """A run of an earlier version has no ranking."""
    good, chance = Estimate(0.2, 0.01), Estimate(0.01, 0.02)
    rankings = {"a": Ranking(good, Estimate(0.5, 0.3)), "b": Ranking(chance), "c": None}
    rows = []
    for task, ranking in rankings.items():
        about = {"offline_choice": 0.0, **({} if ranking is None else {"ranking": ranking.to_dict()})}
        scores = [Row(0.0, "normalized_score", 1.0), Row(1.0, "normalized_score", 3.0)]
        rows.append(policy_row(Results("problem", task, 0, "", scores, {}, about=about)))
    table = policy_table(rows, None)
    assert [row["at_chance"] for row in rows] == [[], ["return_agreement"], []]
    assert [line[9:] for line in table.lines] == [
        ["critic agreement", "return agreement"],
        ["0.500 ± 0.300", "0.200 ± 0.010"],
        ["-", "0.010 ± 0.020"],
        ["-", "-"],
    ]
    assert table.notes == [
        "The critic's ranking of actions does not exceed chance in 1 of 3 runs: their offline choice is scale 0."
    ]
    assert len(policy_table(rows[2:], None).lines[0]) == 9
