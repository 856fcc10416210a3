"""Score arithmetic against values computed by hand."""

import json
import math
import random

import pytest

from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import (
    OfflineScore,
    Reference,
    best_row,
    format_table,
    normalized_score,
    offline_regret,
    plot_scores,
    read_scores,
    summarize,
    with_offline,
    write_scores,
)

# Scale 2: mean 6, sample variance ((-4)² + 0² + 4²) / 2 = 16, standard error 4 / sqrt(3).
RESULTS = [
    EpisodeResult(index, scale, value, 10, False)
    for scale, values in {2.0: (2.0, 6.0, 10.0), 0.0: (-3.0, 1.0, -1.0), 1.0: (5.0,)}.items()
    for index, value in enumerate(values)
]

EVIDENCE = [OfflineScore(0.0, 95.0, 0.95, False), OfflineScore(1.0, 97.1234, 0.5, True)]


def test_normalized_score():
    assert normalized_score(-20.0, -20.0, 30.0) == 0
    assert normalized_score(30.0, -20.0, 30.0) == 100
    assert normalized_score(-10.0, -20.0, 30.0) == 20


def test_summary_by_hand():
    behavior, exact, strong = summarize(RESULTS, Reference(-4.0, 16.0))
    assert [behavior.guidance_scale, exact.guidance_scale, strong.guidance_scale] == [0.0, 1.0, 2.0]
    assert (behavior.episodes, behavior.mean_return, behavior.normalized_score) == (3, -1.0, 15.0)
    assert behavior.standard_error == pytest.approx(2 / math.sqrt(3))
    assert (exact.episodes, exact.mean_return, exact.standard_error) == (1, 5.0, 0.0)
    assert (strong.mean_return, strong.normalized_score) == (6.0, 50.0)
    assert strong.standard_error == pytest.approx(4 / math.sqrt(3))
    assert strong.normalized_standard_error == pytest.approx(20 / math.sqrt(3))


def test_order_of_results_does_not_matter():
    results = [EpisodeResult(i, 0.0, math.exp(-i), 1, False) for i in range(50)]
    mixed = random.Random(0).sample(results, len(results))
    assert summarize(mixed, None) == summarize(results, None)


def test_without_reference():
    rows = summarize(RESULTS, None)
    assert {row.normalized_score for row in rows} == {None}
    assert {row.normalized_standard_error for row in rows} == {None}
    assert summarize([], None) == []


def test_table_is_aligned_and_marked():
    lines = format_table(summarize(RESULTS, Reference(-4.0, 16.0))).splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("behavior policy")
    assert lines[3].endswith("best")
    assert "15.0 ± 5.8" in lines[1]
    assert "best" not in lines[1] + lines[2]
    assert lines[1].index("±") == lines[3].index("±")
    only = format_table(summarize([RESULTS[3]], None))
    assert only.splitlines()[1].endswith("-  behavior policy, best")


def test_scores_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    write_scores(path, "a-task", summarize(RESULTS, None), {"seed": 3, "task": "not this"})
    content = json.loads(path.read_text())
    assert list(content) == ["task", "scores", "seed"]
    assert content["task"] == "a-task"
    assert content["scores"][1] == {
        "guidance_scale": 1.0,
        "episodes": 1,
        "mean_return": 5.0,
        "standard_error": 0.0,
        "normalized_score": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="Out of range"):
        write_scores(path, "a-task", summarize([EpisodeResult(0, 0.0, math.nan, 1, False)], None))
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


@pytest.mark.parametrize("reference", [None, Reference(-4.0, 16.0)])
def test_figure(tmp_path, reference):
    plot_scores(summarize(RESULTS, reference), tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


# Offline evidence


def test_table_without_evidence_looks_as_ever():
    lines = [
        "guidance scale  episodes   mean return  normalized score",
        "             0         3  -1.00 ± 1.15        15.0 ± 5.8  behavior policy",
        "             1         1   5.00 ± 0.00        45.0 ± 0.0",
        "             2         3   6.00 ± 2.31       50.0 ± 11.5  best",
    ]
    rows = summarize(RESULTS, Reference(-4.0, 16.0))
    assert format_table(rows).splitlines() == lines
    assert format_table(with_offline(rows, [])).splitlines() == lines
    assert format_table([]) == "no episodes"


def test_evidence_stands_beside_the_rollouts():
    rows = with_offline(summarize(RESULTS, Reference(-4.0, 16.0)), EVIDENCE)
    assert format_table(rows).splitlines() == [
        "guidance scale  episodes   mean return  normalized score  offline value  inside support",
        "             0         3  -1.00 ± 1.15        15.0 ± 5.8         95.000             95%  behavior policy",
        "             1         1   5.00 ± 0.00        45.0 ± 0.0         97.123             50%  offline choice",
        "             2         3   6.00 ± 2.31       50.0 ± 11.5              -               -  best",
    ]
    assert [row.offline_value for row in rows] == [95.0, 97.1234, None]
    assert offline_regret(rows) == 5.0
    better = [OfflineScore(2.0, 1.0, 1.0, True)]
    assert format_table(with_offline(rows, better)).endswith("best, offline choice")
    assert offline_regret(with_offline(rows, better)) == 0.0
    assert [row.offline_value for row in with_offline(rows, better)] == [None, None, 1.0]


def test_table_without_any_rollout():
    rows = with_offline([], EVIDENCE[::-1])
    assert format_table(rows).splitlines() == [
        "guidance scale  offline value  inside support",
        "             0         95.000             95%  behavior policy",
        "             1         97.123             50%  offline choice",
    ]
    assert {row.episodes for row in rows} == {0}
    assert offline_regret(rows) is None


def test_regret_is_in_returns_where_no_reference_is_known():
    rows = summarize(RESULTS, None)
    assert offline_regret(rows) is None
    assert offline_regret(with_offline(rows, EVIDENCE)) == 1.0
    assert offline_regret(with_offline(rows, [OfflineScore(7.0, 0.0, 0.0, True)])) is None  # not rolled out


def test_a_row_without_episodes_is_never_the_best():
    rows = with_offline(summarize(RESULTS, Reference(-4.0, 16.0)), [OfflineScore(9.0, 99.0, 1.0, True)])
    assert best_row(rows).guidance_scale == 2.0
    assert format_table(rows).splitlines()[-1] == (
        "             9         0             -                 -         99.000            100%  offline choice"
    )


@pytest.mark.parametrize("reference", [None, Reference(-4.0, 16.0)])
def test_scores_file_keeps_the_evidence(tmp_path, reference):
    path = tmp_path / "scores.json"
    for rows in (
        summarize(RESULTS, reference),
        with_offline(summarize(RESULTS, reference), [*EVIDENCE, OfflineScore(9.0, 99.0, 1.0, False)]),
        with_offline([], EVIDENCE),
    ):
        write_scores(path, "a-task", rows)
        found = read_scores(path, reference)
        assert format_table(found) == format_table(rows)
        assert [(r.offline_value, r.inside_support, r.offline_choice) for r in found] == [
            (r.offline_value, r.inside_support, r.offline_choice) for r in rows
        ]
    assert json.loads(path.read_text())["scores"][1] == {
        "guidance_scale": 1.0,
        "episodes": 0,
        "mean_return": None,
        "standard_error": None,
        "normalized_score": None,
        "offline_value": 97.1234,
        "inside_support": 0.5,
        "offline_choice": True,
    }


@pytest.mark.parametrize("results", [[], RESULTS])
def test_figure_with_evidence(tmp_path, results):
    rows = with_offline(summarize(results, None), [*EVIDENCE, OfflineScore(9.0, 99.0, 1.0, False)])
    plot_scores(rows, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
