"""bfloat16 must not change what is learned: sums that cancel, logits and regression targets stay in float32."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from small_modules import MODULES, block, fit, guidance, make
from torch import nn

from cepdiff.diffusion.posterior import origin_posterior
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.errors import ConfigError
from cepdiff.modules.base import StageModule
from cepdiff.networks import mlp
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.mlp import OutputLinear
from cepdiff.types import STEP_SEEDS


def loss_after(module: StageModule, steps: int, precision: Any) -> float:
    """The loss of the last block; its minibatches are all the same."""
    one = block(module, range(1), rows=32)
    many = {name: values.expand(100, *values.shape[1:]).clone() for name, values in one.items()}
    blocks = [many | {STEP_SEEDS: torch.arange(100 * turn, 100 * turn + 100)} for turn in range(steps // 100)]
    trainer = fit(module, blocks, precision=precision)
    return float(trainer.callback_metrics[f"{module.stage}/loss"])


@pytest.mark.parametrize("name", ["behavior-unet", "behavior-averaged", "critic-options", "guidance", "batch-guidance"])
def test_losses_fall_as_far_as_in_float32(name: str) -> None:
    exact, mixed = (
        loss_after(make(name, lr_schedule="constant", warmup_steps=0), 300, precision)
        for precision in ("32-true", "bf16-mixed")
    )
    assert mixed == pytest.approx(exact, rel=0.1, abs=0.01)


def test_logits_do_not_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contrast does not determine the mean logit: rounded gradients, which do not sum to zero, would move it."""

    def mean_logit() -> float:
        module = guidance(learning_rate=0.03, net=partial(EnergyMLP, hidden=(16, 16)))
        loss_after(module, 600, "bf16-mixed")
        rows = block(module, range(1))["support_actions"][0]
        return float(module.net(rows, torch.tensor(0.5), torch.zeros(len(rows), 1, 3)).mean().abs())

    kept = mean_logit()
    monkeypatch.setattr(mlp, "float32_products", lambda values: nullcontext())
    assert mean_logit() > 3.0 * kept


@pytest.mark.parametrize("name", [name for name in MODULES if name != "behavior-unet"])
def test_networks_end_in_float32(name: str) -> None:
    """The last linear layer is an `OutputLinear`, except in the recipe's score network."""
    module = MODULES[name]()
    nets = getattr(module.net, "critics", [module.net])
    for net in nets:
        assert isinstance([layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1], OutputLinear)


def test_an_output_is_exact_under_autocast() -> None:
    layer, values = OutputLinear(16, 3), torch.randn(5, 16)
    expected = layer(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(values), expected)
        assert nn.Linear(16, 3)(values).dtype == torch.bfloat16
        assert layer(values.bfloat16()).dtype == torch.float32


def test_a_posterior_is_exact_under_autocast() -> None:
    schedule, x0 = LinearVP(), torch.randn(8, 2)
    x, t = x0 + 0.01 * torch.randn(8, 2), torch.full((8,), 0.02)
    expected = origin_posterior(schedule, x, x0, t)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(origin_posterior(schedule, x, x0, t), expected)


def test_no_step_uses_the_casts_of_the_one_before() -> None:
    """With the caller's autocast cache on: two steps of one block equal two blocks of one step."""
    weights = []
    for blocks in ([range(2)], [range(1), range(1, 2)]):
        module = make("critic")
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
            fit(module, [block(module, steps) for steps in blocks], max_steps=2)
        weights.append(module.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_scaled_losses_are_refused() -> None:
    module = make("critic")

    class Scaling:
        scaler = object()

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    module.trainer = trainer
    trainer.strategy._precision_plugin = Scaling()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"16-mixed needs scaled losses.*bf16-mixed"):
        module.on_fit_start()
