"""Score arithmetic against values computed by hand."""

import json
import math
import random

import pytest

from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import (
    Reference,
    format_table,
    normalized_score,
    plot_scores,
    summarize,
    write_scores,
)

# Scale 2: mean 6, sample variance ((-4)² + 0² + 4²) / 2 = 16, standard error 4 / sqrt(3).
RESULTS = [
    EpisodeResult(index, scale, value, 10, False)
    for scale, values in {2.0: (2.0, 6.0, 10.0), 0.0: (-3.0, 1.0, -1.0), 1.0: (5.0,)}.items()
    for index, value in enumerate(values)
]


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
