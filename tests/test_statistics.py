"""Statistics over tasks and seeds against hand-computed numbers, and bootstrap intervals against all resamples."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cepdiff.runs import statistics
from cepdiff.runs.statistics import (
    Array,
    Estimate,
    bootstrap_note,
    estimate,
    estimates,
    improvement,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    profile,
)

# Three tasks, three seeds each.
A = [np.array([10.0, 20.0, 30.0]), np.array([40.0, 50.0, 60.0]), np.array([70.0, 80.0, 120.0])]
B = [np.array([10.0, 20.0, 60.0]), np.array([20.0, 30.0, 40.0]), np.array([90.0, 100.0, 110.0])]


def test_interquartile_mean() -> None:
    # Nine runs: two are left out at each end.
    assert interquartile_mean(A) == pytest.approx((30 + 40 + 50 + 60 + 70) / 5)
    assert interquartile_mean(B) == pytest.approx((20 + 30 + 40 + 60 + 90) / 5)
    assert interquartile_mean([np.array([1.0, 5.0]), np.array([3.0])]) == 3.0  # fewer than four runs: the mean


@pytest.mark.parametrize("seeds", range(1, 6))
def test_interquartile_mean_is_the_trimmed_mean_of_scipy(seeds: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = list(np.random.default_rng(seeds).normal(size=(3, seeds)))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(np.concatenate(scores), 0.25))


def test_median_and_mean_over_tasks() -> None:
    assert median(A) == 50.0  # of 20, 50, 90
    assert median(B) == 30.0  # of 30, 30, 100
    assert mean(A) == mean(B) == pytest.approx(160 / 3)
    uneven = [np.array([0.0]), np.array([30.0, 60.0, 90.0])]
    assert mean(uneven) == 30.0  # a task weighs the same whatever its number of seeds
    assert interquartile_mean(uneven) == 45.0  # a run weighs the same


def test_optimality_gap() -> None:
    assert optimality_gap(A) == pytest.approx((80 + 50 + (30 + 20 + 0) / 3) / 3)  # 120 is no merit
    assert optimality_gap(B) == pytest.approx((70 + 70 + (10 + 0 + 0) / 3) / 3)


def test_probability_of_improvement() -> None:
    # Pairs won, ties as a half: 4 of 9, 8.5 of 9 and 3 of 9.
    assert improvement(A, B) == pytest.approx(15.5 / 27)
    assert improvement(B, A) == pytest.approx(1 - 15.5 / 27)
    assert improvement(A, A) == 0.5
    assert improvement([np.array([2.0])], [np.array([1.0, 1.0, 2.0, 3.0])]) == pytest.approx(2.5 / 4)  # unequal seeds


def test_performance_profile() -> None:
    thresholds = np.array([0.0, 50.0, 60.0, 119.0, 120.0])
    assert profile(A, thresholds).tolist() == pytest.approx([1.0, 4 / 9, 3 / 9, 1 / 9, 0.0])  # above, not equal
    assert profile(B, thresholds).tolist() == pytest.approx([1.0, 4 / 9, 3 / 9, 0.0, 0.0])


def all_resamples(scores: list[Array]) -> list[Array]:
    """Every resample of every task, (R, n) each, in which resample r is the same draw for all tasks."""
    draws = [list(product(task, repeat=len(task))) for task in scores]
    chosen = list(product(*draws))
    return [np.array([draw[task] for draw in chosen]) for task in range(len(scores))]


@pytest.mark.parametrize("name", statistics.STATISTICS)
def test_intervals_are_those_of_all_resamples(name: str) -> None:
    pytest.importorskip("scipy")
    exact = np.quantile(statistics.STATISTICS[name](all_resamples(A)), [0.025, 0.975])  # 27^3 resamples
    found = estimates(A)[name]
    assert found.value == statistics.STATISTICS[name](A)
    assert (found.low, found.high) == pytest.approx(tuple(exact), abs=1.2)  # the resamples' means are 1.1 apart


def test_the_bootstrap_is_stratified_by_task() -> None:
    pytest.importorskip("scipy")
    flat = [np.zeros(2), np.full(2, 100.0)]  # no spread within a task: none of the mean, whatever the tasks
    assert estimates(flat)["mean"] == Estimate(50.0, 50.0, 50.0)
    wide = estimates([np.array([0.0, 100.0])])["mean"]
    assert wide == Estimate(50.0, 0.0, 100.0)  # 0 and 100 have a probability of 1/4 each


def test_both_settings_are_resampled_in_an_improvement() -> None:
    pytest.importorskip("scipy")

    def of_pair(x: Array, y: Array) -> Array:
        return improvement([x], [y])

    varying, constant = np.array([0.0, 100.0]), np.full(2, 50.0)
    for pair in ([varying, constant], [constant, varying]):
        assert estimate(of_pair, pair) == [Estimate(0.5, 0.0, 1.0)]


def test_intervals_are_reproducible() -> None:
    pytest.importorskip("scipy")
    assert estimates(A) == estimates(A)
    thresholds = np.linspace(0, 100, 5)
    (first, second) = (estimate(lambda *tasks: profile(tasks, thresholds), A) for _ in range(2))
    assert first == second
    assert len(first) == 5
    assert [here.value for here in first] == profile(A, thresholds).tolist()


def test_one_seed_has_no_interval() -> None:
    alone = [A[0], A[1], A[2][:1]]
    assert estimates(alone)["mean"] == Estimate(pytest.approx(140 / 3))
    assert Estimate(49.06).text(".1f") == "49.1 [-, -]"
    assert Estimate(49.06, 1.0, 2.0).text(".1f") == "49.1 [1.0, 2.0]"
    assert bootstrap_note([alone]).startswith("No intervals: a task has one seed")
    assert bootstrap_note([A]).endswith("10,000 resamples, seed 0, percentiles (Agarwal et al. 2021).")
    assert "None where a task has one seed" in bootstrap_note([A, alone])


def test_without_scipy_there_are_values_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "find_spec", lambda name: None)
    assert estimates(A)["median"] == Estimate(50.0)
    note = bootstrap_note([A])
    assert note.startswith("No intervals: the bootstrap needs the extra 'statistics': pip install ")
    assert note.endswith('[statistics]".')
