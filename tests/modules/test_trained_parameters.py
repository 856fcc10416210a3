"""Modules with more than one network: every parameter that requires a gradient is trained, clipped and checked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from small_modules import SMALL, A, S, before_each_step, block, fit, weights
from torch import Tensor, nn

from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.base import StageModule, frozen_copy
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.graphs import CapturedSteps
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.score import MLPScore
from cepdiff.types import Batch, Metrics
from devices import capture_steps


class WithValue(SoftmaxQCritic):
    """A critic with its own value network, next to a frozen network."""

    def __init__(self, **options: Any) -> None:
        super().__init__(S, A, net=partial(QEnsemble, **SMALL), learning_rate=1e-2, **options)
        self.value_net = nn.Sequential(nn.Linear(S, 8), nn.SiLU(), nn.Linear(8, 1))
        self.frozen_net = frozen_copy(self.value_net)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch, noise)
        value: Tensor = self.value_net(batch["observations"]).squeeze(-1)  # (B, 1) -> (B,)
        return loss + (value - batch["rewards"]).square().mean(), {**metrics, "value": value.detach().mean()}


class Forgotten(WithValue):
    """Its loss omits the value network."""

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        return SoftmaxQCritic.loss(self, batch, noise)


class WithHead(BehaviorDiffusion):
    """A behavior model with a second network that adds its own term to the loss."""

    def __init__(self, **options: Any) -> None:
        super().__init__(S, A, net=partial(MLPScore, **SMALL), learning_rate=1e-2, **options)
        self.head = nn.Linear(S, A)

    def loss(self, batch: Batch, noise: RandomStream) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch, noise)
        return loss + (self.head(batch["observations"]) - batch["actions"]).square().mean(), metrics


def make(cls: type[StageModule], **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**options)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes modules train by captured steps on the CPU too."""
    capture_steps(monkeypatch)


every_way = pytest.mark.parametrize("how", ["one by one", "captured"])


def test_they_are_those_that_require_a_gradient() -> None:
    module = make(WithValue)
    trained = {id(parameter) for parameter in module.trained_parameters()}
    names = {name.split(".")[0] for name, parameter in module.named_parameters() if id(parameter) in trained}
    assert names == {"net", "value_net"}
    optimizer = module.configure_optimizers()
    assert {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} == trained


@every_way
def test_both_networks_train(how: str, request: pytest.FixtureRequest) -> None:
    if how == "captured":
        request.getfixturevalue("captured")
    module = make(WithValue)
    before = weights(module)
    fit(module, [block(module, range(2))], max_steps=2)
    moved = {key for key, value in weights(module).items() if not torch.equal(value, before[key])}
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained <= moved
    assert any(name.startswith("target_net") for name in moved)
    assert not any(name.startswith("frozen_net") for name in moved)


def test_captured_steps_are_the_steps(request: pytest.FixtureRequest) -> None:
    one_by_one, replayed = (make(WithValue, max_grad_norm=1.0) for _ in range(2))
    for module in (one_by_one, replayed):
        module.learning_rate = 2.0**-7  # exact in float32
    fit(one_by_one, [block(one_by_one, range(4))], max_steps=4)
    request.getfixturevalue("captured")
    fit(replayed, [block(replayed, range(4))], max_steps=4)
    state = weights(one_by_one)
    assert [key for key, value in weights(replayed).items() if not torch.equal(value, state[key])] == []


def test_both_are_clipped_together() -> None:
    norms: dict[float | None, dict[str, float]] = {}
    for limit in (None, 1e-3):
        module = make(WithValue, max_grad_norm=limit)

        def norms_of(_: Any, module: WithValue = module) -> dict[str, float]:
            nets = {"net": module.net, "value_net": module.value_net}
            return {
                name: float(torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm())
                for name, net in nets.items()
            }

        seen = before_each_step(module, norms_of)
        fit(module, [block(module, range(1))], max_steps=1)
        norms[limit] = seen[0]
    free, clipped = norms[None], norms[1e-3]
    assert min(free.values()) > 2e-3
    assert sum(norm**2 for norm in clipped.values()) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert clipped["net"] / clipped["value_net"] == pytest.approx(free["net"] / free["value_net"], rel=1e-3)


def test_a_checkpoint_with_either_not_finite_is_refused(tmp_path: Any) -> None:
    for name in ("net", "value_net"):
        module = make(WithValue)
        trainer = fit(module, [block(module, range(2))], max_steps=2)
        with torch.no_grad():
            next(getattr(module, name).parameters()).view(-1)[0] = torch.nan
        with pytest.raises(DivergenceError, match="weights became NaN or infinite by step 2"):
            trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert not (tmp_path / "last.ckpt").exists()


# A parameter that the loss does not reach

MESSAGE = (
    r"^the critic stage's loss gives no gradient to value_net\.0\.weight and 3 more, which would never train: use it "
    r"in Forgotten\.loss, or freeze it with requires_grad_\(False\)$"
)


@every_way
def test_a_parameter_without_a_gradient_is_named_at_the_first_step(how: str, request: pytest.FixtureRequest) -> None:
    if how == "captured":
        request.getfixturevalue("captured")
    module = make(Forgotten)
    steps = before_each_step(module, lambda _: None)
    before = weights(module)
    with pytest.raises(ConfigError, match=MESSAGE):
        fit(module, [block(module, range(4))], max_steps=4)
    assert len(steps) == (how == "captured")  # a captured run undoes its trial step
    changed = [key for key, value in weights(module).items() if not torch.equal(value, before[key])]
    assert changed == ([] if how == "captured" else ["max_abs_reward"])


def test_a_capture_is_not_begun() -> None:
    module = make(Forgotten)
    before = weights(module)
    optimizer = torch.optim.AdamW(module.trained_parameters(), lr=1e-3, fused=True)
    calls: list[Any] = []
    with pytest.raises(ConfigError, match=MESSAGE):
        CapturedSteps(module, optimizer, block(module, range(2)), capture=lambda step: (calls.append(step), step)[1])
    assert calls == []
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_single_one_is_named_alone() -> None:
    module = make(WithValue)
    module.register_parameter("extra", nn.Parameter(torch.zeros(())))
    with pytest.raises(ConfigError, match=r"gives no gradient to extra, which would never train: use it in WithValue"):
        fit(module, [block(module, range(1))], max_steps=1)


def test_frozen_parameters_need_no_gradient() -> None:
    module = make(Forgotten)
    module.value_net.requires_grad_(False)
    trainer = fit(module, [block(module, range(2))], max_steps=2)
    assert trainer.global_step == 2
    assert trainer.optimizers[0].param_groups[0]["params"] == list(module.net.parameters())


def test_it_is_checked_once_a_fit() -> None:
    module = make(WithValue)
    calls: list[int] = []
    original = module.check_gradients
    module.check_gradients = lambda: (calls.append(1), original())[1]
    for fits in (1, 2):
        fit(module, [block(module, range(3)), block(module, range(3, 6))], max_steps=6)
        assert len(calls) == fits


# Averages


def test_an_average_of_one_of_two_networks_is_refused() -> None:
    module = make(WithHead, ema_decay=0.9)
    message = r"behavior\.ema_decay averages `net` only, but WithHead trains more: set it to null.*after_step"
    with pytest.raises(ConfigError, match=message):
        fit(module, [block(module, range(1))], max_steps=1)
    plain = make(WithHead)
    before = weights(plain.head)
    fit(plain, [block(plain, range(1))], max_steps=1)
    assert all(not torch.equal(value, before[key]) for key, value in plain.head.state_dict().items())


def test_an_average_beside_a_frozen_network_is_not_refused() -> None:
    module = make(WithHead, ema_decay=0.9)
    module.head.requires_grad_(False)
    assert fit(module, [block(module, range(1))], max_steps=1).global_step == 1
