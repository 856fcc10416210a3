"""Small versions of all the stages' modules, and a plain `lightning.Trainer` to train them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from cepdiff.energy.objectives import DPS, MSE, ExponentialMSE
from cepdiff.modules.base import StageModule
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import ExpectileQCritic, SoftmaxQCritic
from cepdiff.modules.distillation import Distillation
from cepdiff.modules.guidance import BatchEnergyGuidance, EnergyGuidance
from cepdiff.modules.tempered import TemperedBatchGuidance, TemperedGuidance
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.energy import EnergyMLP, ResidualEnergy
from cepdiff.networks.one_step import OneStepNet
from cepdiff.networks.score import MLPScore, ResidualMLPScore, ResidualUNet
from cepdiff.types import STEP_SEEDS, Batch

S, A, K, Z = 3, 2, 4, 5
SMALL = {"hidden": (16, 16)}
BEHAVIOR_NETS = {
    "unet": partial(ResidualUNet, widths=(16, 12, 8), time_features=8, condition_features=8, embedding_size=8),
    "residual": partial(ResidualMLPScore, width=16, depth=2),
    "mlp": partial(MLPScore, **SMALL),
}


def behavior(**options: Any) -> BehaviorDiffusion:
    return BehaviorDiffusion(S, A, **{"net": BEHAVIOR_NETS["mlp"], "learning_rate": 1e-2, **options})


def unconditional_behavior(**options: Any) -> BehaviorDiffusion:
    return BehaviorDiffusion(0, A, **{"net": BEHAVIOR_NETS["residual"], "learning_rate": 1e-2, **options})


def critic(**options: Any) -> SoftmaxQCritic:
    return SoftmaxQCritic(S, A, **{"net": partial(QEnsemble, **SMALL), "learning_rate": 1e-2, **options})


def expectile_critic(**options: Any) -> ExpectileQCritic:
    return ExpectileQCritic(
        S, A, **{"net": partial(QEnsemble, **SMALL), "value_hidden": (16, 16), "learning_rate": 1e-2, **options}
    )


def guidance(**options: Any) -> EnergyGuidance:
    return EnergyGuidance(S, A, **{"net": partial(EnergyMLP, **SMALL), "learning_rate": 1e-2, **options})


def batch_guidance(**options: Any) -> BatchEnergyGuidance:
    net = partial(ResidualEnergy, width=16)
    return BatchEnergyGuidance(0, A, **{"net": net, "learning_rate": 1e-2, "times_per_step": 3, **options})


ONE_STEP = {"net": partial(OneStepNet, width=16, depth=1), "learning_rate": 1e-2, "lr_schedule": "constant"}


def distillation(**options: Any) -> Distillation:
    return Distillation(S, A, Z, **{**ONE_STEP, **options})


def tempered(**options: Any) -> TemperedGuidance:
    return TemperedGuidance(S, A, **{"net": partial(EnergyMLP, **SMALL), "learning_rate": 1e-2, **options})


def tempered_batch(**options: Any) -> TemperedBatchGuidance:
    net = partial(ResidualEnergy, width=16)
    return TemperedBatchGuidance(0, A, **{"net": net, "learning_rate": 1e-2, "times_per_step": 3, **options})


MODULES: dict[str, Callable[..., StageModule]] = {
    "behavior": behavior,
    "behavior-unet": partial(behavior, net=BEHAVIOR_NETS["unet"]),
    "behavior-residual": partial(behavior, net=BEHAVIOR_NETS["residual"], weighting="min_snr"),
    "behavior-averaged": partial(unconditional_behavior, average_targets=True),
    "critic": critic,
    "critic-lower-bound": partial(
        critic,
        net=partial(QEnsemble, num_critics=4, layer_norm=True, **SMALL),
        deviations=1.0,
        independent_targets=True,
        num_steps="episode",
    ),
    "critic-expectile": expectile_critic,
    "guidance": guidance,
    "guidance-mse": partial(guidance, objective=MSE(1.0)),
    "guidance-averaged": partial(guidance, average_targets=True, time_exponent=1.5),
    "guidance-dps": partial(guidance, objective=DPS(1.0)),
    "batch-guidance": batch_guidance,
    "batch-guidance-plain": partial(batch_guidance, average_targets=False, time_exponent=1.0, times_per_step=1),
    "batch-guidance-e-mse": partial(batch_guidance, objective=ExponentialMSE(1.0)),
    "batch-guidance-dps": partial(batch_guidance, objective=DPS(1.0)),
    "distillation": distillation,
    "tempered": tempered,
    "tempered-batch": tempered_batch,
    "tempered-batch-dps": partial(tempered_batch, objective=DPS(1.0)),
    "behavior-options": partial(
        behavior, ema_decay=0.9, lr_schedule="cosine", weight_decay=0.01, max_grad_norm=1.0, weighting="sigmoid"
    ),
    "critic-options": partial(critic, lr_schedule="cosine", warmup_steps=2, weight_decay=0.01, max_grad_norm=1.0),
    "guidance-options": partial(guidance, ema_decay=0.9, lr_schedule="cosine", weight_decay=0.01, max_grad_norm=1.0),
}
STAGES = ("behavior", "critic", "guidance")
every_module = pytest.mark.parametrize("name", MODULES)
every_stage = pytest.mark.parametrize("name", STAGES)


def make(name: str, **options: Any) -> StageModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODULES[name](**options)


def minibatch(module: StageModule, rows: int = 8, seed: int = 0) -> Batch:
    numbers = torch.Generator().manual_seed(seed)
    everything = {
        "observations": torch.randn(rows, S, generator=numbers),
        "actions": torch.rand(rows, A, generator=numbers) * 2 - 1,
        "rewards": torch.randn(rows, generator=numbers),
        "terminals": (torch.rand(rows, generator=numbers) < 0.3).float(),
        "discounts": torch.rand(rows, generator=torch.Generator().manual_seed(seed)),
        "next_observations": torch.randn(rows, S, generator=numbers),
        "support_actions": torch.rand(rows, K, A, generator=numbers) * 2 - 1,
        "next_support_actions": torch.rand(rows, K, A, generator=numbers) * 2 - 1,
        "energies": torch.randn(rows, K, generator=numbers),
        "noise": torch.randn(rows, Z, generator=numbers),
        "guidance_scales": torch.rand(rows, generator=numbers) * 3,
    }
    if isinstance(module, BatchEnergyGuidance):  # one density: absolute energies, one per sample
        everything["energies"] = everything["energies"].abs()[:, 0]
    everything["samples"] = everything["actions"]
    return {field: everything[field] for field in module.batch_fields}


def block(module: StageModule, steps: range, rows: int = 8) -> Batch:
    """The minibatches of `steps` with their seeds, as one block."""
    batches = [minibatch(module, rows, seed=step) for step in steps]
    stacked = {field: torch.stack([batch[field] for batch in batches]) for field in batches[0]}
    return {**stacked, STEP_SEEDS: torch.tensor([1000 + step for step in steps])}


class Stream:
    """A loader of ready batches; Lightning would treat a plain list as a list of loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Function(nn.Module):
    """Wraps a function as a network without weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def fit(module: StageModule, batches: Iterable[Any], max_steps: int = -1, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
        max_steps=max_steps,
        **options,
    )
    trainer.fit(module, Stream(batches) if isinstance(batches, list) else batches)
    return trainer


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(module.state_dict())


def after_each_step(module: StageModule, look: Callable[[], Any]) -> list[Any]:
    """Collects `look()` after every optimiser step."""
    seen: list[Any] = []
    original = module.after_step

    def after_step() -> None:
        original()
        seen.append(copy.deepcopy(look()))

    module.after_step = after_step  # type: ignore[method-assign]
    return seen


def before_each_step(module: StageModule, look: Callable[[torch.optim.Optimizer], Any]) -> list[Any]:
    """Collects `look(optimizer)` just before every optimiser step."""
    seen: list[Any] = []
    original = module.configure_optimizers

    def configure_optimizers() -> Any:
        made = original()
        optimizer = made[0][0] if isinstance(made, tuple) else made
        optimizer.register_step_pre_hook(lambda *_: seen.append(look(optimizer)))
        return made

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
    return seen
