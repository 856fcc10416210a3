"""One contract for all LightningModules, driven by a plain `lightning.Trainer`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from cepdiff.diffusion.losses import denoising_loss
from cepdiff.diffusion.process import perturb
from cepdiff.energy.objectives import MSE
from cepdiff.errors import ConfigError, DivergenceError
from cepdiff.modules.base import Noise, StageModule, polyak_update
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.networks.critic import QEnsemble
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore, ResidualMLPScore, ResidualUNet
from cepdiff.types import STEP_SEEDS, Batch

S, A, K = 3, 2, 4
SMALL = {"hidden": (16, 16)}
BEHAVIOR_NETS = {
    "unet": partial(ResidualUNet, widths=(16, 12, 8), time_features=8, condition_features=8, embedding_size=8),
    "residual": partial(ResidualMLPScore, width=16, depth=2),
    "mlp": partial(MLPScore, **SMALL),
}


def behavior(**options: Any) -> BehaviorDiffusion:
    return BehaviorDiffusion(S, A, **{"net": BEHAVIOR_NETS["mlp"], "learning_rate": 1e-2, **options})


def critic(**options: Any) -> SoftmaxQCritic:
    return SoftmaxQCritic(S, A, **{"net": partial(QEnsemble, **SMALL), "learning_rate": 1e-2, **options})


def guidance(**options: Any) -> EnergyGuidance:
    return EnergyGuidance(S, A, **{"net": partial(EnergyMLP, **SMALL), "learning_rate": 1e-2, **options})


MODULES: dict[str, Callable[..., StageModule]] = {
    "behavior": behavior,
    "behavior-unet": partial(behavior, net=BEHAVIOR_NETS["unet"]),
    "behavior-residual": partial(behavior, net=BEHAVIOR_NETS["residual"], weighting="min_snr"),
    "critic": critic,
    "guidance": guidance,
    "guidance-mse": partial(guidance, objective=MSE(1.0)),
    "behavior-options": partial(
        behavior, ema_decay=0.9, lr_schedule="cosine", weight_decay=0.01, max_grad_norm=1.0, weighting="sigmoid"
    ),
    "critic-options": partial(critic, lr_schedule="cosine", weight_decay=0.01, max_grad_norm=1.0),
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
        "next_observations": torch.randn(rows, S, generator=numbers),
        "support_actions": torch.rand(rows, K, A, generator=numbers) * 2 - 1,
        "next_support_actions": torch.rand(rows, K, A, generator=numbers) * 2 - 1,
        "energies": torch.randn(rows, K, generator=numbers),
    }
    return {field: everything[field] for field in module.batch_fields}


def block(module: StageModule, steps: range, rows: int = 8) -> Batch:
    """The minibatches of `steps` with their seeds."""
    batches = [minibatch(module, rows, seed=step) for step in steps]
    stacked = {field: torch.stack([batch[field] for batch in batches]) for field in batches[0]}
    return {**stacked, STEP_SEEDS: torch.tensor([1000 + step for step in steps])}


class Stream:
    """A loader of ready batches; Lightning would take a plain list for a list of loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


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
    """What `look` sees after every optimiser step."""
    seen: list[Any] = []
    original = module.after_step

    def after_step() -> None:
        original()
        seen.append(copy.deepcopy(look()))

    module.after_step = after_step  # type: ignore[method-assign]
    return seen


def before_each_step(module: StageModule, look: Callable[[torch.optim.Optimizer], Any]) -> list[Any]:
    """What `look(optimizer)` sees when the optimiser is about to step."""
    seen: list[Any] = []
    original = module.configure_optimizers

    def configure_optimizers() -> Any:
        made = original()
        optimizer = made[0][0] if isinstance(made, tuple) else made
        optimizer.register_step_pre_hook(lambda *_: seen.append(look(optimizer)))
        return made

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
    return seen


@every_module
def test_every_parameter_moves_after_one_step(name: str) -> None:
    """Without weight decay, which would move a parameter that the loss does not reach; averages move too."""
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
    """On one minibatch with one draw of noise again and again, 60 steps of Adam fit better than the start."""
    module = make(name, lr_schedule="constant")
    one = block(module, range(1))
    many = {field: values.expand(60, *values.shape[1:]) for field, values in one.items()}
    losses: list[float] = []
    original = module.loss

    def loss(batch: Batch, noise: Noise) -> Any:
        value, metrics = original(batch, noise)
        losses.append(value.item())
        return value, metrics

    module.loss = loss  # type: ignore[method-assign]
    fit(module, [many])
    assert losses[-1] < 0.8 * losses[0] if name != "guidance" else losses[-1] < losses[0]


@every_module
def test_a_batch_of_one_row(name: str) -> None:
    module = make(name)
    trainer = fit(module, [block(module, range(2), rows=1)], max_steps=2)
    assert trainer.global_step == 2
    assert all(bool(value.isfinite()) for value in trainer.callback_metrics.values())


@every_module
def test_plain_minibatches_of_any_dataloader(name: str) -> None:
    """No blocks, no seeds: dictionaries of rows through torch's own collation."""
    module = make(name)
    rows = minibatch(module, 10)
    dataset = [{field: values[i] for field, values in rows.items()} for i in range(10)]
    before = weights(module.net)
    trainer = fit(module, DataLoader(dataset, batch_size=4), max_steps=3)  # type: ignore[arg-type]
    assert trainer.global_step == 3  # 4 + 4 + 2 rows
    assert any(not torch.equal(before[key], value) for key, value in module.net.state_dict().items())


@every_module
def test_a_block_equals_its_minibatches_one_by_one(name: str) -> None:
    """Bit for bit: how minibatches are handed over is no part of the mathematics."""
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
    losses = [m.loss(batch, Noise(7, torch.device("cpu")))[0].item() for m in (module, fresh)]
    assert losses[0] == losses[1]


@every_stage
def test_noise_depends_on_the_seed_of_the_step_alone(name: str) -> None:
    module = make(name)
    batch = minibatch(module)
    losses = [module.loss(batch, Noise(seed, torch.device("cpu")))[0].item() for seed in (1, 2, 1)]
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
        assert torch.equal(value, expected[key])  # an average starts at the network, not at zero
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


# The losses


def test_the_behavior_loss_is_the_denoising_loss_of_its_noise() -> None:
    module = make("behavior", weighting="min_snr")
    assert isinstance(module, BehaviorDiffusion)
    batch, noise = minibatch(module), Noise(3, torch.device("cpu"))
    t = module.schedule.t_min + (1 - module.schedule.t_min) * noise.uniform(8)
    eps = noise.normal(8, A)
    expected, _ = denoising_loss(
        module.net, module.schedule, batch["actions"], batch["observations"], t, eps, module.weighting
    )
    assert module.loss(batch, Noise(3, torch.device("cpu")))[0].item() == pytest.approx(expected.item())


def test_the_behavior_can_be_unconditional() -> None:
    module = BehaviorDiffusion(0, A, net=BEHAVIOR_NETS["mlp"])
    fit(module, [{"actions": torch.rand(4, A)}], max_steps=1)


def test_the_critics_target_is_the_softmax_backup_of_the_smaller_critic() -> None:
    module = make("critic", discount=0.9, bellman_inverse_temperature=2.0)
    assert isinstance(module, SoftmaxQCritic)
    with torch.no_grad():  # targets of their own, so that a target of the trained networks would be seen
        for parameter in module.target_net.parameters():
            parameter.add_(0.1)
    batch = minibatch(module)
    target = module.target(batch)
    for i in range(8):
        s = batch["next_observations"][i].expand(K, S)
        q = module.target_net(s, batch["next_support_actions"][i]).amin(0).double()
        value = float(((2.0 * q).softmax(0) * q).sum())
        expected = float(batch["rewards"][i]) + 0.9 * (1 - float(batch["terminals"][i])) * value
        assert target[i].item() == pytest.approx(expected, rel=1e-5)
    q = module.net(batch["observations"], batch["actions"])
    expected_loss = (q[0] - target).square().mean() + (q[1] - target).square().mean()
    loss, _ = module.loss(batch, Noise(0, torch.device("cpu")))
    assert loss.item() == pytest.approx(expected_loss.item())
    assert not target.requires_grad


def test_the_critic_logs_percentiles_and_entropy_at_no_further_evaluation() -> None:
    module = make("critic", discount=0.9, bellman_inverse_temperature=2.0)
    assert isinstance(module, SoftmaxQCritic)
    batch = minibatch(module)
    calls: list[nn.Module] = []
    for net in (module.net, module.target_net):
        net.register_forward_hook(lambda net, *_: calls.append(net))
    _, metrics = module.loss(batch, Noise(0, torch.device("cpu")))
    assert calls == [module.target_net, module.net]
    q = module.net(batch["observations"], batch["actions"]).detach().flatten()
    for level in (5, 50, 95):
        assert metrics[f"q_p{level}"].item() == pytest.approx(q.quantile(level / 100).item())
    next_q = module.q_value(batch["next_observations"].unsqueeze(1), batch["next_support_actions"]).double()
    entropy = torch.distributions.Categorical(logits=2.0 * next_q).entropy().mean()
    assert metrics["bellman_entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)
    assert 0.0 < entropy.item() < math.log(K)
    assert "q_levels" not in module.state_dict()


def test_a_critic_with_a_target_of_its_own_logs_no_entropy_of_another() -> None:
    class Own(SoftmaxQCritic):
        def target(self, batch: Batch) -> torch.Tensor:
            return batch["rewards"]

    module = Own(S, A, net=partial(QEnsemble, **SMALL))
    _, metrics = module.loss(minibatch(module), Noise(0, torch.device("cpu")))
    assert "bellman_entropy" not in metrics
    assert "q_p50" in metrics


def test_the_guidance_loss_shares_one_time_among_the_actions_of_a_state() -> None:
    module = make("guidance")
    assert isinstance(module, EnergyGuidance)
    batch, noise = minibatch(module), Noise(3, torch.device("cpu"))
    t = module.schedule.sample_times(noise.uniform(8, 1))
    x = perturb(module.schedule, batch["support_actions"], t, noise.normal(8, K, A))
    s = batch["observations"].unsqueeze(1).expand(8, K, S)
    expected, _ = module.objective(module.net(x, t.expand(8, K), s), batch["energies"])
    assert module.loss(batch, Noise(3, torch.device("cpu")))[0].item() == pytest.approx(expected.item(), rel=1e-5)


# Noise over the ranks


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_together_what_one_process_sees(world: int) -> None:
    cpu = torch.device("cpu")
    alone = Noise(11, cpu)
    ranks = [Noise(11, cpu, rank, world) for rank in range(world)]
    for draw in ("uniform", "normal", "normal"):
        whole = getattr(alone, draw)(4 * world, 3)
        for rank, noise in enumerate(ranks):
            assert torch.equal(getattr(noise, draw)(4, 3), whole[rank::world])


def test_noise_has_the_right_distribution() -> None:
    noise = Noise(0, torch.device("cpu"))
    uniform, normal = noise.uniform(20_000), noise.normal(20_000)
    assert 0.0 <= float(uniform.min()) < float(uniform.max()) < 1.0
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.04)
    assert float(normal.std()) == pytest.approx(1.0, abs=0.03)


def test_noise_without_a_seed_comes_from_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3, 2)
    torch.manual_seed(5)
    assert torch.equal(Noise(None, torch.device("cpu")).normal(3, 2), expected)


# Alarms


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
    """A loss can be finite while an update is not: the checkpoint before it stays."""
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
    + [("behavior", {"weight_decay": -1.0}), ("behavior", {"max_grad_norm": 0.0})]
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
