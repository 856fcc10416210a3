"""The shared part of densities, of points and of images: a prior, an energy network, samples that are judged."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from cepdiff.problems.guided import GuidedProblem
from cepdiff.runs.logs import values_table
from cepdiff.runs.results import Results
from cepdiff.runs.run import Run
from cepdiff.runs.stage import Judgement, Stage


class DensityProblem(GuidedProblem):
    """Guided samples of p(x) ∝ q(x) exp(-beta E(x)), without conditions.

    Args:
        run: the run.
        data: samples of q and their energies.
        stages: lengths of the stages `behavior` and `guidance`.
        evaluation: settings, with at least `scales`, `inverse_temperatures` and `seed`.
        sections: those of `GuidedProblem`.
    """

    used_from: ClassVar[Mapping[str, str]] = {
        "behavior": "behavior",
        **dict.fromkeys(("guidance", "data.energy", "stages.guidance"), "guidance"),
        **dict.fromkeys(("solver", "sampler", "evaluation"), "evaluation"),
    }

    def __init__(self, run: Run, data: Any, *, stages: Any, evaluation: Any, **sections: Any) -> None:
        super().__init__(run, data, **sections)
        self.lengths = stages
        self.settings = evaluation
        self.judge_at(evaluation.scales, evaluation.inverse_temperatures)
        self.seed = run.seed if evaluation.seed is None else evaluation.seed

    def stages(self) -> list[Stage]:
        return [
            self.train("behavior", self.lengths.behavior, made_from=self.behavior_record),
            self.train("guidance", self.lengths.guidance),
            Judgement(self.run, self.evaluation_record, self.judge, self.files()),
        ]

    def behavior_record(self) -> dict[str, Any]:
        """The prior is trained on samples only: its record has no energies, and other runs may reuse it."""
        return {**self.record("behavior", "schedule"), "dataset": self.data.points_hash}

    def evaluation_record(self) -> dict[str, Any]:
        evaluation = asdict(self.settings) | {"seed": self.seed, "scales": list(self.scales)}
        del evaluation["inverse_temperatures"]  # already in `scales`
        return {**super().evaluation_record(), "dataset": self.data.content_hash, "evaluation": evaluation}

    @abstractmethod
    def files(self) -> list[Path]:
        """Samples and figures that the judgement leaves."""

    @abstractmethod
    def judge(self) -> Results:
        """Draw samples on all processes, judge them and write the files."""

    @property
    def title(self) -> str:
        """Dataset, objective, beta and seed."""
        method, beta = self.method, self.objective.inverse_temperature
        return f"{self.data.dataset_name}, {method}, beta {beta:g}, seed {self.run.seed}"

    def log(self, results: Results, *figures: Path) -> None:
        """Log results and figures; runs are compared by their distances from exact samples and their accuracy."""
        values = results.scalars()
        scores = {name: value for name, value in values.items() if "_multiple/" in name or "/accuracy/" in name}
        texts = {"results": results.table().markdown(), "metrics": values_table(values)}
        step = self.lengths.guidance.max_steps
        self.run.logs.result("evaluation", scores, figures, step, texts=texts, others=values)
