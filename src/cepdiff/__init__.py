"""Exact energy-guided diffusion sampling, and offline reinforcement learning with it.

The names below are imported when they are first used, so that the command line starts at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cepdiff.callbacks.rollout import RolloutCallback
    from cepdiff.data.images.datamodule import ImageDataModule
    from cepdiff.data.rl.datamodule import OfflineDataModule
    from cepdiff.modules.behavior import BehaviorDiffusion
    from cepdiff.modules.critic import SoftmaxQCritic
    from cepdiff.modules.guidance import EnergyGuidance
    from cepdiff.modules.headed import HeadedEnergyGuidance
    from cepdiff.networks.images.half_unet import HalfUNet
    from cepdiff.networks.images.unet import UNetScore
    from cepdiff.policy.guided import GuidedPolicy
    from cepdiff.policy.images import ImageSampler

__version__ = version("cepdiff")
__all__ = [
    "BehaviorDiffusion",
    "EnergyDataModule",
    "EnergyGuidance",
    "GuidedPolicy",
    "HalfUNet",
    "HeadedEnergyGuidance",
    "ImageDataModule",
    "ImageSampler",
    "OfflineDataModule",
    "RolloutCallback",
    "SoftmaxQCritic",
    "UNetScore",
]
_HOMES = {
    "BehaviorDiffusion": "modules.behavior",
    "EnergyDataModule": "data.densities.datamodule",
    "EnergyGuidance": "modules.guidance",
    "GuidedPolicy": "policy.guided",
    "HalfUNet": "networks.images.half_unet",
    "HeadedEnergyGuidance": "modules.headed",
    "ImageDataModule": "data.images.datamodule",
    "ImageSampler": "policy.images",
    "OfflineDataModule": "data.rl.datamodule",
    "RolloutCallback": "callbacks.rollout",
    "SoftmaxQCritic": "modules.critic",
    "UNetScore": "networks.images.unet",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cepdiff' has no attribute '{name}'")
    return getattr(import_module(f"cepdiff.{_HOMES[name]}"), name)
