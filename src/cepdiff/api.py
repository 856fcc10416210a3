"""`cepdiff` from Python: the commands as functions, on datasets by name or on arrays in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from cepdiff.collect import recorder
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.images import ImageSampler
from cepdiff.policy.recipe import read_recipe
from cepdiff.problems.offline.evaluate import evaluate_run
from cepdiff.runs import report as reports
from cepdiff.runs.config import merge_config
from cepdiff.runs.fit import fit as fit_config
from cepdiff.runs.problem import Problem
from cepdiff.runs.recipes import find, read_layer
from cepdiff.runs.results import Results

Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Args:
        problem: with its trained modules.
        policy: a `GuidedPolicy`, or an `ImageSampler` for images.
        results: None unless the last stage has run.
        folder: of the run; None if nothing was kept.
    """

    problem: Problem
    policy: Any
    results: Results | None
    folder: Path | None


def fit(
    dataset: str | Arrays | None = None,
    /,
    config: str | Path | Sequence[str | Path] = (),
    *,
    run_dir: str | Path | None = None,
    stage: str | None = None,
    reuse: str | Path | None = None,
    **sections: Any,
) -> Fitted:
    """Train all stages, as `cepdiff fit` does.

    Args:
        dataset: its name or file, or arrays in memory with D4RL's or Gymnasium's names, see `ArrayDataModule`; None if
            the configuration names it. Policies from arrays are rolled out only if `data={"env_id": ...}` says where.
        config: YAML files or recipes of the package ("quickstart"), merged in order.
        run_dir: where to keep the run, and to go on from; None keeps nothing but what is returned.
        stage: run this one only.
        reuse: another run, whose finished stages are taken over if they were made from the same.
        sections: sections of the configuration over the files, e.g. `critic={"discount": 0.97}` or `seed=1`.

    Raises:
        CepdiffError: anything a user can mend.
    """
    files = [find(name) for name in ([config] if isinstance(config, (str, Path)) else config)]
    arrays: dict[str, Any] = {}
    data = dict(sections.pop("data", {}))
    if isinstance(dataset, Mapping):
        arrays = {"arrays": dataset}
        data = {"class_path": "cepdiff.data.rl.memory.ArrayDataModule", "dataset": "arrays", **data}
        if "env_id" not in data:
            sections["evaluation"] = {"episodes": 0, **sections.get("evaluation", {})}
    elif dataset is not None:
        data["dataset"] = dataset
    with ExitStack() as kept:
        place = run_dir or kept.enter_context(tempfile.TemporaryDirectory(prefix="cepdiff-"))
        layers = [*map(read_layer, files), {"data": data} if data else {}, sections, {"run_dir": str(place)}]
        folders = [str(file.resolve().parent) for file in files]
        other = None if reuse is None else str(reuse)
        problem = fit_config(merge_config(layers), stage, folders, other, arrays, run_dir is not None)
        judged = stage in (None, problem.stages()[-1].name) and problem.run.folder.results.is_file()
        results = problem.results() if judged else None
    return Fitted(problem, problem.policy(), results, None if run_dir is None else Path(run_dir))


def record(
    env: gymnasium.Env[Any, Any], policy: Callable[[NDArray[Any]], NDArray[Any]], steps: int, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Exactly `steps` transitions of a policy, observation (S,) -> action (A,), as arrays for `fit`."""
    return recorder.record(env, lambda observation: np.asarray(policy(observation)), steps, seed=seed, label="record")


def load_policy(
    run_dir: str | Path,
    device: str = "cpu",
    num_solver_steps: int | None = None,
    trust_sources: Sequence[str | Path] = (),
    one_step: bool = False,
) -> Any:
    """The `GuidedPolicy` of a run, or the `ImageSampler` of a run on images.

    `one_step` uses the distilled network instead of the run's sampler. Your own classes are imported only from the
    folders `trust_sources`, which runs their code.

    Raises:
        RunError, ConfigError: as `GuidedPolicy.from_run`.
    """
    if one_step or read_recipe(run_dir)[0].image_shape is None:
        return GuidedPolicy.from_run(run_dir, device, num_solver_steps, trust_sources, one_step)
    return ImageSampler.from_run(run_dir, device, num_solver_steps, trust_sources)


def evaluate(run_dir: str | Path, **options: Any) -> Results:
    """Roll a run's policy out again, as `cepdiff evaluate` does; see `problems.offline.evaluate.evaluate_run`."""
    return evaluate_run(run_dir, **options)


def report(
    run_dirs: Sequence[str | Path],
    output: str | Path = "report",
    trust_sources: Sequence[str | Path] = (),
    scale: float | str = reports.OFFLINE,
    html: bool = False,
) -> list[reports.Section]:
    """Compare finished runs, as `cepdiff report` does: `report.md`, `report.json` and figures in `output`.

    `scale` is the guidance scale at which offline RL is compared, "offline" (each run's choice) or "best" (in
    hindsight). With `html`, `report.html` is one page with all of it.
    """
    return reports.report([Path(name) for name in run_dirs], Path(output), trust_sources, scale, html)
