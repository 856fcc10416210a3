"""What `cepdiff evaluate` does: a finished run's policy, scored anew."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from cepdiff.callbacks.progress import progress
from cepdiff.data.rl.tasks import find_task
from cepdiff.errors import ConfigError, RunError
from cepdiff.policy.engines import check_engine, run_by
from cepdiff.policy.guided import GuidedPolicy, PolicyRecipe
from cepdiff.rollout.envs import EnvSpec, make_env
from cepdiff.rollout.evaluation import evaluate
from cepdiff.rollout.rollout import EpisodeResult
from cepdiff.rollout.scores import Reference, ScoreRow, best_row, format_table, summarize, write_scores
from cepdiff.rollout.video import record_video
from cepdiff.stages.environment import (
    CLASSIC_MODULE,
    DEFAULT_EPISODES,
    Evaluation,
    check_reference,
    choose_environment,
    classic_environment,
)
from cepdiff.stages.processes import Processes
from cepdiff.stages.settings import TrainerSettings


def evaluate_run(args: argparse.Namespace) -> int:
    """Scores `args.run_dir` as the arguments ask; prints a table, writes JSON and, if asked, a video."""
    run_dir = Path(args.run_dir)
    if not run_dir.exists():
        raise RunError(f"there is no run folder {run_dir}")
    for name in ("episodes", "num_solver_steps", "max_envs", "devices"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected at least 1")
    if any(scale < 0 for scale in args.scales or ()):
        raise ConfigError(f"--scales {args.scales}: expected numbers of 0 or more")
    check_engine(args.engine)
    strategy = "auto" if args.devices == 1 else "ddp"
    processes = Processes(TrainerSettings(args.accelerator, args.devices, strategy=strategy))
    policy = GuidedPolicy.from_run(run_dir, processes.device, args.num_solver_steps)
    assert policy.recipe is not None
    seeds = args.seeds or [policy.recipe.environment.get("seed", 0)]
    first = evaluation_of_policy(policy.recipe, policy, args, seeds[0])
    evaluations = [replace(first, seed=seed) for seed in seeds]
    results = [result for evaluation in evaluations for result in rollouts(policy, evaluation, processes)]
    rows = summarize(results, evaluations[0].reference)
    processes.on_main(lambda: report(rows, policy, evaluations[0], args, run_dir, seeds))
    processes.close()
    return 0


def evaluation_of_policy(recipe: PolicyRecipe, policy: GuidedPolicy, args: argparse.Namespace, seed: int) -> Evaluation:
    """The run's own settings with the arguments on top."""
    known = recipe.environment
    if not recipe.spec["observation_size"]:
        raise RunError(
            f"the run {args.run_dir} samples a density and has no episodes: `cepdiff fit` again compares samples of "
            "other --evaluation.scales with exact ones, and `cepdiff report` shows runs side by side"
        )
    if not known:
        raise RunError(f"the run {args.run_dir} was trained without an environment (evaluation.episodes 0)")
    reference = None if known["reference"] is None else Reference(*known["reference"])
    scales = args.scales or (recipe.scales if policy.energy_net is not None else [0.0])
    return Evaluation(
        environment=environment_of_policy(recipe, args.backend, reference),
        reference=reference,
        scales=sorted(set(scales)),
        episodes=args.episodes or known["episodes"] or DEFAULT_EPISODES,
        seed=seed,
        max_envs=args.max_envs,
        engine=args.engine,
    )


def environment_of_policy(recipe: PolicyRecipe, backend: str | None, reference: Reference | None) -> EnvSpec:
    """The run's own environment, or the task's of another backend.

    Raises:
        ConfigError: another backend for a run on what is no task of D4RL.
        SimulationError: D4RL's reference returns are not those of the run.
    """
    known = EnvSpec(*(recipe.environment[key] for key in ("env_id", "kwargs", "module")))
    if backend == "gym":
        chosen = classic_environment(recipe.task)
        env = make_env(chosen)
        try:
            check_reference(env, reference)
        finally:
            env.close()
        return chosen
    if backend == "gymnasium" and known.module == CLASSIC_MODULE:
        return choose_environment(recipe.task, find_task(recipe.task), {}, None, None, "--data.env_id")
    return known


def report(
    rows: list[ScoreRow],
    policy: GuidedPolicy,
    evaluation: Evaluation,
    args: argparse.Namespace,
    run_dir: Path,
    seeds: list[int],
) -> None:
    """Table, JSON and video."""
    assert policy.recipe is not None
    assert evaluation.environment is not None
    folder = run_dir if run_dir.is_dir() else run_dir.parent
    output = Path(args.output) if args.output else folder / "evaluation.json"
    extra = {"seeds": seeds, "num_solver_steps": policy.solver.num_steps}
    write_scores(output, policy.recipe.task, rows, extra)
    print(f"{policy.recipe.task}, seeds {', '.join(map(str, seeds))}\n{format_table(rows)}\nscores {output}")
    if args.video is not None:
        video = Path(args.video) if args.video else folder / "best.mp4"
        scale = best_row(rows).guidance_scale
        record_video(
            policy,
            evaluation.environment,
            video,
            guidance_scale=scale,
            episodes=1,
            seed=seeds[0],
            device=policy.device,
        )
        print(f"video {video} (guidance scale {scale})")


def rollouts(policy: GuidedPolicy, evaluation: Evaluation, processes: Processes) -> list[EpisodeResult]:
    """Episodes of a policy on all processes, with a progress bar."""
    if evaluation.environment is None:
        raise RunError("there is no environment to evaluate in")
    total = len(evaluation.scales) * evaluation.episodes
    shown = processes.is_main and processes.settings.progress_bar
    with progress(-(-total // processes.world), "evaluation", "episode", enabled=shown) as bar:
        return evaluate(
            run_by(policy, evaluation.engine),
            evaluation.environment,
            scales=evaluation.scales,
            episodes=evaluation.episodes,
            seed=evaluation.seed,
            rank=processes.rank,
            world=processes.world,
            max_envs=evaluation.max_envs,
            device=processes.device,
            on_progress=lambda done, _: bar.update(done - bar.n),
        )
