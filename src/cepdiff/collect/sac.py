"""Train Soft Actor-Critic (Haarnoja et al. 2018) with stable-baselines3 and record the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from torch import Tensor

from cepdiff.collect.recorder import Act, Arrays, RecordingEnv, mean_return
from cepdiff.errors import DivergenceError, MissingExtraError
from cepdiff.randomness import stream_seed
from cepdiff.rollout.envs import Env, box_spaces


@dataclass(frozen=True)
class Snapshot:
    """The actor after `step` environment steps and its mean deterministic return over a few episodes."""

    step: int
    mean_return: float
    actor: dict[str, Tensor]


@dataclass(frozen=True)
class SacTraining:
    """Result of a training: every transition in order, snapshots by step, and a factory of actors."""

    transitions: Arrays
    snapshots: list[Snapshot]
    make_actor: Callable[[], Any]
    action_space: Box

    def act(self, snapshot: Snapshot, *, noise: torch.Generator | None = None) -> Act:
        """Return the policy of a snapshot: sampled with `noise`, deterministic without."""
        actor = self.make_actor()
        actor.load_state_dict(snapshot.actor)
        actor.eval()
        low, high = self.action_space.low, self.action_space.high

        @torch.no_grad()
        def act(observation: NDArray[Any]) -> NDArray[Any]:
            inputs = torch.as_tensor(observation, dtype=torch.float32).unsqueeze(0)
            mean, log_std, _ = actor.get_action_dist_params(inputs)
            if noise is not None:
                mean = mean + log_std.exp() * torch.randn(mean.shape, generator=noise)
            unit = (torch.tanh(mean)[0].double().numpy() + 1) / 2
            action: NDArray[Any] = np.clip(low + unit * (high - low), low, high).astype(self.action_space.dtype)
            return action

        return act


def train_sac(
    make_env: Callable[[], Env],
    steps: int,
    *,
    seed: int,
    snapshots: int = 50,
    snapshot_episodes: int = 5,
    states: bool = False,
    on_progress: Callable[[int, str], None] = lambda step, remark: None,
) -> SacTraining:
    """Train SAC with stable-baselines3's default hyper-parameters for exactly `steps` environment steps, on the CPU.

    About `snapshots` equally spaced actors are kept, at least 100 steps apart, the last one at `steps`. Evaluating them
    uses no random numbers of the training, so a longer training starts with the transitions of a shorter one.

    Raises `MissingExtraError` without stable-baselines3, `DivergenceError` if parameters become NaN or infinite.
    """
    try:
        from stable_baselines3 import SAC
    except ImportError:
        raise MissingExtraError("Training SAC", "collect") from None

    recorder = RecordingEnv(make_env(), steps, states=states)
    judge = make_env()
    _, action_space = box_spaces(judge)
    # 31 bits: NumPy accepts 32, and stable-baselines3 adds an index.
    model = SAC("MlpPolicy", recorder, seed=stream_seed(seed, "sac") >> 32, device="cpu")
    taken: list[Snapshot] = []
    every = max(100, steps // snapshots)

    def predict(observation: NDArray[Any]) -> NDArray[Any]:
        action: NDArray[Any] = model.predict(observation, deterministic=True)[0]
        return action

    def take(step: int) -> None:
        actor = {name: value.detach().clone() for name, value in model.actor.state_dict().items()}
        if not all(bool(value.isfinite().all()) for value in actor.values()):
            raise DivergenceError(f"SAC diverged before step {step}: its actor has NaN or infinite parameters")
        value = mean_return(judge, predict, snapshot_episodes, seed=seed, label="snapshot")
        taken.append(Snapshot(step, value, actor))

    def after_step(local: dict[str, Any], _global: dict[str, Any]) -> bool:
        step = int(local["self"].num_timesteps)
        if step % every == 0 and step != steps:
            take(step)
        on_progress(step, f"return {taken[-1].mean_return:.1f}" if taken else "")
        return True

    with warnings.catch_warnings():
        # SAC's advice on float64 observations etc. is not for users of this command.
        warnings.filterwarnings("ignore", category=UserWarning, module="stable_baselines3")
        model.learn(steps, callback=after_step)
    take(steps)
    judge.close()
    recorder.close()
    return SacTraining(recorder.arrays(), taken, model.policy.make_actor, action_space)
