"""The shared part of densities, of points and of images: a prior, an energy network, samples that are judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from cepdiff.components import class_path_of
from cepdiff.policy.recipe import Recipe
from cepdiff.problems.guided import GuidedProblem
from cepdiff.runs.logs import log_result
from cepdiff.runs.results import Results, Row
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Judgement, Stage, TrainedStage


class DensityProblem(GuidedProblem):
    """Guided samples of p(x) ∝ q(x) exp(-beta E(x)), without conditions.

    Args:
        run: the run.
        data: samples of q and their energies.
        stages: lengths of the stages `behavior` and `guidance`.
        evaluation: settings; `scales` and `seed` at least.
        sections: those of `GuidedProblem`.
    """

    def __init__(self, run: Run, data: Any, *, stages: Any, evaluation: Any, **sections: Any) -> None:
        super().__init__(run, data, **sections)
        self.lengths = stages
        self.settings = evaluation
        self.seed = run.seed if evaluation.seed is None else evaluation.seed

    def stages(self) -> list[Stage]:
        run = self.run
        return [
            TrainedStage(
                run, self.behavior, lambda: self.data, self.lengths.behavior, self.behavior_record,
                self.callbacks("behavior"), self._after_behavior,
            ),
            TrainedStage(
                run, self.guidance, lambda: self.data, self.lengths.guidance,
                lambda: self.record("guidance", "schedule"), self.callbacks("guidance"), self._after_guidance,
            ),
            Judgement(run, self.evaluation_record, self.judge, self.files()),
        ]  # fmt: skip

    def behavior_record(self) -> dict[str, Any]:
        """The prior is trained on samples only: its record has no energies, and other runs may reuse it."""
        return {**self.record("behavior", "schedule"), "dataset": self.data.points_hash}

    def evaluation_record(self) -> dict[str, Any]:
        evaluation = asdict(self.settings) | {"seed": self.seed}
        return {**super().evaluation_record(), "dataset": self.data.content_hash, "evaluation": evaluation}

    def callbacks(self, stage: str) -> list[Callback]:
        """Callbacks of a trained stage, besides the configuration's."""
        return []

    @abstractmethod
    def files(self) -> list[Path]:
        """Samples and figures that the judgement leaves."""

    @abstractmethod
    def judge(self) -> Results:
        """Draw samples on all processes, judge them and write the files."""

    @property
    def title(self) -> str:
        """Dataset, objective, beta and seed."""
        objective = self.objective
        beta = objective.inverse_temperature
        return f"{self.data.dataset_name}, {type(objective).__name__}, beta {beta:g}, seed {self.run.seed}"

    def results_of(self, rows: Sequence[Row], columns: Mapping[str, Sequence[str]], **more: Any) -> Results:
        """`rows` as results of this run."""
        facts: dict[str, Any] = {"title": self.title, "method": type(self.objective).__name__, **more}
        return Results(
            problem=class_path_of(type(self)),
            dataset=self.data.dataset_name,
            seed=self.run.seed,
            rows=rows,
            columns=columns,
            inverse_temperature=self.objective.inverse_temperature,
            **facts,
        )

    def log(self, results: Results, figure: Path) -> None:
        """Write results and a figure to TensorBoard."""
        log_result(self.run.folder.logs / "evaluation", results.scalars(), figure, self.lengths.guidance.max_steps)

    def sampler_recipe(self) -> Recipe:
        """The policy file's content."""
        return self.recipe(list(self.settings.scales))

    def _after_behavior(self) -> None:
        if not self.is_finished("guidance"):
            self.save_sampler(self.sampler_recipe())

    def _after_guidance(self) -> None:
        self.has_energy = True
        self.save_sampler(self.sampler_recipe())
