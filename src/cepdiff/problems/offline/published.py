"""Published scores of other methods, shown beside runs on the same datasets of D4RL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cepdiff.components import class_path_of
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.tasks import TASKS
from cepdiff.runs.results import Results
from cepdiff.runs.settings import configuration
from cepdiff.schema import typed


@dataclass(frozen=True)
class Published:
    """A method's published scores.

    Args:
        method: its name.
        source: the publication.
        scale: how its guidance scale was chosen; "" for a method without one.
        scores: task -> mean normalised score.
    """

    method: str
    source: str
    scale: str
    scores: Mapping[str, float]

    @property
    def note(self) -> str:
        """A line below a table."""
        return f"{self.method}: {self.source}{f'; {self.scale}' if self.scale else ''}."


@cache
def published() -> Sequence[Published]:
    """All published tables of the package."""
    file = resources.files("cepdiff.problems.offline") / "published_scores.json"
    return typed(list[Published], json.loads(file.read_text(encoding="utf-8"))["tables"], "tables")


def is_of_d4rl(run: Results) -> bool:
    """True if the run's data are all rows of a D4RL task by its own name, scored in the task's environment.

    A file of another name or folder, a part of the rows, or the user's own data module is another dataset, whatever
    its name.
    """
    values = configuration(run.folder)
    task = TASKS.get(run.dataset)
    return (
        task is not None
        and task.url is not None
        and values.get("data") == class_path_of(OfflineDataModule)
        and values.get("data.dataset") == run.dataset
        and values.get("data.fraction", 1) == 1
        and values.get("data.env_id") in (None, task.env_id)
    )
