"""A search by Optuna, with runs that only write their results: the best is found, and nothing is tried twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from cepdiff.cli import main
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import write_text
from cepdiff.runs.results import Results, Row
from cepdiff.sweeps.engine import Engine, Job
from cepdiff.sweeps.search import Search, table
from cepdiff.sweeps.settings import SweepSettings, read_sweep
from cepdiff.sweeps.state import SweepFolder

pytest.importorskip("optuna")

SWEEP = """
configs: [recipe.yaml]
axes:
  seed: [0, 1]
  critic.discount: {low: 0.9, high: 0.99}
  critic.net.hidden: {choices: [[8], [16, 16]]}
search: {trials: 4, metric: normalized_score, at_a_time: 3}
"""


class ResultsOnly(Engine):
    """Writes what a run would leave: a score that is best at a discount of 0.95, at scale 1; seed 1 adds one."""

    def __init__(self, search: Search, broken: int = 0) -> None:
        self.broken = broken  # number of the start that fails
        self.search = search
        self.started: list[str] = []
        self.ended: list[tuple[str, int]] = []

    @property
    def free(self) -> int:
        return 100

    def start(self, jobs: Sequence[Job]) -> None:
        runs = {run.label: run for run in self.search.plan(self.search.known()).runs}
        for job in jobs:
            self.started.append(job.label)
            self.ended.append((job.label, int(len(self.started) == self.broken)))
            if len(self.started) == self.broken:
                continue
            folder, values = Path(job.arguments[-1]), runs[job.label].values
            score = 100 - 1000 * abs(values["critic.discount"] - 0.95) + values["seed"]
            rows = [Row(0.0, "normalized_score", 5.0), Row(1.0, "normalized_score", score)]
            write_text(folder / "config.yaml", yaml.safe_dump(values))
            results = Results("p", "d", values["seed"], "t", rows, {}, about={"offline_choice": 0.0})
            results.write(folder / "results.json")

    def poll(self, seconds: float) -> list[tuple[str, int]]:
        ended, self.ended = self.ended, []
        return ended

    def close(self) -> None:
        assert not self.ended


def search_in(folder: Path, text: str = SWEEP) -> Search:
    (folder / "recipe.yaml").write_text("data: {dataset: reacher-replay}")
    (folder / "sweep.yaml").write_text(text)
    return Search(read_sweep(folder / "sweep.yaml"), folder, (), SweepFolder(folder / "sweep"))


def test_the_best_settings_come_first_and_a_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    engine = ResultsOnly(search)
    tried = search.carry_out(lambda: engine)
    assert len(tried) == 4
    assert len(engine.started) == len(set(engine.started)) == 8
    for trial in tried:  # the mean over the seeds
        assert trial.value == pytest.approx(100.5 - 1000 * abs(trial.settings["critic.discount"] - 0.95))
        assert trial.settings["critic.net.hidden"] in ([8], [16, 16])
    values = [trial.value for trial in tried]
    assert values == sorted(values, reverse=True)
    assert table(tried, search.search).text().splitlines()[0].split() == [
        "critic.discount", "critic.net.hidden", "normalized_score"
    ]  # fmt: skip
    assert search_in(tmp_path).carry_out(lambda: engine) == tried
    engine.search = search_in(tmp_path, SWEEP.replace("trials: 4", "trials: 5"))
    more = engine.search.carry_out(lambda: engine)
    assert len(more) == 5
    assert all(trial in more for trial in tried)
    assert len(engine.started) == len(set(engine.started)) == 10


def test_a_failed_trial_is_not_tried_again_until_the_next_command(tmp_path: Path) -> None:
    search = search_in(tmp_path, SWEEP.replace("trials: 4", "trials: 2").replace("at_a_time: 3", "at_a_time: 1"))
    engine = ResultsOnly(search, broken=1)
    tried = search.carry_out(lambda: engine)
    assert [trial.value is None for trial in tried] == [False, True]
    assert len(engine.started) == len(set(engine.started)) == 4
    narrower = SWEEP.replace("low: 0.9,", "low: 0.97,").replace("trials: 4", "trials: 2")
    engine.search = search_in(tmp_path, narrower)
    assert all(trial.value is not None for trial in engine.search.carry_out(lambda: engine))
    assert engine.started[4:] == engine.started[:1]


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    text = SWEEP.replace("trials: 4", "trials: 1")
    search = search_in(tmp_path, text)
    search.carry_out(lambda: ResultsOnly(search))
    other = search_in(tmp_path, text.replace("critic.net.hidden", "guidance.net.hidden"))
    with pytest.raises(RunError, match=r"its runs have no guidance\.net\.hidden"):
        other.carry_out(pytest.fail)


def test_a_search_says_what_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search_in(tmp_path)
    assert main(["sweep", str(tmp_path / "sweep.yaml"), "--folder", str(tmp_path / "sweep"), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 trials of 2 runs over critic.discount (FloatDistribution(high=0.99")
    assert "0 runs, 0 to do" in shown


def test_the_scale_that_counts(tmp_path: Path) -> None:
    text = SWEEP.replace("trials: 4, ", "trials: 1, scale: offline_choice, ")
    search = search_in(tmp_path, text)
    (trial,) = search.carry_out(lambda: ResultsOnly(search))
    assert trial.value == 5.0


def test_an_unknown_metric_is_refused_and_the_runs_stay(tmp_path: Path) -> None:
    search = search_in(tmp_path, SWEEP.replace("trials: 4, metric: normalized_score", "trials: 1, metric: score"))
    engine = ResultsOnly(search)
    with pytest.raises(ConfigError, match=r"search\.metric is 'score'; the results of seed=0.* have normalized_score"):
        search.carry_out(lambda: engine)
    right = search_in(tmp_path, SWEEP.replace("trials: 4", "trials: 1"))
    assert len(right.carry_out(pytest.fail)) == 1


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("{seed: [0]}", "no axis has a range"),
        ("{critic.tau: {low: 1, hihg: 2}}", "expected {low"),
        ("{critic.tau: {low: 2.0, high: 1.0}}", r"axis critic\.tau: "),
        ("{critic.tau: {choices: []}}", "expected {low"),
        ("[{seed: [0]}]", "a single mapping of axes"),
        ("{critic.dicount: {low: 0.1, high: 0.2}}", "Did you mean discount"),
    ],
)
def test_axes_that_cannot_be_searched_are_refused(tmp_path: Path, axes: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        search_in(tmp_path, f"configs: [recipe.yaml]\naxes: {axes}\nsearch: {{trials: 1}}").carry_out(pytest.fail)
    assert not (tmp_path / "sweep").exists()


def test_without_a_search_a_range_is_no_axis(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search: expected"):
        Search(SweepSettings({"seed": [0]}), tmp_path, (), SweepFolder(tmp_path / "sweep"))
