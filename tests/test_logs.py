"""The lab book: what is logged, by which logger, and what another evaluation leaves of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from cepdiff.components import Component
from cepdiff.errors import ConfigError
from cepdiff.runs.config import load_config
from cepdiff.runs.logs import LabBook, Logs, description, descriptions, logger_of, values_table
from cepdiff.runs.settings import configuration
from glossary import PAGE, described

OPTIONS = {"seed": 3, "critic.discount": 0.97, "evaluation.scales": [0.0, 1.0]}
HOSTED: list[tuple[str, Any]] = []


class Hosted(Logger):
    """Stands for the loggers of services: a name for the run, and images; its calls are in `HOSTED`."""

    def __init__(self, name: str | None = None, save_dir: str = ".", project: str = "none") -> None:
        super().__init__()
        self.about = {"name": name, "save_dir": save_dir, "project": project}

    @property
    def name(self) -> str | None:
        return self.about["name"]

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        HOSTED.append(("metrics", (dict(metrics), step)))

    def log_hyperparams(self, params: Any) -> None:
        HOSTED.append(("options", params))

    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        HOSTED.append(("image", (key, images, step)))


class Missing(Hosted):
    """Stands for a logger whose package is not installed, as Lightning's say it."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install wandb`")


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    path = tmp_path / "scores.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(path)
    return path


def logs_of(tmp_path: Path, **logger: Any) -> Logs:
    component = Component(LabBook) if not logger else logger_of(logger)
    return Logs(tmp_path / "reacher" / "0" / "logs", component, OPTIONS)


def test_descriptions_are_those_of_the_glossary() -> None:
    """After a change of the page: python tests/glossary.py."""
    assert descriptions() == described(PAGE.read_text(encoding="utf-8"))
    assert len(descriptions()) > 80
    assert description("eval/normalized_score/s=2.0").startswith("100 (return - random) / (expert - random)")
    assert description("critic/my_own") == ""
    assert not any(re.match("As above", text, re.IGNORECASE) for text in descriptions().values())


def test_charts_have_descriptions_and_every_point_once(tmp_path: Path) -> None:
    book = logs_of(tmp_path)("critic")
    assert isinstance(book, LabBook)
    for step in (50, 100):
        book.log_metrics({"critic/q": step / 10, "critic/my_own": 1.0}, step)
    book.finalize("success")
    folder = str(tmp_path / "reacher/0/logs/critic")
    assert [(e.step, e.value) for e in EventAccumulator(folder).Reload().Scalars("critic/q")] == [
        (50, 5.0),
        (100, 10.0),
    ]
    shown = EventMultiplexer({"critic": folder}).Reload()
    assert shown.SummaryMetadata("critic", "critic/q").summary_description == descriptions()["critic/q"]
    assert shown.SummaryMetadata("critic", "critic/my_own").summary_description == ""


def test_results_take_the_place_of_earlier_ones(tmp_path: Path, figure: Path) -> None:
    logs = logs_of(tmp_path)
    for scales in ((0.0, 3.0), (0.0, 1.0)):
        values = {f"eval/normalized_score/s={scale}": 10.0 + scale for scale in scales}
        logs.result("evaluation", values, [figure], 200, texts={"results": "a table"}, others=values)
    events = EventAccumulator(str(logs.folder / "evaluation")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["eval/normalized_score/s=0.0", "eval/normalized_score/s=1.0"]
    assert [(e.step, e.value) for e in events.Scalars("eval/normalized_score/s=1.0")] == [(200, 11.0)]
    assert events.Tags()["images"] == ["scores"]
    assert len(list((logs.folder / "evaluation").glob("events.*"))) == 1
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    assert texts["results/text_summary"] == "a table"
    assert "    critic.discount: 0.97\n" in texts["configuration/text_summary"]
    options = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert all(name.encode() in options for name in OPTIONS)
    assert "_hparams_/experiment" not in events.summary_metadata  # it would hide the options of other runs


def test_a_stage_that_goes_on_has_no_point_twice(tmp_path: Path) -> None:
    logs = logs_of(tmp_path)
    for start, steps in ((0, (50, 100, 150)), (100, (150, 200))):
        book = logs("behavior", start)
        for step in steps:
            book.log_metrics({"behavior/loss": float(start)}, step)
        book.finalize("success")
    points = EventAccumulator(str(logs.folder / "behavior")).Reload().Scalars("behavior/loss")
    assert [(e.step, e.value) for e in points] == [(50, 0.0), (100, 0.0), (150, 100.0), (200, 100.0)]
    logs.forget("behavior")
    assert not (logs.folder / "behavior").exists()


def test_many_values_are_a_table() -> None:
    table = values_table({"diagnostics/q_slope": 0.5, "diagnostics/gain/s=0.0": 0.0, "diagnostics/gain/s=0.5": 1.23456})
    lines = table.splitlines()
    assert lines[2].startswith("| diagnostics/q_slope | 0.5 | Mean norm of the gradient of Q")
    assert lines[4] == "| metric | s = 0 | s = 0.5 | meaning |"
    assert lines[6].startswith("| diagnostics/gain | 0 | 1.235 | `value` minus that of scale 0")


def test_csv_keeps_every_start_and_the_results(tmp_path: Path, figure: Path) -> None:
    logs = logs_of(tmp_path, class_path="CSVLogger")
    for start in (0, 50):
        logger = logs("behavior", start)
        assert isinstance(logger, CSVLogger)
        logs.started(logger)
        logger.log_metrics({"behavior/loss": 2.0}, start + 50)
        logger.finalize("success")
    logs.result("evaluation", {"eval/a": 1.0}, [figure], 200, others={"eval/b": 2.0})
    rows = [list(csv.DictReader((logs.folder / f"behavior/version_{i}/metrics.csv").open())) for i in (0, 1)]
    assert rows == [[{"behavior/loss": "2.0", "step": "50"}], [{"behavior/loss": "2.0", "step": "100"}]]
    assert yaml.safe_load((logs.folder / "behavior/version_1/hparams.yaml").read_text()) == OPTIONS
    (row,) = csv.DictReader((logs.folder / "evaluation/version_0/metrics.csv").open())
    assert row == {"eval/a": "1.0", "eval/b": "2.0", "step": "200"}


def test_a_service_gets_names_options_values_and_figures(tmp_path: Path, figure: Path) -> None:
    HOSTED.clear()
    logs = logs_of(tmp_path, class_path=f"{__name__}.Hosted", project="mine")
    logger = logs("critic", 50)
    assert isinstance(logger, Hosted)
    assert logger.about == {"name": "reacher/0", "save_dir": str(logs.folder), "project": "mine"}
    logs.result("evaluation", {"eval/a": 1.0}, [figure], 200, texts={"results": "a table"}, others={"eval/b": 2.0})
    assert [
        ("metrics", ({"eval/a": 1.0, "eval/b": 2.0}, 200)),
        ("image", ("scores", [str(figure)], 200)),
        ("options", OPTIONS),
    ] == HOSTED


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^trainer.logger: .*Missing cannot be made: .*`pip install wandb`$"):
        logs_of(tmp_path, class_path=f"{__name__}.Missing")("behavior")
    with pytest.raises(ConfigError, match=r"^trainer.logger: .*CSVLogger cannot be made: "):
        logs_of(tmp_path, class_path="CSVLogger", save_dir=3)("behavior")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, r"trainer.logger is None; expected a class_path and its init_args"),
        (False, r"trainer.logger is False; expected a class_path and its init_args"),
        ({"save_dir": "x"}, r"trainer.logger is \{'save_dir': 'x'\}; expected a class_path"),
        ({"class_path": "CSVLoger"}, r"has no class 'CSVLoger'.*CSVLogger"),
        (
            {"class_path": "lightning.pytorch.Trainer"},
            r"lightning.pytorch.Trainer is not a subclass of Logger",
        ),
        ({"class_path": "CSVLogger", "flush": 1}, r"unknown key 'trainer.logger.flush'.*flush_logs_every_n_steps"),
    ],
)
def test_what_is_no_logger_is_refused(section: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        logger_of(section)


def test_the_configuration_names_the_logger(tmp_path: Path) -> None:
    data = ["data.dataset=reacher-replay"]
    default = load_config([], data)
    assert default.logger.cls is LabBook
    assert default.values["trainer"]["logger"] == {"class_path": "cepdiff.runs.logs.LabBook", "init_args": {}}
    chosen = load_config([], [*data, "trainer.logger=CSVLogger", "trainer.logger.flush_logs_every_n_steps=7"])
    expected = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"flush_logs_every_n_steps": 7}}
    assert chosen.values["trainer"]["logger"] == expected
    (tmp_path / "config.yaml").write_text(chosen.to_yaml())
    again = load_config([tmp_path / "config.yaml"])
    assert again.values == chosen.values
    assert again.logger.cls is CSVLogger
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(default.to_yaml())
    assert configuration(tmp_path) == configuration(tmp_path / "other")  # no setting of the run
