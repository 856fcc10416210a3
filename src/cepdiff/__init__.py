"""Exact energy-guided diffusion sampling, and offline reinforcement learning with it.

The names below are imported when they are first used, so that the command line starts at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cepdiff.api import Fitted, evaluate, fit, load_policy, record, report
    from cepdiff.callbacks.progress import StageProgress
    from cepdiff.callbacks.rollout import RolloutCallback
    from cepdiff.data.densities.datamodule import EnergyDataModule
    from cepdiff.data.images.datamodule import ImageDataModule
    from cepdiff.data.rl.datamodule import OfflineDataModule
    from cepdiff.diffusion.solver import DPMSolver
    from cepdiff.modules.behavior import BehaviorDiffusion
    from cepdiff.modules.critic import SoftmaxQCritic
    from cepdiff.modules.guidance import EnergyGuidance
    from cepdiff.modules.headed import HeadedEnergyGuidance
    from cepdiff.networks.images.half_unet import HalfUNet
    from cepdiff.networks.images.unet import UNetScore
    from cepdiff.policy.guided import GuidedPolicy
    from cepdiff.policy.images import ImageSampler
    from cepdiff.policy.sampler import GuidedSampler, SamplerParts
    from cepdiff.problems.guided import GuidedProblem
    from cepdiff.problems.offline.problem import OfflineRL
    from cepdiff.runs.problem import Problem
    from cepdiff.runs.results import Results
    from cepdiff.runs.stage import Judgement, Stage, StageSettings, TrainedStage

__version__ = version("cepdiff")
_HOMES = {
    "BehaviorDiffusion": "modules.behavior",
    "DPMSolver": "diffusion.solver",
    "EnergyDataModule": "data.densities.datamodule",
    "EnergyGuidance": "modules.guidance",
    "Fitted": "api",
    "GuidedPolicy": "policy.guided",
    "GuidedProblem": "problems.guided",
    "GuidedSampler": "policy.sampler",
    "HalfUNet": "networks.images.half_unet",
    "HeadedEnergyGuidance": "modules.headed",
    "ImageDataModule": "data.images.datamodule",
    "ImageSampler": "policy.images",
    "Judgement": "runs.stage",
    "OfflineDataModule": "data.rl.datamodule",
    "OfflineRL": "problems.offline.problem",
    "Problem": "runs.problem",
    "Results": "runs.results",
    "RolloutCallback": "callbacks.rollout",
    "SamplerParts": "policy.sampler",
    "SoftmaxQCritic": "modules.critic",
    "Stage": "runs.stage",
    "StageProgress": "callbacks.progress",
    "StageSettings": "runs.stage",
    "TrainedStage": "runs.stage",
    "UNetScore": "networks.images.unet",
    "evaluate": "api",
    "fit": "api",
    "load_policy": "api",
    "record": "api",
    "report": "api",
}
__all__ = [
    "BehaviorDiffusion", "DPMSolver", "EnergyDataModule", "EnergyGuidance", "Fitted", "GuidedPolicy", "GuidedProblem",
    "GuidedSampler", "HalfUNet", "HeadedEnergyGuidance", "ImageDataModule", "ImageSampler", "Judgement",
    "OfflineDataModule", "OfflineRL", "Problem", "Results", "RolloutCallback", "SamplerParts", "SoftmaxQCritic",
    "Stage", "StageProgress", "StageSettings", "TrainedStage", "UNetScore", "evaluate", "fit", "load_policy", "record",
    "report",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cepdiff' has no attribute '{name}'")
    return getattr(import_module(f"cepdiff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
