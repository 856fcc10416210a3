"""Backups of the critics, against the formulas row by row."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_modules import S, critic, expectile_critic, minibatch
from torch import Tensor

from cepdiff.energy.bellman import softmax_value
from cepdiff.errors import ConfigError
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.noise import RandomStream
from cepdiff.networks.critic import QEnsemble
from cepdiff.types import Batch, Metrics

FOUR = partial(QEnsemble, hidden=(8,), num_critics=4)


def test_independent_critics_bootstrap_from_their_own_targets() -> None:
    module = critic(net=FOUR, independent_targets=True, bellman_inverse_temperature=2.0)
    batch = minibatch(module)
    target, _ = module.target(batch)
    assert target.shape == (4, 8)
    for i, net in enumerate(module.target_net.critics):
        q = net(batch["next_support_actions"], batch["next_observations"].unsqueeze(1)).squeeze(-1)
        value = (1.0 - batch["terminals"]) * softmax_value(q, 2.0)
        torch.testing.assert_close(target[i], batch["rewards"] + 0.99 * value)


def test_critics_become_one_value_by_their_lower_bound() -> None:
    module = critic(net=FOUR, deviations=1.5)
    batch = minibatch(module)
    values = module.target_net(batch["observations"], batch["actions"])
    expected = values.mean(0) - 1.5 * values.std(0, correction=0)
    torch.testing.assert_close(module.q_value(batch["observations"], batch["actions"]), expected)
    next_q = module.q_value(batch["next_observations"].unsqueeze(1), batch["next_support_actions"])
    value = (1.0 - batch["terminals"]) * softmax_value(next_q, 1.0)
    torch.testing.assert_close(module.target(batch)[0], batch["rewards"] + 0.99 * value)


@pytest.mark.parametrize("make", [critic, expectile_critic])
def test_sums_of_several_rewards_bootstrap_with_their_own_factor(make: partial[object]) -> None:
    one, several = make(), make(num_steps=5)
    several.load_state_dict(one.state_dict())
    batch = minibatch(several)
    assert "discounts" in several.batch_fields
    assert "discounts" not in one.batch_fields
    plain = {field: batch[field] for field in one.batch_fields}
    bootstrapped = (one.target(plain)[0] - batch["rewards"]) / 0.99
    torch.testing.assert_close(several.target(batch)[0], batch["rewards"] + batch["discounts"] * bootstrapped)


def test_an_expectile_critic_needs_no_support_and_refuses_what_it_would_ignore() -> None:
    module = expectile_critic()
    batch = minibatch(module)
    assert "next_support_actions" not in batch
    value = module.value_net(batch["next_observations"]).squeeze(-1)
    expected = batch["rewards"] + 0.99 * (1.0 - batch["terminals"]) * value
    torch.testing.assert_close(module.target(batch)[0], expected.detach())
    with pytest.raises(ConfigError, match=r"critic\.bellman_inverse_temperature: an expectile critic"):
        expectile_critic(bellman_inverse_temperature=3.0)
    with pytest.raises(ConfigError, match=r"critic\.independent_targets: ExpectileQCritic\.target makes one target"):
        expectile_critic(independent_targets=True)


class OneStepTarget(SoftmaxQCritic):
    """A user's class that bootstraps by its own formula."""

    def target(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return batch["rewards"] + self.discount * self.q_value(batch["next_observations"], batch["actions"]), {}


class SeveralSteps(OneStepTarget):
    """The same with `backup`."""

    several_steps = True

    def target(self, batch: Batch) -> tuple[Tensor, Metrics]:
        return self.backup(batch, self.q_value(batch["next_observations"], batch["actions"])), {}


def test_a_target_of_ones_own_must_say_that_it_can_look_ahead() -> None:
    with pytest.raises(ConfigError, match=r"critic\.num_steps: OneStepTarget\.target may bootstrap after one step"):
        OneStepTarget(3, 2, num_steps=3)
    assert SeveralSteps(3, 2, num_steps=3).num_steps == 3
    with pytest.raises(ConfigError, match=r"critic\.independent_targets: SeveralSteps\.target makes one target"):
        SeveralSteps(3, 2, independent_targets=True)


def test_the_alarm_knows_that_a_sum_is_no_reward() -> None:
    """Rewards of 1: sums of 1, 3 and 100 steps allow values of 10 / (1 - 0.99) and no more."""
    module = critic(num_steps="episode")
    batch = minibatch(module, rows=3)
    discounts = 0.99 ** torch.tensor([1.0, 3.0, 100.0])
    batch |= {"rewards": (1.0 - discounts) / 0.01, "discounts": discounts}
    module.loss(batch, RandomStream(0, torch.device("cpu")))
    assert float(module.max_abs_reward) == pytest.approx(1.0, rel=1e-4)


def test_values_with_layer_norm_do_not_depend_on_the_scale_of_the_first_layer() -> None:
    for layer_norm in (True, False):
        critic, observations = expectile_critic(value_layer_norm=layer_norm), torch.randn(5, S)
        before = critic.value(observations)
        with torch.no_grad():
            critic.value_net.joint.weight.mul_(10.0)
            critic.value_net.joint.bias.mul_(10.0)
        assert torch.allclose(critic.value(observations), before, atol=1e-3) == layer_norm
