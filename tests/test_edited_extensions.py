"""A user's own classes that were edited, and those that a run would not keep: made again, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cepdiff.cli import main
from cepdiff.policy.recipe import read_recipe
from cepdiff.runs.results import Results
from extension_runs import SKIPPED, fit, forget, returns

pytest_plugins = ("extension_runs",)  # the fixture `here`


# an edited class


def test_an_edited_class_is_made_from_something_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_iql", "run") == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    file = here / "my_iql.py"
    file.write_text(file.read_text().replace("expectile: float = 0.7", "expectile: float = 0.9"))
    forget("my_iql")
    capsys.readouterr()
    assert fit("my_iql", "run") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{Path('run') / 'critic'} was made from something else: my_iql.py changed" in line
    assert f"delete {Path('run') / 'critic'}, {Path('run') / 'guidance'} to make it again" in line
    assert {path: path.read_bytes() for path in before} == before
    assert fit("my_iql", "again", "--reuse", "run") == 0
    said = capsys.readouterr().err
    assert f"behavior: {SKIPPED}" in said
    assert "critic: running" in said


def test_an_edited_sampler_is_judged_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("my_sampler", "run") == 0
    file = here / "my_sampler.py"
    file.write_text(file.read_text().replace("argmax", "argmin"))
    forget("my_sampler")
    capsys.readouterr()
    before = returns("run/results.json")
    assert fit("my_sampler", "run") == 0
    said = capsys.readouterr().err
    assert said.count(SKIPPED) == 4
    assert "evaluation: running" in said
    assert returns("run/results.json") != before


def test_an_edited_problem_is_named_by_its_class(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--distil_steps", "10", "--distil.batch_size", "8")
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 0
    file, text = here / "my_distil.py", (here / "my_distil.py").read_text()
    file.write_text(text.replace('"""Regression of the guided', '"""Least squares of the guided'))  # a different class
    forget("my_distil")
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 0
    file.write_text(text.replace("= distil_steps", "= int(distil_steps)"))
    forget("my_distil")
    capsys.readouterr()
    assert fit("my_distil", "run", *few, "--stage", "behavior") == 2
    assert "my_distil.py, class Distilled, changed" in capsys.readouterr().err


# results of an earlier state, and classes that would not be kept


HELPED = """
from my_helper import scale
from cepdiff import SoftmaxQCritic


class Helped(SoftmaxQCritic):
    def __init__(self, observation_size, action_size, source: str = "a", **options):
        super().__init__(observation_size, action_size, **options)

    def loss(self, batch, noise):
        loss, metrics = super().loss(batch, noise)
        return scale * loss, metrics
"""


def test_an_edited_helper_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_helped.py").write_text(HELPED)
    (here / "my_helper.py").write_text("scale = 1.0\n")
    (here / "my_helped.yaml").write_text("critic: {class_path: my_helped.Helped}\n")
    assert fit("my_helped", "run", "--stage", "behavior") == 0
    assert fit("my_helped", "run") == 0
    assert fit("my_helped", "run") == 0  # with an option called source
    (here / "my_helper.py").write_text("scale = 2.0\n")
    from cepdiff import components

    components._source.cache_clear()  # as in a new command
    capsys.readouterr()
    assert fit("my_helped", "run") == 2
    assert "critic was made from something else: my_helper.py changed" in capsys.readouterr().err


def test_results_of_an_earlier_state_are_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "run") == 0
    shutil.rmtree("run/guidance")
    assert fit("plain", "run", "--stage", "critic") == 0
    assert "energy" not in read_recipe("run")[0].networks  # there is no such network any more
    assert fit("plain", "run", "--guidance.learning_rate", "0.1", "--stage", "guidance") == 0
    assert not Path("run/results.json").exists()
    assert main(["report", "run"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_a_missing_policy_file_is_written_again(here: Path) -> None:
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "run") == 0
    before = Path("run/policy.pt").read_bytes()
    assert fit("plain", "run", "--stage", "behavior") == 0
    assert Path("run/policy.pt").read_bytes() == before
    Path("run/policy.pt").unlink()
    assert fit("plain", "run", "--stage", "behavior") == 0
    assert set(read_recipe("run")[0].networks) == {"behavior"}


OWN_POLICY = """
from cepdiff import GuidedPolicy, OfflineRL


class Still(GuidedPolicy):
    def act(self, *args, **options):
        return 0 * super().act(*args, **options)


class Own(OfflineRL):
    def policy(self):
        return Still(self.data.spec, self.sampler())


class Renamed(OfflineRL):
    pass
"""


def test_a_policy_that_would_not_be_kept_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_own.py").write_text(OWN_POLICY)
    (here / "my_own.yaml").write_text("problem: my_own.Own\n")
    assert fit("my_own", "run") == 2
    assert "Own.policy is not kept in policy.pt: override the sampler instead" in capsys.readouterr().err


def test_a_module_of_another_stage_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_stage.py").write_text(
        "from cepdiff import BehaviorDiffusion\n\n\nclass Prior(BehaviorDiffusion):\n    stage = 'prior'\n"
    )
    (here / "my_stage.yaml").write_text("behavior: {class_path: my_stage.Prior}\n")
    assert fit("my_stage", "run") == 2
    assert "behavior: Prior.stage is 'prior'; expected 'behavior'" in capsys.readouterr().err


def test_a_subclass_is_compared_with_its_base(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_own.py").write_text(OWN_POLICY)
    (here / "my_own.yaml").write_text("problem: my_own.Renamed\nseed: 1\n")
    (here / "plain.yaml").write_text("seed: 0\n")
    assert fit("plain", "one") == 0
    assert fit("my_own", "two") == 0
    assert fit("plain", "three", "--reuse", "one", "--seed", "0", "--guidance.learning_rate", "0.1") == 0
    said = capsys.readouterr().err
    assert "guidance: not taken over from one: guidance.learning_rate was 0.0003, now 0.1" in said
    assert main(["report", "one", "two", "--output", "report"]) == 0
    section = json.loads(Path("report/report.json").read_text())["sections"][0]
    assert [row["seed"] for row in section["rows"]] == [0, 1]
    assert Results.read(Path("one/results.json")).made_from["support_checkpoint"]
