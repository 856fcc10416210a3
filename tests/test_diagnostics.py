"""Diagnostics on modules with known answers: Gaussian behavior policies, linear values, exact guidance."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from cepdiff.data.rl.support_cache import SupportCache
from cepdiff.errors import ConfigError, DataError
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.policy.choice import choose_scale
from cepdiff.policy.diagnostics import Diagnostics, critic_values, diagnose, disagreement, draw_states
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.problems.offline.diagnostics_report import (
    diagnostic_scalars,
    log_diagnostics,
    plot_diagnostics,
)
from cepdiff.problems.offline.judge import offline_rows
from cepdiff.runs.logs import Logs, values_table
from gaussian_policy import (
    BETA,
    CRITIC,
    DIRECTION,
    SCALES,
    SCHEDULE,
    SLOPE,
    SPREAD,
    A,
    Data,
    K,
    N,
    Net,
    S,
    draw,
    make,
    run,
    values,
    variance,
)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, data: Data) -> SupportCache:
    return draw(tmp_path_factory.mktemp("support"), data, torch.arange(0, N, 2))


@pytest.fixture(scope="module")
def found(data: Data, cache: SupportCache) -> Diagnostics:
    return diagnose(make(), make(), CRITIC, data, cache, SCALES, seed=0, device="cpu", num_states=700)


# Measurements


def test_dataset_actions_of_the_behavior_policy_are_inside(found: Diagnostics, cache: SupportCache) -> None:
    assert found.num_states == 700
    assert found.data_inside == pytest.approx(0.95, abs=0.03)
    assert found.data_distance == pytest.approx(found.support_distance, rel=0.1)
    away = run(Data(shift=5.0), cache, num_states=700)
    assert away.data_inside < 0.1
    assert away.data_distance > 2 * found.data_distance


def test_statistics_of_q(found: Diagnostics) -> None:
    assert found.q_slope == pytest.approx(SLOPE, rel=1e-5)
    assert found.q_std_actions == pytest.approx(SLOPE * SPREAD, rel=0.05)
    assert found.q_std_states == pytest.approx(10.0, rel=0.1)
    assert found.q_disagreement == pytest.approx(0.0, abs=1e-5)  # the critics differ by a constant
    for percentiles in (found.q_data, found.q_support):
        assert percentiles["p50"] == pytest.approx(0.0, abs=1.0)
        assert percentiles["p5"] == pytest.approx(-16.4, abs=2.0)  # 1.64 standard deviations of 10
        assert list(percentiles) == ["p5", "p25", "p50", "p75", "p95"]
        assert sorted(percentiles.values()) == list(percentiles.values())


def test_disagreement_is_about_actions(data: Data, cache: SupportCache) -> None:
    """Critics ±w·a: advantages with standard deviation c, whose spread over the two critics is √2 |w·a - mean|."""
    sample = draw_states(data, cache, 700, 0, "cpu")

    def opposed(states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([actions @ DIRECTION, 7.0 - actions @ DIRECTION])

    critic = SoftmaxQCritic(S, A, lambda s, a: Net(opposed))
    mean_deviation = math.sqrt(2.0 / math.pi) * SPREAD * math.sqrt(1.0 - 1.0 / K)
    assert disagreement(critic_values(critic, sample)) == pytest.approx(math.sqrt(2.0) * mean_deviation, rel=0.03)
    alone = SoftmaxQCritic(S, A, lambda s, a: Net(lambda states, actions: opposed(states, actions)[:1]))
    assert disagreement(critic_values(alone, sample)) == 0.0


def test_norms_over_time_by_closed_form(found: Diagnostics) -> None:
    norms = found.norms
    assert len(norms.times) == 20
    assert norms.times[0] == 1.0
    assert norms.times[-1] > SCHEDULE.t_min
    chi = math.sqrt(2.0) * math.gamma(2.0) / math.gamma(1.5)  # mean norm of a 3-D standard normal
    for time, guidance, score, ratio in zip(norms.times, norms.guidance, norms.score, norms.ratios, strict=True):
        t = torch.tensor(time)
        exact = BETA * SLOPE * float(SCHEDULE.alpha(t)) * SPREAD**2 / float(variance(t))
        assert guidance == pytest.approx(exact, rel=1e-4)
        assert score == pytest.approx(chi / float(variance(t).sqrt()), rel=0.06)
        assert ratio == pytest.approx(guidance / score)


def test_evidence_by_closed_form(found: Diagnostics) -> None:
    """p ∝ q exp(s beta Q) is the behavior policy shifted by s beta c² ∇Q: here s standard deviations."""
    assert [e.guidance_scale for e in found.scales] == SCALES
    unguided = found.scales[0]
    assert unguided.inside_support == pytest.approx(0.95, abs=0.03)
    assert unguided.distance == pytest.approx(found.support_distance, rel=0.1)
    for e in found.scales:
        assert e.gain == pytest.approx(e.guidance_scale * SPREAD * SLOPE, rel=0.02, abs=1e-6)
        assert e.value == pytest.approx(unguided.value + e.gain)
        assert e.twin_gap == pytest.approx(0.25, abs=1e-4)
        assert e.nearest_value <= e.value + 0.5 * SPREAD * SLOPE
        assert e.penalized_value == pytest.approx(e.nearest_value - SLOPE * e.distance, abs=1e-3)
        assert e.penalized_value < min(e.value, e.nearest_value)  # a lower bound, as the critic is linear in the action
    shares = [e.inside_support for e in found.scales]
    assert all(after < before + 0.01 for before, after in itertools.pairwise(shares))
    assert shares[SCALES.index(4.0)] < 0.4
    assert shares[SCALES.index(8.0)] < 0.01
    # Inside the support the best actions are about 1.8 standard deviations from the mean.
    best = found.scales[-1].nearest_value - unguided.value
    assert best == pytest.approx(1.8 * SPREAD * SLOPE, rel=0.15)


def test_scale_0_is_the_reference_also_where_it_is_not_asked_for(found: Diagnostics, data: Data, cache: Any) -> None:
    few = run(data, cache, scales=[4, 1], num_states=700)
    assert "diagnostics/value/s=4.0" in diagnostic_scalars(few)  # like other metrics of a scale, also for integers
    assert few.scales == [e for e in found.scales if e.guidance_scale in (1.0, 4.0)]


# The choice


def test_scales_that_leave_the_support_are_rejected(found: Diagnostics) -> None:
    """The critic promises most at the largest scale, but the choice rejects it."""
    assert max(found.scales, key=lambda e: e.value).guidance_scale == 8.0
    assert found.offline_choice in (1.0, 2.0)
    assert found.inside_choice == 1.0
    assert (found.offline_choice, found.choice_reason) == choose_scale(found.scales, found.ranking)
    (e,) = (e for e in found.scales if e.guidance_scale == found.offline_choice)
    shown = {row.metric: row.value for row in offline_rows(found) if row.scale == found.offline_choice}
    assert shown == {"offline_value": e.penalized_value, "inside_support": e.inside_support}


def test_a_guidance_that_pushes_nowhere_useful_leaves_the_behavior_policy(data: Data, cache: SupportCache) -> None:
    """Guidance perpendicular to the value's gradient gains nothing but distance."""
    across = torch.tensor([1.0, 2.0, 0.0]) / math.sqrt(5.0)
    assert float(across @ DIRECTION) == pytest.approx(0.0, abs=1e-6)
    wrong = make(lambda x, t, s: 100.0 * (x @ across))
    found = diagnose(wrong, wrong, CRITIC, data, cache, [0.0, 1.0, 3.0], seed=0, device="cpu", num_states=300)
    assert found.scales[-1].inside_support < 0.05
    assert found.offline_choice == 0.0
    assert found.inside_choice == 0.0


# The sample


def test_states_have_support_and_are_those_of_the_buffer(data: Data, cache: SupportCache) -> None:
    sample = draw_states(data, cache, 100, 0, "cpu")
    assert sample.ids.tolist() == sorted(set(sample.ids.tolist()))
    assert set((sample.ids % 2).tolist()) == {0}
    assert torch.equal(sample.actions, data.buffer.actions[sample.ids])
    assert torch.equal(sample.states, data.normalize(data.buffer.states[sample.ids]))
    assert torch.equal(sample.support, torch.from_numpy(np.array(cache.actions))[sample.ids // 2])
    assert len(draw_states(data, cache, 10**6, 0, "cpu").ids) == N // 2
    assert set(draw_states(data, cache, 50, 0, "cpu").ids.tolist()) < set(sample.ids.tolist())
    assert not torch.equal(draw_states(data, cache, 100, 1, "cpu").ids, sample.ids)


def test_it_is_a_function_of_the_seed(data: Data, cache: SupportCache) -> None:
    first = run(data, cache)
    torch.manual_seed(123)
    assert run(data, cache) == first
    assert run(data, cache, seed=1) != first


def test_guided_actions_are_bounded_and_scale_0_needs_no_energy(data: Data, cache: SupportCache) -> None:
    def broken(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise AssertionError("no gradient is wanted")

    states = draw_states(data, cache, 20, 0, "cpu").states
    noise = torch.randn(20, A, generator=torch.Generator().manual_seed(0))
    unguided = make(broken).sample(states, noise, torch.zeros(20))
    strong = make().sample(states, noise, torch.full((20,), 100.0))
    assert float(unguided.abs().max()) < 0.6
    assert float(strong.abs().max()) == 1.0


class BestOf(GuidedSampler):
    """The best of four samples by value; needs four times the noise."""

    @property
    def noise_size(self) -> int:
        return 4 * self.size

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        some = torch.stack([super(BestOf, self).sample(condition, part, guidance_scale) for part in noise.split(A, -1)])
        best = values(condition, some).amin(0).argmax(0)  # (4, M) -> (M,)
        return some[best, torch.arange(len(best))]


def test_actions_are_those_of_the_runs_own_sampler(data: Data, cache: SupportCache, found: Diagnostics) -> None:
    """The best of four normal numbers is 1.03 standard deviations above the mean; the networks' norms are unchanged."""
    own = diagnose(make(kind=BestOf), make(), CRITIC, data, cache, SCALES, seed=0, device="cpu", num_states=700)
    expected = found.scales[0].value + 1.029 * SPREAD * SLOPE
    assert own.scales[0].value == pytest.approx(expected, abs=0.15 * SPREAD * SLOPE)
    assert own.scales[2].gain == pytest.approx(SPREAD * SLOPE, rel=0.05)
    assert own.norms == found.norms
    assert (own.q_data, own.q_support, own.q_slope) == (found.q_data, found.q_support, found.q_slope)


def test_what_cannot_be_diagnosed_is_refused(data: Data, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row"):
        run(data, draw(tmp_path / "none", data, torch.arange(0)))
    with pytest.raises(ConfigError, match="at least 2"):
        run(data, draw(tmp_path / "one", data, torch.arange(20), num_actions=1))
    assert run(data, draw(tmp_path / "two", data, torch.arange(20), num_actions=2)).num_states == 20


# Files


def test_files_and_logs(found: Diagnostics, tmp_path: Path) -> None:
    figure = tmp_path / "diagnostics.png"
    plot_diagnostics(found, figure, "a title")
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    assert figure.read_bytes().startswith(b"\x89PNG")
    log_diagnostics(Logs(tmp_path / "logs"), found, figure, step=500)
    events = EventAccumulator(str(tmp_path / "logs" / "diagnostics")).Reload()
    curves = {"diagnostics/guidance_norm", "diagnostics/score_norm"}
    scalars = diagnostic_scalars(found)
    assert set(events.Tags()["scalars"]) == curves
    assert events.Tags()["images"] == ["diagnostics"]
    (event,) = events.Tensors("diagnostics/text_summary")
    table = event.tensor_proto.string_val[0].decode()
    assert (event.step, table) == (500, values_table(scalars))
    for name, value in scalars.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {name.partition('/s=')[0]} |"))
        assert f" {value:.4g} |" in row
    assert scalars["diagnostics/value/s=2.0"] == found.scales[3].value
    assert scalars["diagnostics/q_data_p95"] == found.q_data["p95"]
    assert found.ranking.return_agreement is not None
    assert scalars["diagnostics/return_agreement_error"] == found.ranking.return_agreement.error
    assert found.to_dict()["ranking"]["critic_agreement"]["value"] == scalars["diagnostics/critic_agreement"]
    assert scalars["diagnostics/guidance_to_score"] == max(found.norms.ratios)
    for curve in curves:
        assert [event.step for event in events.Scalars(curve)] == [round(1000 * t) for t in found.norms.times]


def test_every_metric_is_in_the_glossary(found: Diagnostics) -> None:
    page = (Path(__file__).parents[1] / "docs/glossary.md").read_text()
    names = {name.split("=")[0] for name in diagnostic_scalars(found)}
    names |= {"diagnostics/guidance_norm", "diagnostics/score_norm"}
    assert sorted(name for name in names if f"`{name}" not in page) == []
