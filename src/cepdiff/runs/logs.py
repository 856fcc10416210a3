"""The lab book of a run: curves, results, figures and the configuration, in TensorBoard or elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from cepdiff.components import Component, class_path_of, import_class
from cepdiff.errors import ConfigError, one_line
from cepdiff.runs.classes import parameters_of
from cepdiff.runs.messages import refuse_unknown
from cepdiff.tables import Table

KEY = "trainer.logger"


class LabBook(TensorBoardLogger):
    """Lightning's TensorBoardLogger with the glossary's description of each chart, and runs that compare as hparams.

    Args:
        save_dir: folder of the logs of a run.
        name: of the stage, and its folder.
        version: a folder below, or none.
        options: further ones of `TensorBoardLogger`.
    """

    def __init__(self, save_dir: str | Path, name: str = "", version: str = "", **options: Any) -> None:
        super().__init__(save_dir, name, version, **options)
        self._described: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        for name in [name for name in metrics if name not in self._described]:
            # TensorBoard reads the description with the first point of a chart, which the plain one then replaces.
            meta = create_summary_metadata("", description(name))
            tag = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name
            value = Summary.Value(tag=tag, tensor=make_tensor_proto(float(metrics[name])), metadata=meta)
            self.experiment._get_file_writer().add_summary(Summary(value=[value]), step)
            self._described.add(name)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Log options with the scores they led to; without the summary that would hide other runs' options."""
        from torch.utils.tensorboard.summary import hparams

        self.log_metrics(metrics or {}, step)
        plain = {key: value if isinstance(value, (bool, int, float)) else str(value) for key, value in params.items()}
        for part in hparams(plain, metrics or {})[1:]:  # type: ignore[no-untyped-call]
            self.experiment._get_file_writer().add_summary(part, step)


@dataclass(frozen=True)
class Logs:
    """Makes the loggers of a run.

    Args:
        folder: `logs` in the run folder, with a folder for each stage.
        logger: class and options.
        options: dotted key of the configuration -> value.
    """

    folder: Path
    logger: Component[Logger] = Component(LabBook)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, name: str, step: int = 0) -> Logger:
        """The logger of a stage that goes on at `step`, without what an earlier attempt logged after it.

        Raises ConfigError if the logger's class refuses its options, or needs a package that is not installed.
        """
        cls, given = self.logger.cls, self.logger.arguments
        known = parameters_of(cls, KEY)
        run = "/".join(self.folder.absolute().parts[-3:-1])
        writes_files = "save_dir" in known and known["save_dir"].default is known["save_dir"].empty
        places = {"save_dir": str(self.folder), "name": name if writes_files else run, "run_name": f"{run}/{name}"}
        supplied: dict[str, Any] = {key: value for key, value in places.items() if key in known}
        if issubclass(cls, TensorBoardLogger):
            supplied |= {"version": "", **({"purge_step": step + 1} if step else {})}
        try:
            return cls(**{**supplied, **given})
        except Exception as error:  # loggers raise many kinds, all about these options
            raise ConfigError(f"{KEY}: {class_path_of(cls)} cannot be made: {one_line(error)}") from error

    def forget(self, name: str) -> None:
        """Delete the logs of a stage that starts anew."""
        if (self.folder / name).is_dir():
            shutil.rmtree(self.folder / name)

    def started(self, logger: Logger, step: int = 0) -> None:
        """Log the configuration of a stage that starts or goes on at `step`, as text in TensorBoard."""
        if isinstance(logger, TensorBoardLogger):
            if step:
                return  # it is there
            plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.options.items()}
            lines = (f"    {key}: {value}" for key, value in plain.items())  # indented: shown as it is
            logger.experiment.add_text("configuration", "\n".join(lines))
        else:
            logger.log_hyperparams(dict(self.options))

    def result(
        self,
        name: str,
        scores: Mapping[str, float],
        figures: Sequence[Path],
        step: int,
        *,
        texts: Mapping[str, str] | None = None,
        others: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> None:
        """Log what was measured at `step`, in place of what was logged as `name` before.

        Args:
            name: of the folder.
            scores: final values that runs are compared by.
            figures: PNG files.
            step: of the training.
            texts: tables in Markdown, for TensorBoard.
            others: values of those tables, for other loggers.
            curves: with x values of their own, for TensorBoard.
        """
        self.forget(name)
        logger = self(name)
        if isinstance(logger, TensorBoardLogger):
            from matplotlib.image import imread

            if scores:
                logger.log_hyperparams(dict(self.options), dict(scores), step)
                self.started(logger)
            for key, text in (texts or {}).items():
                logger.experiment.add_text(key, text, step)
            for key, curve in (curves or {}).items():
                for place, value in curve:
                    logger.log_metrics({key: value}, place)
            for figure in figures:
                logger.experiment.add_image(figure.stem, imread(figure)[..., :3], step, dataformats="HWC")
        else:
            logger.log_metrics({**(others or {}), **scores}, step)
            for figure in figures:
                if hasattr(logger, "log_image"):
                    logger.log_image(figure.stem, [str(figure)], step)
            self.started(logger)
        logger.finalize("success")


def values_table(values: Mapping[str, float]) -> str:
    """Values in Markdown: by guidance scale for names that end in `/s=...`, and the others with their descriptions."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, _, scale = name.partition("/s=")
        rows.setdefault(metric, {})[scale] = value
    scales = list(dict.fromkeys(scale for found in rows.values() for scale in found if scale))
    of_run = [[name, f"{found['']:.4g}", about(name)] for name, found in rows.items() if "" in found]
    of_scale = [
        [name, *(f"{found[scale]:.4g}" if scale in found else "-" for scale in scales), about(name)]
        for name, found in rows.items()
        if "" not in found
    ]
    tables = []
    if of_run:
        tables.append(Table([["metric", "value", "meaning"], *of_run], labels=1, remarks=True).markdown())
    if of_scale:
        heads = ["metric", *(f"s = {float(scale):g}" for scale in scales), "meaning"]
        tables.append(Table([heads, *of_scale], labels=1, remarks=True).markdown())
    return "\n\n".join(tables)


def about(name: str) -> str:
    """The first paragraph of a metric's description."""
    return description(name).partition("\n")[0]


def description(name: str) -> str:
    """The glossary's description of a metric; "" if it has none, as for the metrics of a class of yours."""
    return descriptions().get(name.partition("/s=")[0], "")


@cache
def descriptions() -> dict[str, str]:
    """Metric -> meaning and unit, as docs/glossary.md has them."""
    found: dict[str, str] = json.loads((files("cepdiff.runs") / "metrics.json").read_text(encoding="utf-8"))
    return found


def logger_of(section: Any) -> Component[Logger]:
    """The logger that `trainer.logger` names: a `class_path`, or the bare name of one of Lightning's, and its options.

    Raises ConfigError for anything else.
    """
    if not isinstance(section, Mapping) or not isinstance(section.get("class_path"), str):
        raise ConfigError(f"{KEY} is {section!r}; expected a class_path and its init_args")
    arguments = {name: value for name, value in section.items() if name != "class_path"}
    path = section["class_path"]
    path = path if "." in path else f"{loggers.__name__}.{path}"
    base: Any = Logger
    cls = import_class(path, base, KEY)
    parameters = parameters_of(cls, KEY)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        refuse_unknown(arguments, list(parameters), f"{KEY}.")
    return Component(cls, arguments, {"class_path": path, "init_args": arguments})
