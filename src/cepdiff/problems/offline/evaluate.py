"""Score a finished run's policy again, with other scales, episodes, seeds, solver steps or engines."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cepdiff.components import class_path_of
from cepdiff.data.rl.tasks import find_task, references_for_env
from cepdiff.errors import ConfigError, RunError
from cepdiff.files import check_output, unused
from cepdiff.policy.engines import check_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import Recipe
from cepdiff.problems.offline.environment import DEFAULT_EPISODES, Evaluation
from cepdiff.problems.offline.judge import COLUMNS, choose_rollout_threads, marks, no_best, rollouts, score_rows
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.rollout.environment import (
    CLASSIC_MODULE,
    check_reference,
    choose_environment,
    classic_environment,
    limited,
)
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.rollout.registry import refuse_untrusted
from cepdiff.rollout.scores import Reference, best_row, summarize
from cepdiff.rollout.video import check_video, record_video
from cepdiff.runs.comparison import file_name
from cepdiff.runs.folder import differences
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.results import Results, with_inverse_temperatures
from cepdiff.trust import OPTION

LONGEST_NAME = 120  # letters of the options in the name of a file
_NOT_COMPARED = ("seed", "max_envs", "num_workers")  # the list of seeds is; the others are of the machine


def evaluate_run(
    run_dir: str | Path,
    *,
    scales: Sequence[float] | None = None,
    inverse_temperatures: Sequence[float] | None = None,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    num_solver_steps: int | None = None,
    max_envs: int = 128,
    num_workers: int = 0,
    env_id: str | None = None,
    max_episode_steps: int | None = None,
    backend: str | None = None,
    engine: str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    output: Path | None = None,
    video: Path | None = None,
    trust_sources: Sequence[str | Path] = (),
    one_step: bool = False,
) -> Results:
    """Score the policy in a run folder; None is the run's own setting.

    Args:
        run_dir: the folder, or the `policy.pt` in one.
        scales: guidance scales, 0 or more.
        inverse_temperatures: s beta for each scale s, 0 or more, instead of `scales`.
        episodes: per scale and seed.
        seeds: of the episodes' starts and noise.
        num_solver_steps: of the sampler.
        max_envs: environments stepped side by side on a process.
        num_workers: processes that step them; 0 steps them in this one.
        env_id: another environment, or the run's own; its module may be in the working folder.
        max_episode_steps: cut episodes after this many steps.
        backend: "gymnasium" or "gym".
        engine: as `evaluation.engine`.
        accelerator: as `trainer.accelerator`.
        devices: processes that share the episodes.
        output: where to write the results, see `output_for`; `Results.file` is the file.
        video: a file for an episode at the best scale.
        trust_sources: folders whose classes may be imported.
        one_step: score the distilled network instead of the run's sampler.

    Raises:
        ConfigError: values out of range, or an engine or backend that does not fit.
        RunError: no run, or one without episodes; or `output` has results of other settings.
        OutputError: a file cannot be written; raised before any episode.
    """
    place = Path(run_dir)
    if not place.exists():
        raise RunError(f"there is no run folder {place}")
    counts = {"episodes": episodes, "num_solver_steps": num_solver_steps, "max_envs": max_envs, "devices": devices}
    counts["max_episode_steps"] = max_episode_steps
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected at least 1")
    if num_workers < 0:
        raise ConfigError(f"--num_workers is {num_workers}; expected 0 or more")
    for name, values in {"scales": scales, "inverse_temperatures": inverse_temperatures}.items():
        if not all(0 <= value < math.inf for value in values or ()):
            raise ConfigError(f"--{name} {list(values or ())}: expected numbers of 0 or more")
    if scales is not None and inverse_temperatures is not None:
        raise ConfigError("--scales and --inverse_temperatures set the same thing: give only one of them")
    check_engine(engine)
    given = {
        "scales": scales, "inverse_temperatures": inverse_temperatures, "episodes": episodes, "seeds": seeds,
        "num_solver_steps": num_solver_steps, "env_id": env_id, "max_episode_steps": max_episode_steps,
        "backend": backend, "engine": engine, "devices": None if devices == 1 else devices,
    }  # fmt: skip
    check_output(output or default_output(place, one_step))
    if video is not None:
        check_video(video)
    processes = Processes(TrainerSettings(accelerator, devices, strategy="auto" if devices == 1 else "ddp"))
    with processes.together():
        policy = GuidedPolicy.from_run(place, processes.device, num_solver_steps, trust_sources, one_step)
        assert policy.recipe is not None
        evaluation = evaluation_of_policy(policy, policy.recipe, backend, place, env_id, trust_sources)
        assert evaluation.environment is not None
        environment = limited(evaluation.environment, max_episode_steps, None, "--max_episode_steps")
        evaluation = replace(evaluation, environment=environment)
        beta = policy.sampler.objective.inverse_temperature
        if inverse_temperatures is not None:
            scales = [value / beta for value in inverse_temperatures]
        chosen = None if scales is None else sorted(set(scales))
        changes: dict[str, Any] = {
            "scales": chosen, "episodes": episodes, "engine": engine, "max_envs": max_envs, "num_workers": num_workers,
        }  # fmt: skip
        evaluation = replace(evaluation, **{name: value for name, value in changes.items() if value})
        for scale in evaluation.scales:
            policy.sampler.require_energy(scale)
        choose_rollout_threads(policy, evaluation, processes)
        seeds = list(seeds or [evaluation.seed])
        made_from = {
            "policy": dict(policy.recipe.made_from),
            "sampler": policy.recipe.sampler_hash,
            "one_step": one_step,
            "num_solver_steps": policy.sampler.solver.num_steps,
            **{name: value for name, value in asdict(evaluation).items() if name not in _NOT_COMPARED},
            "seeds": seeds,
            "device": processes.device.type,
        }
        path = processes.on_main(lambda: output_for(place, output, one_step, given, made_from))
        found = [episode for seed in seeds for episode in rollouts(policy, replace(evaluation, seed=seed), processes)]
        rows = summarize(found, evaluation.reference)
        lines = score_rows(rows)
        columns: Mapping[str, Sequence[str]] = COLUMNS
        if inverse_temperatures is not None or policy.sampler.tempered is not None:
            lines, columns = with_inverse_temperatures(lines, columns, beta)
        results = Results(
            problem=class_path_of(OfflineRL),
            dataset=policy.recipe.dataset,
            seed=seeds[0],
            title=f"{policy.recipe.dataset}, seeds {', '.join(map(str, seeds))}" + (", one step" if one_step else ""),
            rows=lines,
            columns=columns,
            marks=marks(rows, evaluation.scales, None),
            notes=no_best(rows),
            about={"seeds": seeds, "num_solver_steps": policy.sampler.solver.num_steps},
            made_from=made_from,
        )
        processes.on_main(lambda: results.write(path))
        if video is not None and processes.is_main:
            scale = best_row(rows).guidance_scale
            record_video(
                policy, environment, video,
                guidance_scale=scale, episodes=1, seed=seeds[0], device=policy.device,
            )  # fmt: skip
    return replace(results, folder=path.parent, file=path)


def default_output(place: Path, one_step: bool) -> Path:
    """Where the results of the policy at `place` are written: the two policies of a run do not share a file."""
    name = "evaluation_one_step.json" if one_step else "evaluation.json"
    return (place if place.is_dir() else place.parent) / name


def output_for(
    place: Path, output: Path | None, one_step: bool, given: Mapping[str, Any], made_from: Mapping[str, Any]
) -> Path:
    """The file to write results to: never one with results of other settings, or of another training.

    Results of the same settings are replaced, which a line on stderr says. By default the file is `evaluation.json`;
    if that has other results, the options `given` are in its name, as in `evaluation_episodes-100_seeds-0-1.json`, and
    a number if those are there too. Raises RunError if `output` has other results.
    """

    def is_free(path: Path) -> bool:
        if not path.exists():
            return True
        with suppress(RunError):  # another program's, damaged, or of another version
            if not differences(Results.read(path).made_from, made_from):
                print(f"{path}: replacing results of the same settings", file=sys.stderr)
                return True
        return False

    if output is not None:
        if is_free(output):
            return output
        raise RunError(f"{output} exists, and is not of these settings: choose another --output, or delete it")
    first = default_output(place, one_step)
    options = "_".join(f"{key}-{_joined(value)}" for key, value in given.items() if value is not None)
    second = first.with_name(f"{first.stem}_{file_name(options or 'defaults')[:LONGEST_NAME]}.json")
    return first if is_free(first) else unused(second, is_free)


def _joined(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return "-".join(f"{item:g}" if isinstance(item, float) else str(item) for item in values)


def evaluation_of_policy(
    policy: GuidedPolicy,
    recipe: Recipe,
    backend: str | None,
    run_dir: Path,
    env_id: str | None = None,
    trusted: Sequence[str | Path] = (),
) -> Evaluation:
    """The run's settings, with its own environment, another backend's, or `env_id`."""
    known = recipe.environment
    if not recipe.spec["observation_size"]:
        raise RunError(
            f"the run {run_dir} samples a density and has no episodes: `cepdiff fit` again compares samples of "
            "other --evaluation.scales with exact ones, and `cepdiff report` shows runs side by side"
        )
    if not known:
        raise RunError(f"the run {run_dir} was trained without an environment (evaluation.episodes 0)")
    references = known["reference"] if env_id in (None, known["env_id"]) else references_for_env(env_id)
    reference = None if references is None else Reference(*references)
    return Evaluation(
        environment=environment_of_policy(recipe, backend, reference, env_id, trusted),
        reference=reference,
        scales=sorted(set(recipe.scales)) if policy.sampler.has_energy else [0.0],
        episodes=known["episodes"] or DEFAULT_EPISODES,
        seed=known.get("seed", 0),
        max_envs=128,
    )


def environment_of_policy(
    recipe: Recipe,
    backend: str | None,
    reference: Reference | None,
    env_id: str | None = None,
    trusted: Sequence[str | Path] = (),
) -> EnvSpec:
    """The run's own environment, the task's of another backend, or `env_id` with the arguments of the run's own.

    Raises:
        ConfigError: an unknown backend, or another one for a run that is not on a task of D4RL.
        SimulationError: D4RL's reference returns are not those of the run, or the policy file names a module that is
            not installed.
    """
    known = EnvSpec(*(recipe.environment[key] for key in ("env_id", "kwargs", "module")))
    if backend not in (None, "gymnasium", "gym"):
        raise ConfigError(f"--backend is {backend}; expected gymnasium or gym")
    if env_id is not None:
        if backend == "gym":
            raise ConfigError("--backend gym is D4RL's own environment: leave out --env_id")
        return EnvSpec(env_id, known.kwargs if env_id == known.env_id else {})
    refuse_untrusted(known.modules, "the policy file", f"add {OPTION} FOLDER or --env_id {known.env_id}", trusted)
    if backend == "gym":
        chosen = classic_environment(recipe.dataset)
        with closing(make_env(chosen)) as env:
            check_reference(env, reference)
        return chosen
    if backend == "gymnasium" and known.module == CLASSIC_MODULE:
        return choose_environment(recipe.dataset, find_task(recipe.dataset), {}, None, None, "--data.env_id")
    return known
