"""One contract for all LightningModules: parameters, batches, averages, learning rates, failures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_modules import (
    MODULES,
    STAGES,
    after_each_step,
    before_each_step,
    block,
    every_module,
    every_stage,
    fit,
    make,
    minibatch,
    weights,
)
from torch import nn
from torch.utils.data import DataLoader

from cepdiff.energy.objectives import CEP
from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.base import StageModule, polyak_update
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import BatchEnergyGuidance
from cepdiff.modules.noise import RandomStream
from cepdiff.types import Batch


@every_module
def test_every_parameter_moves_after_one_step(name: str) -> None:
    """Without weight decay, which would move parameters the loss does not reach; averages move too."""
    module = make(name, weight_decay=0.0)
    before = weights(module)
    fit(module, [block(module, range(1))], max_steps=1)
    after = module.state_dict()
    nets = [net for net in ("net", "target_net", "ema_net") if getattr(module, net, None) is not None]
    names = [f"{net}.{key}" for net in nets for key, _ in getattr(module, net).named_parameters()]
    assert len(names) >= 4 * len(nets)
    assert [key for key in names if torch.equal(before[key], after[key])] == []
    fixed = [key for key, _ in module.named_buffers() if "frequencies" in key]
    assert all(torch.equal(before[key], after[key]) for key in fixed)


@every_module
def test_the_loss_falls(name: str) -> None:
    """60 Adam steps on one minibatch with fixed noise fit better than the start.

    For contrastive objectives the excess falls, and by less: much of a sample is hidden at large times.
    """
    module = make(name, lr_schedule="constant")
    one = block(module, range(1))
    many = {field: values.expand(60, *values.shape[1:]) for field, values in one.items()}
    losses: list[float] = []
    original = module.loss

    def loss(batch: Batch, noise: RandomStream) -> Any:
        value, metrics = original(batch, noise)
        losses.append(metrics.get("excess", value).item())
        return value, metrics

    module.loss = loss  # type: ignore[method-assign]
    fit(module, [many])
    contrastive = isinstance(getattr(module, "objective", None), CEP)
    assert losses[-1] < (0.9 if contrastive else 0.8) * losses[0]


@every_module
def test_a_batch_of_one_row(name: str) -> None:
    module = make(name)
    if isinstance(module, BatchEnergyGuidance) and isinstance(module.objective, CEP):
        with pytest.raises(ConfigError, match="K is 1, expected at least 2"):  # nothing to contrast
            fit(module, [block(module, range(2), rows=1)], max_steps=2)
        return
    trainer = fit(module, [block(module, range(2), rows=1)], max_steps=2)
    assert trainer.global_step == 2
    assert all(bool(value.isfinite()) for value in trainer.callback_metrics.values())


@every_module
def test_plain_minibatches_of_any_dataloader(name: str) -> None:
    """No blocks or seeds: dictionaries of rows through torch's own collation."""
    module = make(name)
    rows = minibatch(module, 10)
    dataset = [{field: values[i] for field, values in rows.items()} for i in range(10)]
    before = weights(module.net)
    trainer = fit(module, DataLoader(dataset, batch_size=4), max_steps=3)  # type: ignore[arg-type]
    assert trainer.global_step == 3  # 4 + 4 + 2 rows
    assert any(not torch.equal(before[key], value) for key, value in module.net.state_dict().items())


@every_module
def test_a_block_equals_its_minibatches_one_by_one(name: str) -> None:
    """Bit for bit: grouping minibatches into blocks does not change the computation."""
    together, apart = make(name), make(name)
    fit(together, [block(together, range(5))], max_steps=5)
    fit(apart, [block(apart, range(step, step + 1)) for step in range(5)], max_steps=5)
    expected = apart.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in together.state_dict().items())


@every_module
def test_metrics_are_the_means_of_the_block(name: str) -> None:
    module = make(name)
    seen: list[dict[str, torch.Tensor]] = []
    original = module.loss
    module.loss = lambda *a: (seen.append((out := original(*a))[1]), out)[1]  # type: ignore[method-assign]
    trainer = fit(module, [block(module, range(3))], max_steps=3)
    logged = trainer.callback_metrics
    for key in seen[0]:
        mean = torch.stack([metrics[key] for metrics in seen]).mean()
        torch.testing.assert_close(logged[f"{module.stage}/{key}"], mean)
    assert float(logged["step"]) == 3.0
    assert f"{module.stage}/learning_rate" in logged


@every_module
def test_state_is_plain_tensors_and_loads_into_a_new_module(name: str) -> None:
    module, fresh = make(name), MODULES[name]()
    fit(module, [block(module, range(2))], max_steps=2)
    fresh.load_state_dict(module.state_dict())
    batch = minibatch(module)
    losses = [m.loss(batch, RandomStream(7, torch.device("cpu")))[0].item() for m in (module, fresh)]
    assert losses[0] == losses[1]


@every_stage
def test_noise_depends_on_the_seed_of_the_step_alone(name: str) -> None:
    module = make(name)
    batch = minibatch(module)
    losses = [module.loss(batch, RandomStream(seed, torch.device("cpu")))[0].item() for seed in (1, 2, 1)]
    assert losses[0] == losses[2]
    assert (losses[0] != losses[1]) == (name != "critic")  # the critic draws nothing


# Averages, schedules, clipping


def test_polyak_update_by_hand() -> None:
    average, net = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = [0.75 * a + 0.25 * n for a, n in zip(average.parameters(), net.parameters(), strict=True)]
    polyak_update(average, net, 0.25)
    for found, wanted in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("name", "options", "average", "rate"),
    [("critic", {"tau": 0.2}, "target_net", 0.2)]
    + [("critic", {"tau": 1.0}, "target_net", 1.0)]
    + [(name, {"ema_decay": 0.9}, "ema_net", 0.1) for name in ("behavior", "guidance")],
)
def test_averages_follow_step_by_step(name: str, options: dict[str, Any], average: str, rate: float) -> None:
    module = make(name, **options)
    expected = {key: value.clone() for key, value in module.net.named_parameters()}
    for key, value in getattr(module, average).named_parameters():
        assert torch.equal(value, expected[key])  # an average starts at the network's weights, not at zero
        assert not value.requires_grad
    seen = after_each_step(module, lambda: (dict(module.net.named_parameters()), getattr(module, average).state_dict()))
    fit(module, [block(module, range(4))], max_steps=4)
    assert len(seen) == 4
    for net, found in seen:
        for key in expected:
            expected[key] = (1.0 - rate) * expected[key] + rate * net[key]
            torch.testing.assert_close(found[key], expected[key].detach())


def test_what_is_sampled_with() -> None:
    assert (plain := make("behavior")).sampling_net is plain.net
    assert (averaged := make("behavior", ema_decay=0.9)).sampling_net is averaged.ema_net
    assert isinstance(value := make("critic"), SoftmaxQCritic)
    assert value.sampling_net is value.target_net


@every_stage
def test_cosine_learning_rates(name: str) -> None:
    module = make(name, lr_schedule="cosine", learning_rate=0.01)
    rates = before_each_step(module, lambda optimizer: optimizer.param_groups[0]["lr"])
    fit(module, [block(module, range(2)), block(module, range(2, 5))], max_steps=5)
    assert rates == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 5)) for step in range(5)])


@every_stage
@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_learning_rates_warm_up(name: str, lr_schedule: str) -> None:
    """Linear over the first steps, on top of the schedule; the first step is not wasted."""
    module = make(name, lr_schedule=lr_schedule, learning_rate=0.01, warmup_steps=3)
    rates = before_each_step(module, lambda optimizer: optimizer.param_groups[0]["lr"])
    fit(module, [block(module, range(6))], max_steps=6)
    falls = [0.5 * (1 + math.cos(math.pi * step / 6)) if lr_schedule == "cosine" else 1.0 for step in range(6)]
    assert rates == pytest.approx(
        [0.01 * warm * fall for warm, fall in zip([1 / 3, 2 / 3, 1, 1, 1, 1], falls, strict=True)]
    )


def test_cosine_needs_an_end() -> None:
    module = make("behavior", lr_schedule="cosine")
    with pytest.raises(ConfigError, match="max_steps"):
        fit(module, [block(module, range(1))])


def test_an_unknown_learning_rate_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lr_schedule.*linear"):
        make("behavior", lr_schedule="linear")


def norm_of_gradients(module: StageModule) -> Callable[[Any], float]:
    return lambda _: float(torch.stack([p.grad.norm() for p in module.net.parameters() if p.grad is not None]).norm())


@every_stage
def test_gradients_are_clipped_to_their_norm(name: str) -> None:
    free, clipped = make(name), make(name, max_grad_norm=1e-3)
    norms = {}
    for key, module in (("free", free), ("clipped", clipped)):
        norms[key] = before_each_step(module, norm_of_gradients(module))
        fit(module, [block(module, range(1))], max_steps=1)
    assert norms["free"][0] > 2e-3
    assert norms["clipped"][0] == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_is_decoupled() -> None:
    """One step with decay w ends lr * w * theta lower than without, whatever the gradient."""
    plain, decayed = make("behavior", learning_rate=0.01), make("behavior", learning_rate=0.01, weight_decay=0.3)
    before = {key: value.clone() for key, value in plain.net.named_parameters()}
    for module in (plain, decayed):
        fit(module, [block(module, range(1))], max_steps=1)
    without = dict(plain.net.named_parameters())
    for key, value in decayed.net.named_parameters():
        torch.testing.assert_close(value, without[key] - 0.01 * 0.3 * before[key])


# Failures


@every_stage
def test_a_nan_stops_and_names_its_step(name: str) -> None:
    module = make(name)
    poisoned = block(module, range(4, 8))
    field = {"behavior": "actions", "critic": "rewards", "guidance": "energies"}[name]
    poisoned[field][2] = torch.nan
    with pytest.raises(DivergenceError, match=rf"the {name} stage.* at step 6\b"):
        fit(module, [block(module, range(4)), poisoned])


def test_q_values_that_run_away_stop_the_critic() -> None:
    module = make("critic", discount=0.9)
    good, bad = block(module, range(2)), block(module, range(2, 4))
    largest = float(torch.cat([good["rewards"], bad["rewards"]]).abs().max())
    for rewards in (good["rewards"], bad["rewards"]):
        rewards.clamp_(-1.0, 1.0)
    assert largest > 1.0
    fit(module, [good], max_steps=2)
    with torch.no_grad():
        module.net.critics[1].rest[-1].bias.fill_(10.5 / (1 - 0.9))  # just beyond ten times max|r| / (1 - gamma)
    with pytest.raises(DivergenceError, match=r"ran away at step 0 .*\|Q\| = 1.*allow 10;.*critic.tau"):
        fit(module, [bad], max_steps=2)


def test_large_rewards_are_no_alarm() -> None:
    module = make("critic", discount=0.9)
    batch = block(module, range(2))
    batch["rewards"][:] = 1e4
    with torch.no_grad():
        module.net.critics[0].rest[-1].bias.fill_(9e4)
    fit(module, [batch], max_steps=2)
    assert float(module.max_abs_reward) == 1e4  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_never_saved(tmp_path) -> None:
    """A loss can be finite when an update is not: the previous checkpoint stays."""
    module = make("guidance")
    trainer = fit(module, [block(module, range(2))], max_steps=2)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    good = path.read_bytes()
    with torch.no_grad():
        next(module.net.parameters())[0] = torch.nan
    with pytest.raises(DivergenceError, match="weights became NaN or infinite by step 2"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"learning_rate": 0.0}) for name in STAGES]
    + [(name, {"batch_size": 0}) for name in STAGES]
    + [("behavior", {"learning_rate": math.nan}), ("behavior", {"ema_decay": 1.0}), ("behavior", {"ema_decay": 0.0})]
    + [("behavior", {"weight_decay": -1.0}), ("behavior", {"max_grad_norm": 0.0}), ("behavior", {"warmup_steps": -1})]
    + [("behavior", {"average_targets": True})]
    + [(name, {"time_exponent": exponent}) for name in ("guidance", "batch-guidance") for exponent in (0.0, math.nan)]
    + [("batch-guidance", {"batch_size": 1}), ("batch-guidance", {"times_per_step": 0})]
    + [
        ("critic", {"discount": 1.0}),
        ("critic", {"discount": -0.1}),
        ("critic", {"tau": 0.0}),
        ("critic", {"tau": 1.1}),
    ]
    + [("critic", {"bellman_inverse_temperature": beta}) for beta in (-1.0, math.nan, math.inf)]
    + [("critic", {"ema_decay": 0.9}), ("behavior", {"weighting": "none"})],
)
def test_impossible_options_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(ConfigError, match=option):
        make(name, **options)
