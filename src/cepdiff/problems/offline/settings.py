"""Settings of offline RL: lengths of the stages, drawing of support actions, rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cepdiff.runs.stage import StageSettings


@dataclass
class SupportSettings:
    """Drawing of support actions.

    Args:
        num_actions: K, at least 2; null is the task's own number (16, AntMaze 32).
        max_rows: about how many rows to draw for, in whole episodes; null draws for all.
        chunk_size: states drawn at a time.
    """

    num_actions: int | None = field(default=None, metadata={"least": 2})
    max_rows: int | None = field(default=None, metadata={"least": 1})
    chunk_size: int = field(default=4096, metadata={"least": 1})


@dataclass
class OfflineStages:
    """The stages in order, with the recipe's lengths."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(600_000))
    support: SupportSettings = field(default_factory=SupportSettings)
    critic: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(1_000_000))


@dataclass
class EvaluationSettings:
    """Rollouts in the environment.

    Args:
        scales: guidance scales; null is the task's own list.
        episodes: per scale; null is the task's own number, 0 never opens an environment.
        every_n_steps: also evaluate every this many steps of the behavior and guidance stages; null only at the end.
        seed: of the episodes' starts and noise; null is the run's seed.
        max_envs: environments stepped side by side on a process.
        backend: "gymnasium", or "gym" for D4RL's own environments in the classic stack (docker/Dockerfile.d4rl).
        engine: runs the policy: "torch", "cuda_graph", or "onnx" (the extra of that name; the fastest on CPUs); null is
            a CUDA graph on GPUs and torch elsewhere.
    """

    scales: list[float] | None = field(default=None, metadata={"least": 0})
    episodes: int | None = field(default=None, metadata={"least": 0})
    every_n_steps: int | None = field(default=None, metadata={"least": 1})
    seed: int | None = None
    max_envs: int = field(default=128, metadata={"least": 1})
    backend: Literal["gymnasium", "gym"] = "gymnasium"
    engine: str | None = None
