"""What can be set, beside the classes: lengths of stages, evaluation, Trainer; and which sections a run has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cepdiff.components import class_path_of
from cepdiff.data.blocks import StageDataModule
from cepdiff.data.densities.datamodule import EnergyDataModule
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.diffusion.schedule import LinearVP, NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP
from cepdiff.errors import ConfigError
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance
from cepdiff.modules.headed import HeadedEnergyGuidance
from cepdiff.networks.images.half_unet import HalfUNet
from cepdiff.networks.images.unet import UNetScore
from cepdiff.policy.engines import check_engine

MIN_IMAGES = 8  # a head: neighbours to the fifth, and a covariance


@dataclass
class StageSettings:
    """Length of a trained stage.

    Args:
        max_steps: optimiser steps.
        checkpoint_every: steps between writes of `last.ckpt`.
    """

    max_steps: int
    checkpoint_every: int = 5000


@dataclass
class SupportSettings:
    """Drawing of support actions.

    Args:
        num_actions: K; null is the task's own number (16, AntMaze 32).
        max_rows: about how many rows to draw for, in whole episodes; null draws for all.
        chunk_size: states drawn at a time.
    """

    num_actions: int | None = None
    max_rows: int | None = None
    chunk_size: int = 4096


@dataclass
class StagesSettings:
    """The stages in their order, with the recipe's lengths."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(600_000))
    support: SupportSettings = field(default_factory=SupportSettings)
    critic: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(1_000_000))


@dataclass
class DensityStages:
    """The stages of a run on data that come with their energies."""

    behavior: StageSettings = field(default_factory=lambda: StageSettings(10_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(10_000))


@dataclass
class ImageStages:
    """The stages of a run on images.

    0 steps leave a stage untrained: the behavior stage uses a pretrained prior as it is; the guidance stage asks the
    energy itself, a differentiable function of the image, about the predicted clean sample (objective DPS).
    """

    behavior: StageSettings = field(default_factory=lambda: StageSettings(500_000))
    guidance: StageSettings = field(default_factory=lambda: StageSettings(500_000))


@dataclass
class EvaluationSettings:
    """Rollouts in the environment.

    Args:
        scales: guidance scales; null is the task's own list.
        episodes: a scale; null is the task's own number, 0 never opens an environment.
        every_n_steps: also evaluate during the behavior and guidance stages, every so many steps; null only at the end.
        seed: of the episodes' starts and noise; null is the run's seed.
        max_envs: environments stepped side by side on a process.
        backend: "gymnasium", or "gym" for D4RL's own environments in the classic stack (docker/Dockerfile.d4rl).
        engine: what runs the policy: "torch", "cuda_graph", or "onnx" (the extra of that name; on CPUs the quickest);
            null is a CUDA graph on GPUs and torch elsewhere.
    """

    scales: list[float] | None = None
    episodes: int | None = None
    every_n_steps: int | None = None
    seed: int | None = None
    max_envs: int = 128
    backend: str = "gymnasium"
    engine: str | None = None


@dataclass
class SampleSettings:
    """Comparison of guided samples with exact ones.

    Args:
        num_samples: a scale, and of each exact draw; at least 2.
        scales: guidance scales; the exact one is 1, and 0 shows the prior.
        floor_repeats: pairs of independent exact draws, whose mean distance is the noise floor; at least 2.
        seed: of the samples' noise and of the exact draws; null is the run's seed.
    """

    num_samples: int = 10_000
    scales: list[float] = field(default_factory=lambda: [0.0, 1.0])
    floor_repeats: int = 4
    seed: int | None = None


@dataclass
class ImageEvaluationSettings:
    """Comparison of guided images with what they should be.

    Args:
        scales: guidance scales; the exact one is 1, and 0 shows the prior.
        num_samples: a head and scale; at least 8.
        batch_size: images sampled at a time on a process.
        classifier_steps: class energies alone: training steps of the independent classifier of clean images.
        floor_repeats: pairs of independent draws of real images, whose mean distance is the noise floor; at least 2.
        grid_columns: images a head in the grids.
        seed: of the samples' noise, the draws and the classifier; null is the run's seed.
        every_n_steps: also show a small grid during the behavior and guidance stages; null only at the end.
        fid_weights: a file of the FID-Inception weights of the package torch-fidelity, for the FID; null for none.
    """

    scales: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 2.0, 4.0])
    num_samples: int = 250
    batch_size: int = 250
    classifier_steps: int = 1000
    floor_repeats: int = 8
    grid_columns: int = 10
    seed: int | None = None
    every_n_steps: int | None = None
    fid_weights: str | None = None


@dataclass
class TrainerSettings:
    """What is passed to Lightning's Trainer, the same in every stage.

    Args:
        accelerator: "auto", "cpu", "gpu", ...
        devices: how many processes (GPUs) a node.
        num_nodes: machines.
        strategy: "auto", "ddp", ...
        precision: Lightning's, e.g. "32-true" or "bf16-mixed".
        matmul_precision: torch's float32 matrix products: "highest", "high" (TF32 on GPUs) or "medium".
        num_threads: CPU threads a process; null leaves torch's choice.
        deterministic: refuse operations that have no deterministic form.
        profiler: "simple", "advanced" or null.
        progress_bar: show progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    matmul_precision: str = "highest"
    num_threads: int | None = None
    deterministic: bool = False
    profiler: str | None = None
    progress_bar: bool = True


@dataclass(frozen=True)
class Layout:
    """The sections of a configuration.

    Args:
        components: sections that name a class: key -> (base, default class, arguments that the runner supplies).
        settings: sections of plain values.
        nested: arguments that stand for a class although their signature's default is None.
        check: of the settings' ranges.
    """

    components: Mapping[str, tuple[type, type, set[str]]]
    settings: Mapping[str, type]
    nested: Mapping[str, Mapping[str, Any]]
    check: Callable[[Any], None]


def layout_of(data: type) -> Layout:
    """The sections that a run on such a data module has."""
    if issubclass(data, ImageDataModule):
        return IMAGES
    return DENSITY if issubclass(data, EnergyDataModule) else OFFLINE


def check_offline(built: Any) -> None:
    """Ranges of the settings of offline RL."""
    stages: StagesSettings = built.stages
    check_lengths({"behavior": stages.behavior, "critic": stages.critic, "guidance": stages.guidance})
    at_least_one(
        {
            "stages.support.num_actions": stages.support.num_actions,
            "stages.support.max_rows": stages.support.max_rows,
            "stages.support.chunk_size": stages.support.chunk_size,
            "evaluation.every_n_steps": built.evaluation.every_n_steps,
            "evaluation.max_envs": built.evaluation.max_envs,
        }
    )
    if stages.support.num_actions == 1:
        raise ConfigError("stages.support.num_actions is 1; contrastive energies need at least 2 support actions")
    if built.evaluation.episodes is not None and built.evaluation.episodes < 0:
        raise ConfigError(f"evaluation.episodes is {built.evaluation.episodes}; expected 0 or more")
    check_scales(built.evaluation.scales)
    check_engine(built.evaluation.engine)
    check_trainer(built.trainer)


def check_density(built: Any) -> None:
    """Ranges of the settings of a run on points with energies."""
    check_lengths({"behavior": built.stages.behavior, "guidance": built.stages.guidance})
    for name in ("num_samples", "floor_repeats"):
        if getattr(built.evaluation, name) < 2:
            raise ConfigError(f"evaluation.{name} is {getattr(built.evaluation, name)}; expected at least 2")
    check_scales(built.evaluation.scales)
    check_trainer(built.trainer)


def check_images(built: Any) -> None:
    """Ranges of the settings of a run on images."""
    stages: dict[str, StageSettings] = {"behavior": built.stages.behavior, "guidance": built.stages.guidance}
    check_lengths({name: settings for name, settings in stages.items() if settings.max_steps})
    evaluation: ImageEvaluationSettings = built.evaluation
    for name, least in (("num_samples", MIN_IMAGES), ("floor_repeats", 2)):
        if getattr(evaluation, name) < least:
            raise ConfigError(f"evaluation.{name} is {getattr(evaluation, name)}; expected at least {least}")
    names = ("batch_size", "classifier_steps", "grid_columns", "every_n_steps")
    at_least_one({f"evaluation.{name}": getattr(evaluation, name) for name in names})
    check_scales(evaluation.scales)
    check_trainer(built.trainer)


def check_lengths(stages: Mapping[str, StageSettings]) -> None:
    """Stages have steps, and are saved."""
    for name, settings in stages.items():
        at_least_one(
            {
                f"stages.{name}.max_steps": settings.max_steps,
                f"stages.{name}.checkpoint_every": settings.checkpoint_every,
            }
        )


def check_scales(scales: list[float] | None) -> None:
    """Guidance scales are finite numbers of 0 or more."""
    if scales is not None and (not scales or not all(0 <= scale < math.inf for scale in scales)):
        raise ConfigError(f"evaluation.scales is {scales}; expected one or more numbers of 0 or more")


def check_trainer(trainer: TrainerSettings) -> None:
    """What Lightning would not say well."""
    at_least_one(
        {
            "trainer.devices": trainer.devices,
            "trainer.num_nodes": trainer.num_nodes,
            "trainer.num_threads": trainer.num_threads,
        }
    )
    if trainer.matmul_precision not in ("highest", "high", "medium"):
        raise ConfigError(f"trainer.matmul_precision is '{trainer.matmul_precision}'; expected highest, high or medium")


def at_least_one(values: Mapping[str, int | None]) -> None:
    """ConfigError for the first value below 1; None passes."""
    for key, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{key} is {value}; expected at least 1")


OFFLINE = Layout(
    components={
        "data": (StageDataModule, OfflineDataModule, {"seed"}),
        "schedule": (NoiseSchedule, LinearVP, set()),
        "behavior": (BehaviorDiffusion, BehaviorDiffusion, {"observation_size", "action_size", "schedule"}),
        "critic": (SoftmaxQCritic, SoftmaxQCritic, {"observation_size", "action_size"}),
        "guidance": (EnergyGuidance, EnergyGuidance, {"observation_size", "action_size", "schedule"}),
        "solver": (DPMSolver, DPMSolver, set()),
    },
    settings={"stages": StagesSettings, "evaluation": EvaluationSettings, "trainer": TrainerSettings},
    nested={"guidance": {"objective": {"class_path": class_path_of(CEP)}}},
    check=check_offline,
)
DENSITY = Layout(
    components={
        **{key: OFFLINE.components[key] for key in ("data", "schedule", "behavior", "solver")},
        "guidance": (BatchEnergyGuidance, BatchEnergyGuidance, {"observation_size", "action_size", "schedule"}),
    },
    settings={"stages": DensityStages, "evaluation": SampleSettings, "trainer": TrainerSettings},
    nested=OFFLINE.nested,
    check=check_density,
)
IMAGES = Layout(
    components={
        **{key: OFFLINE.components[key] for key in ("data", "schedule", "behavior", "solver")},
        "guidance": (HeadedEnergyGuidance, HeadedEnergyGuidance, {"observation_size", "action_size", "schedule"}),
    },
    settings={"stages": ImageStages, "evaluation": ImageEvaluationSettings, "trainer": TrainerSettings},
    nested={
        "behavior": {"net": {"class_path": class_path_of(UNetScore)}},
        "guidance": {"net": {"class_path": class_path_of(HalfUNet)}, **OFFLINE.nested["guidance"]},
    },
    check=check_images,
)
