"""The network that acts in one step: its inputs, and training on a known sampler."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_modules import A, S, Z, distillation, fit, make, minibatch
from torch import Tensor

from cepdiff.errors import ConfigError
from cepdiff.modules.distillation import Distillation
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.one_step import OneStepNet
from cepdiff.types import Batch


def taught(rows: int, seed: int) -> Batch:
    """Noise, states and scales, and the actions 0.8 tanh(z + s_1 + scale) of a known sampler."""
    numbers = torch.Generator().manual_seed(seed)
    states, noise = torch.randn(rows, 1, generator=numbers), torch.randn(rows, 1, generator=numbers)
    scales = 2 * torch.rand(rows, generator=numbers)
    actions = 0.8 * (noise + states + scales.unsqueeze(-1)).tanh()
    return {"observations": states, "noise": noise, "guidance_scales": scales, "actions": actions}


def test_a_known_sampler_is_learnt() -> None:
    """The error is measured at noise, states and scales that were not trained on."""
    torch.manual_seed(0)
    options = {"learning_rate": 3e-3, "lr_schedule": "cosine"}
    module = Distillation(1, 1, 1, net=partial(OneStepNet, width=32, depth=1), **options)  # type: ignore[arg-type]
    unseen = taught(500, 999_999)
    stream = RandomStream(None, torch.device("cpu"))
    before = float(module.loss(unseen, stream)[1]["rms_error"].detach())
    fit(module, [taught(128, step) for step in range(250)], max_steps=250)
    after = float(module.loss(unseen, stream)[1]["rms_error"].detach())
    assert before > 0.3
    assert after < 0.06


def test_the_loss_by_hand() -> None:
    """The mean over rows and dimensions."""
    module = make("distillation")
    batch = minibatch(module)
    loss, metrics = module.loss(batch, RandomStream(0, torch.device("cpu")))
    rows = zip(batch["noise"], batch["observations"], batch["guidance_scales"], batch["actions"], strict=True)
    errors = [module.net(noise, state, scale).detach() - action for noise, state, scale, action in rows]
    mean = float(torch.stack(errors).square().mean())
    assert float(loss.detach()) == pytest.approx(mean, rel=1e-5)
    assert float(metrics["rms_error"]) == pytest.approx(mean**0.5, rel=1e-5)


@pytest.mark.parametrize("condition_size", [0, S])
def test_actions_are_bounded_and_depend_on_every_input(condition_size: int) -> None:
    torch.manual_seed(0)
    net = OneStepNet(condition_size, A, Z, width=16, depth=1)

    def act(noise: Tensor, states: Tensor, scale: Tensor) -> Tensor:
        actions: Tensor = net(noise, states, scale).detach()
        return actions

    noise, states, scale = torch.randn(7, Z), torch.randn(7, condition_size), torch.rand(7)
    actions = act(noise, states, scale)
    assert actions.shape == (7, A)
    assert float(act(1e6 * noise, states, scale).abs().max()) <= 1.0
    assert not torch.equal(actions, act(noise + 0.1, states, scale))
    assert not torch.equal(actions, act(noise, states, scale + 0.1))
    if condition_size:
        assert not torch.equal(actions, act(noise, states + 0.1, scale))


def test_noise_is_of_the_action_size_by_default() -> None:
    assert OneStepNet(S, A, width=8)(torch.zeros(1, A), torch.zeros(1, S), torch.zeros(1)).shape == (1, A)


@pytest.mark.parametrize("option", ["batch_size", "learning_rate"])
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"distillation.{option}"):
        distillation(**{option: 0})
