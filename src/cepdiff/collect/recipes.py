"""Collect D4RL's kinds of buffers (Fu et al. 2020), all from one SAC training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from cepdiff.collect.ant_navigation import ANT_NOISE, ANT_ROWS, trips_of, walk_to_goals
from cepdiff.collect.gait import Walker
from cepdiff.collect.kinds import KINDS, check_kinds
from cepdiff.collect.navigation import POINT_OBSERVATIONS, full_size, maze_of, navigate
from cepdiff.collect.policies import load_policy, uniform
from cepdiff.collect.recorder import Act, Arrays, concatenate, first_rows, mean_return, record, state_of
from cepdiff.collect.sac import SacTraining, Snapshot, train_sac
from cepdiff.data.rl.arrays import RawArrays
from cepdiff.data.rl.tasks import references_for_env
from cepdiff.envs.layouts import Layout
from cepdiff.errors import ConfigError, MissingExtraError, SimulationError
from cepdiff.randomness import generator
from cepdiff.rollout.envs import Env, EnvSpec, box_spaces, env_facts, make_checked_env

_PACKAGES = ("cepdiff", "gymnasium", "mujoco", "numpy", "stable-baselines3", "torch")

# (current activity, steps done, total steps, remark)
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Plan:
    """Environment and settings of a collection.

    `steps`: rows per rollout, and rows of `replay` (default: `train_steps`). `train_steps`: environment steps of SAC.
    `medium_fraction`: where the medium policy is between the random (0) and the expert return (1).
    `reference_episodes`: episodes per reference return. `states`: also store MuJoCo's qpos and qvel. `action_noise`:
    standard deviation of normal noise on the actions of `navigate` (None: 0 in Maze2D, D4RL's 0.2 in AntMaze).
    """

    env: EnvSpec
    train_steps: int = 1_000_000
    steps: int | None = None
    medium_fraction: float = 1 / 3
    seed: int = 0
    reference_episodes: int = 100
    states: bool = False
    action_noise: float | None = None

    def check(self, kinds: Sequence[str]) -> None:
        """Raise `ConfigError` for unknown kinds, more `replay` rows than training steps, or action noise that is
        negative, not finite or unused."""
        check_kinds(kinds)
        noise = self.action_noise
        if noise is not None and not (math.isfinite(noise) and noise >= 0):
            raise ConfigError(f"--action_noise is {noise}; expected 0 or a positive number")
        if noise is not None and "navigate" not in kinds:
            raise ConfigError("--action_noise only applies to --kind navigate; remove it")
        if "replay" in kinds and self.steps is not None and self.steps > self.train_steps:
            raise ConfigError(f"--steps is {self.steps}, but replay has {self.train_steps} rows; raise --train_steps")


class Collector:
    """Makes the buffers of one plan; the training and each rollout run once, when first needed."""

    def __init__(self, plan: Plan, progress: Progress = lambda what, done, total, remark: None) -> None:
        self.plan = plan
        self._progress = progress
        self._facts = env_facts(plan.env)
        if self._facts.horizon is None:
            raise SimulationError(
                f"'{plan.env.env_id}' has no time limit, so an episode might never end: "
                """add --env_kwargs '{"max_episode_steps": N}'"""
            )
        self._rollouts: dict[str, Arrays] = {}

    def check(self, kinds: Sequence[str], policy: str | None = None) -> None:
        """Raise before any work what `make` and `make_navigation` would: a kind that this environment cannot have, or
        a missing package; also `SimulationError` if `states` are wanted and there are none."""
        self.plan.check(kinds)
        if "navigate" in kinds:
            self._maze(policy)
        if set(kinds) - {"navigate", "random"} and find_spec("stable_baselines3") is None:
            raise MissingExtraError("Training SAC", "collect")
        if self.plan.states:
            with closing(self._env()) as env:
                env.reset(seed=0)
                if not state_of(env).keys() - {"goal"}:
                    raise SimulationError(f"'{self.plan.env.env_id}' has no MuJoCo state to store: remove --states")

    def make(self, kind: str) -> RawArrays:
        """Make the buffer of one of `KINDS`, with its origin as metadata. Raises `ConfigError` like `Plan.check`,
        `SimulationError` if there is no medium policy, because training was no better than random."""
        self.plan.check([kind])
        raw = self._raw(self._arrays(kind), kind, KINDS[kind])
        raw.metadata["reference_min"] = self.reference_min
        if kind != "random":
            raw.metadata |= {
                "algorithm": "SAC (stable-baselines3, default hyper-parameters)",
                "train_steps": self.plan.train_steps,
                "reference_max": self.reference_max,
            }
        if "medium" in kind:
            raw.metadata |= {"medium_fraction": self.plan.medium_fraction, "medium_step": self.medium.step}
        return raw

    def make_from_policy(self, name: str, *, trust: bool = False) -> RawArrays:
        """Record rollouts of a policy that `load_policy` can load."""
        env = self._env()
        act = load_policy(name, box_spaces(env)[1], trust=trust)
        raw = self._raw(self._record(env, act, "policy"), "policy", f"rollouts of {name}")
        raw.metadata["reference_min"] = self.reference_min
        return raw

    def make_navigation(self, policy: str | None = None, *, trust: bool = False) -> RawArrays:
        """Record walks from goal to goal in a maze: Maze2D by D4RL's planner and controller, AntMaze by D4RL's recipe
        with a policy that walks in a given direction, see `WaypointPolicy`; by default the package's own.

        Raises `SimulationError` if the environment has no maze, `ConfigError` for Maze2D with a policy.
        """
        plan, env = self.plan, self._env()
        layout, ball = self._maze(policy)
        rows, horizon = plan.steps or (full_size(layout) if ball else ANT_ROWS), self._facts.horizon
        noise = plan.action_noise if plan.action_noise is not None else 0.0 if ball else ANT_NOISE
        assert horizon is not None

        def report(done: int) -> None:
            self._progress("navigating", done, rows, "")

        report(0)  # the clock of the progress starts
        with closing(env):
            if ball:
                arrays = navigate(env, rows, seed=plan.seed, horizon=horizon, action_noise=noise, on_progress=report)
            else:
                walk = Walker.shipped() if policy is None else load_policy(policy, box_spaces(env)[1], trust=trust)
                arrays = walk_to_goals(
                    env,
                    walk,
                    rows,
                    trips=trips_of(plan.env.env_id, layout),
                    horizon=horizon,
                    seed=plan.seed,
                    action_noise=noise,
                    states=plan.states,
                    on_progress=report,
                )
        raw = self._raw(arrays, "navigate", KINDS["navigate"])
        references = references_for_env(plan.env.env_id)
        if references is not None:
            raw.metadata["reference_min"], raw.metadata["reference_max"] = references
        raw.metadata["action_noise"] = noise
        if not ball:
            raw.metadata["policy"] = policy or "the package's own"
        return raw

    @cached_property
    def training(self) -> SacTraining:
        """The training shared by all kinds except random."""
        plan, total = self.plan, self.plan.train_steps

        def report(step: int, remark: str) -> None:
            self._progress("training SAC", step, total, remark)

        report(0, "")
        return train_sac(self._env, total, seed=plan.seed, states=plan.states, on_progress=report)

    @cached_property
    def reference_min(self) -> float:
        """Mean return of the uniform policy."""
        env = self._env()
        act = uniform(box_spaces(env)[1], seed=self.plan.seed, label="reference-min-actions")
        return self._reference(env, act, "reference-min")

    @cached_property
    def reference_max(self) -> float:
        """Mean return of the final policy, without sampling."""
        return self._reference(self._env(), self.training.act(self.training.snapshots[-1]), "reference-max")

    @cached_property
    def medium(self) -> Snapshot:
        """First snapshot with `medium_fraction` of the gain from the random to the expert return.

        A fraction of the gain, not of the return, also works for negative returns.
        """
        gain = self.reference_max - self.reference_min
        if gain <= 0:
            raise SimulationError(
                f"no medium policy: SAC's return after {self.plan.train_steps} steps is {self.reference_max:.1f}, a "
                f"random policy's {self.reference_min:.1f}; train longer with --train_steps"
            )
        goal = self.reference_min + self.plan.medium_fraction * gain
        snapshots = self.training.snapshots
        return next((s for s in snapshots if s.mean_return >= goal), snapshots[-1])

    def _arrays(self, kind: str) -> Arrays:
        if kind == "replay":
            return first_rows(self.training.transitions, self.plan.steps or self.plan.train_steps)
        if kind == "medium-replay":
            return first_rows(self.training.transitions, self.medium.step)
        if kind == "medium-expert":
            return concatenate(self._arrays("medium"), self._arrays("expert"))
        if kind not in self._rollouts:
            env = self._env()
            self._rollouts[kind] = self._record(env, self._policy(kind, env), kind)
        return self._rollouts[kind]

    def _policy(self, kind: str, env: Env) -> Act:
        if kind == "random":
            return uniform(box_spaces(env)[1], seed=self.plan.seed, label="random-actions")
        snapshot = self.medium if kind == "medium" else self.training.snapshots[-1]
        # Sampled, not deterministic, like in D4RL.
        return self.training.act(snapshot, noise=generator(self.plan.seed, f"{kind}-actions"))

    def _record(self, env: Env, act: Act, label: str) -> Arrays:
        plan, rows = self.plan, self.plan.steps or self.plan.train_steps

        def report(done: int) -> None:
            self._progress(f"recording {label}", done, rows, "")

        report(0)
        with closing(env):
            return record(env, act, rows, seed=plan.seed, label=label, states=plan.states, on_progress=report)

    def _maze(self, policy: str | None) -> tuple[Layout, bool]:
        """The maze, and True if a ball rolls in it; raises as `make_navigation`."""
        with closing(self._env()) as env:
            layout = maze_of(env)
        ball = self._facts.observation_size == POINT_OBSERVATIONS
        if ball and policy is not None:
            raise ConfigError("Maze2D uses D4RL's own controller: remove --policy")
        return layout, ball

    def _reference(self, env: Env, act: Act, label: str) -> float:
        with closing(env):
            return mean_return(env, act, self.plan.reference_episodes, seed=self.plan.seed, label=label)

    def _env(self) -> Env:
        return make_checked_env(self.plan.env)

    def _raw(self, arrays: Arrays, kind: str, recipe: str) -> RawArrays:
        infos = {key.removeprefix("infos/"): values for key, values in arrays.items() if key.startswith("infos/")}
        fields = {key: values for key, values in arrays.items() if not key.startswith("infos/")}
        plan = self.plan
        metadata: dict[str, Any] = {
            "env_id": plan.env.env_id,
            "env_kwargs": json.dumps(dict(plan.env.kwargs)) if plan.env.kwargs else None,
            "kind": kind,
            "recipe": recipe,
            "seed": plan.seed,
            "horizon": self._facts.horizon,
            "action_low": self._facts.action_low,
            "action_high": self._facts.action_high,
            "reference_episodes": plan.reference_episodes,
            "versions": ", ".join(_versions()),
        }
        return RawArrays(**fields, infos=infos, metadata=metadata, source=kind)


def _versions() -> Iterator[str]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
