"""Score arithmetic against values computed by hand, and the results and figures made from it."""

import json
import math
import random

import pytest
from matplotlib.image import imread

from cepdiff.errors import RunError
from cepdiff.policy.choice import ScaleEvidence
from cepdiff.problems.offline.judge import COLUMNS, marks, no_best, offline_rows, score_rows
from cepdiff.problems.offline.report import plot_scores, policy_row
from cepdiff.rollout.evaluation import gather_results
from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import Reference, ScoreRow, best_row, normalized_score, score_table, summarize
from cepdiff.runs.results import Results

# Scale 2: mean 6, sample variance ((-4)² + 0² + 4²) / 2 = 16, standard error 4 / sqrt(3).
RESULTS = [
    EpisodeResult(index, scale, value, 10, False)
    for scale, values in {2.0: (2.0, 6.0, 10.0), 0.0: (-3.0, 1.0, -1.0), 1.0: (5.0,)}.items()
    for index, value in enumerate(values)
]
REFERENCE = Reference(-4.0, 16.0)


class Found:
    """The part of the diagnostics that the results use."""

    def __init__(self, *scales):
        self.scales = [ScaleEvidence(scale, 0.0, 0.0, inside, 0.0, 0.0, value, 0.0) for scale, value, inside in scales]


EVIDENCE = Found((0.0, 95.0, 0.95), (1.0, 97.1234, 0.5))


def results(rows, evidence=None, choice=None):
    """Results of a run with these scores and this evidence."""
    scales = sorted({row.guidance_scale for row in rows} | {e.guidance_scale for e in (evidence or Found()).scales})
    found = [*score_rows(rows), *([] if evidence is None else offline_rows(evidence))]
    about = {} if choice is None else {"offline_choice": choice}
    return Results("problem", "a-task", 3, "", found, COLUMNS, marks=marks(rows, scales, choice), about=about)


def lines_of(found):
    return found.table().text().splitlines()


def test_normalized_score():
    assert normalized_score(-20.0, -20.0, 30.0) == 0
    assert normalized_score(30.0, -20.0, 30.0) == 100
    assert normalized_score(-10.0, -20.0, 30.0) == 20


def test_summary_by_hand():
    behavior, exact, strong = summarize(RESULTS, REFERENCE)
    assert [behavior.guidance_scale, exact.guidance_scale, strong.guidance_scale] == [0.0, 1.0, 2.0]
    assert (behavior.episodes, behavior.mean_return, behavior.normalized_score) == (3, -1.0, 15.0)
    assert behavior.standard_error == pytest.approx(2 / math.sqrt(3))
    assert (exact.episodes, exact.mean_return, exact.standard_error) == (1, 5.0, None)
    assert (strong.mean_return, strong.normalized_score) == (6.0, 50.0)
    assert strong.standard_error == pytest.approx(4 / math.sqrt(3))
    assert strong.normalized_standard_error == pytest.approx(20 / math.sqrt(3))
    assert [row.score for row in (behavior, exact, strong)] == [15.0, 45.0, 50.0]


def test_order_of_results_does_not_matter():
    episodes = [EpisodeResult(i, 0.0, math.exp(-i), 1, False) for i in range(50)]
    mixed = random.Random(0).sample(episodes, len(episodes))
    assert summarize(mixed, None) == summarize(episodes, None)


def test_without_reference():
    rows = summarize(RESULTS, None)
    assert {row.normalized_score for row in rows} == {None}
    assert {row.normalized_standard_error for row in rows} == {None}
    assert [row.score for row in rows] == [-1.0, 5.0, 6.0]
    assert summarize([], None) == []


def test_the_best_row_is_the_smallest_scale_among_equals():
    assert best_row(summarize(RESULTS, REFERENCE)).guidance_scale == 2.0
    equal = [EpisodeResult(0, scale, 1.0, 1, False) for scale in (3.0, 1.0, 2.0)]
    assert best_row(summarize(equal, None)).guidance_scale == 1.0


def test_success_rates_by_hand():
    """Scale 1: 3 of 4, sample variance 0.25, standard error 25 %. More successes are better than a higher return."""
    found = [EpisodeResult(i, 1.0, -9.0, 9, i < 3, i < 3) for i in range(4)]
    found += [EpisodeResult(i, 2.0, -1.0, 1, i < 1, i < 1) for i in range(2)]
    three, one = summarize(found, None)
    assert (three.success_rate, three.success_standard_error, three.score) == (75.0, 25.0, 75.0)
    assert (one.success_rate, one.success_standard_error) == (50.0, 50.0)
    assert best_row([three, one]) is three
    assert score_table([three, one]).text().splitlines()[1].split() == [
        "1",
        "4",
        "-9.00",
        "±",
        "0.00",
        "75.0",
        "±",
        "25.0",
    ]
    (unknown,) = summarize([found[0], EpisodeResult(1, 1.0, 0.0, 1, True)], None)
    assert unknown.success_rate is None
    rated = results([three, one])
    assert rated.values("success_rate") == {1.0: 75.0, 2.0: 50.0}
    assert (policy_row(rated)["unit"], policy_row(rated)["best_scale"]) == ("success rate, %", 1.0)
    assert gather_results(found) == sorted(found, key=lambda r: (r.guidance_scale, r.index))


def test_table_is_aligned():
    assert score_table(summarize(RESULTS, REFERENCE)).text().splitlines() == [
        "guidance scale  episodes   mean return  normalized score",
        "             0         3  -1.00 ± 1.15        15.0 ± 5.8",
        "             1         1      5.00 ± –          45.0 ± –",
        "             2         3   6.00 ± 2.31       50.0 ± 11.5",
    ]
    assert score_table(summarize([RESULTS[3]], None)).text().splitlines()[1].endswith("-")


# Results of a run


def test_table_of_results_marks_behavior_and_best():
    assert lines_of(results(summarize(RESULTS, REFERENCE))) == [
        "guidance scale  episodes   mean return  normalized score",
        "             0         3  -1.00 ± 1.15        15.0 ± 5.8  behavior policy",
        "             1         1      5.00 ± –          45.0 ± –",
        "             2         3   6.00 ± 2.31       50.0 ± 11.5",
    ]
    (_, line) = lines_of(results(summarize([RESULTS[3]], None)))
    assert line.split("  ")[-1] == "behavior policy"


def test_evidence_stands_beside_the_rollouts():
    rows = summarize(RESULTS, REFERENCE)
    found = results(rows, EVIDENCE, choice=1.0)
    assert lines_of(found) == [
        "guidance scale  episodes   mean return  normalized score  offline value  inside support",
        "             0         3  -1.00 ± 1.15        15.0 ± 5.8         95.000             95%  behavior policy",
        "             1         1      5.00 ± –          45.0 ± –         97.123             50%  offline choice",
        "             2         3   6.00 ± 2.31       50.0 ± 11.5              -               -",
    ]
    assert found.values("offline_value") == {0.0: 95.0, 1.0: 97.1234}
    assert policy_row(found)["regret"] == 5.0
    better = results(rows, Found((2.0, 1.0, 1.0)), choice=2.0)
    assert lines_of(better)[-1].endswith("offline choice")
    assert policy_row(better)["regret"] == 0.0


def test_the_best_scale_is_marked_only_outside_the_noise():
    """Means 0, 4, 10 of five episodes with standard errors 1, 1, `error`; t is 2.8 for four degrees of freedom."""

    def marked(error, episodes=5):
        scores = [(0.0, 0.0, 1.0), (1.0, 4.0, 1.0), (2.0, 10.0, error)]
        rows = [ScoreRow(scale, episodes, mean, e, None, None) for scale, mean, e in scores]
        return marks(rows, [0.0, 1.0, 2.0], None), no_best(rows)

    wins = {0.0: "behavior policy", 2.0: "best"}
    none = {0.0: "behavior policy"}, ["no scale is the best by more than the noise"]
    assert marked(1.8) == (wins, [])  # 6 > 2.8 √(1 + 1.8²) = 5.77
    assert marked(1.9) == none  # 6 < 2.8 √(1 + 1.9²) = 6.01
    assert marked(2.8, 20) == (wins, [])  # 6 > 2 √(1 + 2.8²) = 5.95
    assert marked(2.9, 20) == none
    assert marked(0.0, 1) == none  # one episode says nothing about the spread
    assert marks([ScoreRow(1.0, 5, 9.0, 0.1, None, None)], [1.0], None) == {}  # nothing to be better than


def test_results_without_any_rollout():
    found = results([], Found((1.0, 97.1234, 0.5), (0.0, 95.0, 0.95)), choice=1.0)
    assert lines_of(found) == [
        "guidance scale  offline value  inside support",
        "             0         95.000             95%  behavior policy",
        "             1         97.123             50%  offline choice",
    ]
    assert found.values("episodes") == {}
    row = policy_row(found)
    assert (row["best_scale"], row["regret"], row["choice_scale"], row["choice"]) == (None, None, 1.0, None)


def test_regret_is_in_returns_where_no_reference_is_known():
    rows = summarize(RESULTS, None)
    assert policy_row(results(rows))["regret"] is None
    row = policy_row(results(rows, EVIDENCE, choice=1.0))
    assert (row["regret"], row["unit"]) == (1.0, "return")
    assert (row["behavior_regret"], row["exact_regret"]) == (7.0, 1.0)
    assert policy_row(results(rows, Found((7.0, 0.0, 0.0)), choice=7.0))["regret"] is None  # not evaluated


def test_a_scale_without_episodes_is_never_the_best():
    found = results(summarize(RESULTS, REFERENCE), Found((9.0, 99.0, 1.0)), choice=9.0)
    assert policy_row(found)["best_scale"] == 2.0
    assert lines_of(found)[-1] == (
        "             9         -             -                 -         99.000            100%  offline choice"
    )


@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_the_file_keeps_everything(tmp_path, reference):
    path = tmp_path / "results.json"
    path.write_text("old")
    rows = summarize(RESULTS, reference)
    for written in (results(rows), results(rows, EVIDENCE, choice=1.0), results([], EVIDENCE, choice=1.0)):
        written.write(path)
        read = Results.read(path)
        assert read.table().text() == written.table().text()
        assert list(read.rows) == list(written.rows)
        assert (read.about, read.marks, read.seed, read.dataset) == (written.about, written.marks, 3, "a-task")
        assert policy_row(read) == policy_row(written)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_rows_of_the_file(tmp_path):
    path = tmp_path / "results.json"
    results(summarize([RESULTS[6]], REFERENCE), Found((1.0, 97.1234, 0.5))).write(path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["scale"], row["metric"], row["value"], row["error"]) for row in rows] == [
        (1.0, "episodes", 1, None),
        (1.0, "mean_return", 5.0, None),
        (1.0, "normalized_score", 45.0, None),
        (1.0, "offline_value", 97.1234, None),
        (1.0, "inside_support", 0.5, None),
    ]


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    path = tmp_path / "results.json"
    results(summarize([EpisodeResult(0, 0.0, math.nan, 1, False)], None)).write(path)
    values = {row["metric"]: row["value"] for row in json.loads(path.read_text())["rows"]}
    assert values == {"episodes": 1, "mean_return": None}
    assert math.isnan(Results.read(path).row(0.0, "mean_return").value)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    found = results(summarize(RESULTS, None))
    found.about["not plain"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        found.write(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 3, "rows": [1]}'])
def test_a_damaged_file_says_what_to_do(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(RunError, match=r"is damaged.*; delete it and run the same `cepdiff fit` again"):
        Results.read(path)


# Figures


@pytest.mark.parametrize("evidence", [None, Found((0.0, 95.0, 0.95), (1.0, 97.0, 0.5), (9.0, 99.0, 1.0))])
@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_figure(tmp_path, reference, evidence):
    plot_scores([results(summarize(RESULTS, reference), evidence, 1.0)], tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert imread(tmp_path / "scores.png").std() > 0.05
