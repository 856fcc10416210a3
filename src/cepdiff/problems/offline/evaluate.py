"""Score a finished run's policy again, with other scales, episodes, seeds, solver steps or engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cepdiff.components import class_path_of
from cepdiff.data.rl.tasks import find_task
from cepdiff.errors import ConfigError, RunError
from cepdiff.policy.engines import check_engine
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import Recipe
from cepdiff.problems.offline.environment import (
    CLASSIC_MODULE,
    DEFAULT_EPISODES,
    Evaluation,
    check_reference,
    choose_environment,
    classic_environment,
)
from cepdiff.problems.offline.judge import COLUMNS, marks, rollouts, score_rows
from cepdiff.problems.offline.problem import OfflineRL
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.rollout.scores import Reference, best_row, summarize
from cepdiff.rollout.video import record_video
from cepdiff.runs.processes import Processes, TrainerSettings
from cepdiff.runs.results import Results


@dataclass(frozen=True)
class Request:
    """What to evaluate; None is the run's own setting.

    Args:
        scales: guidance scales, 0 or more.
        episodes: per scale and seed.
        seeds: of the episodes' starts and noise.
        num_solver_steps: of the sampler.
        max_envs: environments stepped side by side on a process.
        backend: "gymnasium" or "gym".
        engine: as `evaluation.engine`.
        accelerator: as `trainer.accelerator`.
        devices: processes that share the episodes.
    """

    scales: Sequence[float] | None = None
    episodes: int | None = None
    seeds: Sequence[int] | None = None
    num_solver_steps: int | None = None
    max_envs: int = 128
    backend: str | None = None
    engine: str | None = None
    accelerator: str = "auto"
    devices: int = 1

    def check(self) -> None:
        """Raise ConfigError for values out of range."""
        for name in ("episodes", "num_solver_steps", "max_envs", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} is {value}; expected at least 1")
        if any(scale < 0 for scale in self.scales or ()):
            raise ConfigError(f"--scales {list(self.scales or ())}: expected numbers of 0 or more")
        check_engine(self.engine)


def evaluate_run(
    run_dir: str | Path, request: Request = Request(), output: Path | None = None, video: Path | None = None
) -> Results:
    """Scores of the policy in a run folder, written to `output` (default: evaluation.json beside the policy).

    `video` is a file for an episode at the best scale.

    Raises:
        ConfigError: values out of range, or an engine or backend that does not fit.
        RunError: no run, or one without episodes.
    """
    place = Path(run_dir)
    if not place.exists():
        raise RunError(f"there is no run folder {place}")
    request.check()
    strategy = "auto" if request.devices == 1 else "ddp"
    processes = Processes(TrainerSettings(request.accelerator, request.devices, strategy=strategy))
    policy = GuidedPolicy.from_run(place, processes.device, request.num_solver_steps)
    assert policy.recipe is not None
    evaluation = evaluation_of_policy(policy, policy.recipe, request, place)
    seeds = list(request.seeds or [evaluation.seed])
    episodes = [
        episode for seed in seeds for episode in rollouts(policy, replace(evaluation, seed=seed), processes)
    ]  # fmt: skip
    rows = summarize(episodes, evaluation.reference)
    results = Results(
        problem=class_path_of(OfflineRL),
        dataset=policy.recipe.dataset,
        seed=seeds[0],
        title=f"{policy.recipe.dataset}, seeds {', '.join(map(str, seeds))}",
        rows=score_rows(rows),
        columns=COLUMNS,
        marks=marks(rows, evaluation.scales, None),
        about={"seeds": seeds, "num_solver_steps": policy.sampler.solver.num_steps},
    )
    path = output or (place if place.is_dir() else place.parent) / "evaluation.json"
    processes.on_main(lambda: results.write(path))
    if video is not None and processes.is_main:
        assert evaluation.environment is not None
        scale = best_row(rows).guidance_scale
        record_video(
            policy, evaluation.environment, video,
            guidance_scale=scale, episodes=1, seed=seeds[0], device=policy.device,
        )  # fmt: skip
    processes.close()
    return replace(results, folder=path.parent)


def evaluation_of_policy(policy: GuidedPolicy, recipe: Recipe, request: Request, run_dir: Path) -> Evaluation:
    """The run's own settings with the request on top."""
    known = recipe.environment
    if not recipe.spec["observation_size"]:
        raise RunError(
            f"the run {run_dir} samples a density and has no episodes: `cepdiff fit` again compares samples of "
            "other --evaluation.scales with exact ones, and `cepdiff report` shows runs side by side"
        )
    if not known:
        raise RunError(f"the run {run_dir} was trained without an environment (evaluation.episodes 0)")
    reference = None if known["reference"] is None else Reference(*known["reference"])
    scales = request.scales or (recipe.scales if policy.sampler.has_energy else [0.0])
    return Evaluation(
        environment=environment_of_policy(recipe, request.backend, reference),
        reference=reference,
        scales=sorted(set(scales)),
        episodes=request.episodes or known["episodes"] or DEFAULT_EPISODES,
        seed=known.get("seed", 0),
        max_envs=request.max_envs,
        engine=request.engine,
    )


def environment_of_policy(recipe: Recipe, backend: str | None, reference: Reference | None) -> EnvSpec:
    """The run's own environment, or the task's of another backend.

    Raises:
        ConfigError: another backend for a run that is not on a task of D4RL.
        SimulationError: D4RL's reference returns are not those of the run.
    """
    known = EnvSpec(*(recipe.environment[key] for key in ("env_id", "kwargs", "module")))
    if backend == "gym":
        chosen = classic_environment(recipe.dataset)
        env = make_env(chosen)
        try:
            check_reference(env, reference)
        finally:
            env.close()
        return chosen
    if backend == "gymnasium" and known.module == CLASSIC_MODULE:
        return choose_environment(recipe.dataset, find_task(recipe.dataset), {}, None, None, "--data.env_id")
    return known
