"""Backups of the critics, against the formulas row by row."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_modules import critic, expectile_critic, minibatch

from cepdiff.energy.bellman import softmax_value
from cepdiff.errors import ConfigError
from cepdiff.networks.critic import QEnsemble

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
    with pytest.raises(ConfigError, match=r"critic\.independent_targets: an expectile critic"):
        expectile_critic(independent_targets=True)
