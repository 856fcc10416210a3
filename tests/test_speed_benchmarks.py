"""The speed benchmarks: the plain reference computes the same as this package, and the scripts run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from cepdiff.data.rl.datamodule import OfflineDataModule
from cepdiff.data.rl.hdf5 import write_arrays
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.modules.behavior import BehaviorDiffusion
from cepdiff.modules.critic import SoftmaxQCritic
from cepdiff.modules.guidance import EnergyGuidance
from cepdiff.types import Batch

B, K, S, A = 6, 4, 11, 3
NAMES = ("reference", "floors", "sides", "speed_stages", "speed", "growth")


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts as modules."""
    return {name: importlib.import_module(name) for name in NAMES}


@pytest.fixture
def reference(scripts: dict[str, ModuleType]) -> Any:
    return scripts["reference"]


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Restore the settings that the scripts change for their own process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


class Fixed:
    """The random numbers of a step, fixed in advance."""

    world = 1

    def __init__(self, uniform: Tensor, normal: Tensor) -> None:
        self._uniform, self._normal = uniform, normal

    def uniform(self, *shape: int) -> Tensor:
        return self._uniform.reshape(shape)

    def normal(self, *shape: int) -> Tensor:
        return self._normal.reshape(shape)


def batch_of() -> Batch:
    return {
        "observations": torch.randn(B, S),
        "actions": torch.rand(B, A) * 2 - 1,
        "rewards": torch.randn(B),
        "terminals": torch.tensor([1.0, 0.0] * (B // 2)),
        "next_observations": torch.randn(B, S),
        "support_actions": torch.rand(B, K, A) * 2 - 1,
        "next_support_actions": torch.rand(B, K, A) * 2 - 1,
    }


def spread(module: torch.nn.Module) -> None:
    """Larger weights, so that outputs are large enough to show mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)


def same_gradients(ours: torch.nn.Module, other: torch.nn.Module) -> None:
    """Check every parameter's gradient, by name."""
    expected = dict(other.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert expected[name].grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


def test_behavior_loss_and_gradients(reference: Any) -> None:
    module, batch = BehaviorDiffusion(S, A), batch_of()
    net = reference.ScoreNet(S, A)
    net.load_state_dict(module.net.state_dict())
    u, eps = torch.rand(B), torch.randn(B, A)
    loss, _ = module.loss(batch, Fixed(u, eps))  # type: ignore[arg-type]
    expected = reference.behavior_loss(net, batch, 1e-3 + (1 - 1e-3) * u, eps)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    same_gradients(module.net, net)


def test_critic_loss_and_gradients(reference: Any) -> None:
    module, batch = SoftmaxQCritic(S, A), batch_of()
    spread(module.net)
    module.target_net.load_state_dict(module.net.state_dict())
    critic = reference.TwinQ(S, A)
    critic.load_state_dict(module.net.state_dict())
    learner = reference.QLearning(critic, reference.EnergyNet(S, A))
    loss, _ = module.loss(batch, Fixed(torch.empty(0), torch.empty(0)))  # type: ignore[arg-type]
    expected = learner.critic_loss(batch)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    same_gradients(module.net, critic)


def test_guidance_loss_and_gradients(reference: Any) -> None:
    module, critic, batch = EnergyGuidance(S, A), SoftmaxQCritic(S, A), batch_of()
    twin, energy_net = reference.TwinQ(S, A), reference.EnergyNet(S, A)
    twin.load_state_dict(critic.target_net.state_dict())
    energy_net.load_state_dict(module.net.state_dict())
    energies = -critic.q_value(batch["observations"].unsqueeze(1), batch["support_actions"]).detach()
    u, eps = torch.rand(B), torch.randn(B, K, A)
    loss, _ = module.loss({**batch, "energies": energies}, Fixed(u, eps))  # type: ignore[arg-type]
    expected = reference.QLearning(twin, energy_net).guidance_loss(batch, 1e-3 + (1 - 1e-3) * u, eps)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    same_gradients(module.net, energy_net)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
@pytest.mark.parametrize("scale", [None, 0.0, 3.0])
def test_sampled_actions(reference: Any, scale: float | None, dtype: torch.dtype, tolerance: float) -> None:
    """Unguided and guided; also at scale 0, where the reference computes a gradient for nothing."""
    behavior, guidance = BehaviorDiffusion(S, A).to(dtype), EnergyGuidance(S, A).to(dtype)
    spread(guidance.net)
    score_net, energy_net = reference.ScoreNet(S, A).to(dtype), reference.EnergyNet(S, A).to(dtype)
    score_net.load_state_dict(behavior.net.state_dict())
    energy_net.load_state_dict(guidance.net.state_dict())
    states, noise = torch.randn(32, S, dtype=dtype), torch.randn(32, A, dtype=dtype)
    logits = None if scale is None else guidance.net
    scales = None if scale is None else torch.full((32,), scale, dtype=dtype)
    with torch.no_grad():
        found = sample_guided(
            behavior.net, LinearVP(), DPMSolver(), states, noise, logits=logits, guidance_scale=scales, data_bound=1.0
        )
    expected = reference.sample(score_net, states, noise, None if scale is None else energy_net, scale or 0.0)
    assert float(found.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0.0)


def test_steps_train_every_parameter(reference: Any) -> None:
    critic, energy_net = reference.TwinQ(S, A), reference.EnergyNet(S, A)
    learner = reference.QLearning(critic, energy_net)
    nets = (critic, learner.target, energy_net)
    before = [[p.clone() for p in net.parameters()] for net in nets]
    batch = batch_of()
    learner.critic_step(batch)
    learner.guidance_step(batch)
    for net, old in zip(nets, before, strict=True):
        assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), old, strict=True))


def test_reference_reads_the_transitions_that_this_package_does(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "buffer.hdf5"
    write_arrays(file, scripts["sides"].synthetic_arrays(3500))
    found = scripts["reference"].load(file)
    data = OfflineDataModule(str(file), reward_rule="none")
    data.setup()
    buffer = data.buffer
    kept = (~buffer.timeouts).nonzero().squeeze(-1)
    kept = kept[kept < len(buffer) - 1]
    torch.testing.assert_close(found["observations"], buffer.states[kept])
    torch.testing.assert_close(found["rewards"], buffer.rewards[kept])
    going_on = ~buffer.terminals[kept]
    expected = buffer.states[buffer.next_index[kept]]
    torch.testing.assert_close(found["next_observations"][going_on], expected[going_on])


def test_items_become_shuffled_batches(reference: Any) -> None:
    rows = reference.Transitions({"actions": torch.arange(10.0)[:, None], "rewards": torch.arange(10.0)})
    batches = reference.batches(rows, 5)
    epoch = [next(batches) for _ in range(2)]
    assert all(torch.equal(batch["actions"][:, 0], batch["rewards"]) for batch in epoch)
    assert sorted(torch.cat([batch["rewards"] for batch in epoch]).tolist()) == list(range(10))
    assert len(next(batches)["rewards"]) == 5  # the next epoch


def test_floors_count_the_matrix_products(scripts: dict[str, ModuleType]) -> None:
    """At one FLOP per second and free copies, a floor equals the FLOPs that torch counts in the shared forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    floors = scripts["floors"].Floors(scripts["floors"].Rates(1.0, float("inf")), S, A, K)
    behavior = BehaviorDiffusion(S, A)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        behavior.net(torch.randn(B, K, A), torch.tensor(0.5), torch.randn(B, 1, S))
    counted = counter.get_total_flops() / B
    assert counted * 0.98 < floors.support_row(num_steps=1) <= counted
    guidance = EnergyGuidance(S, A)
    with FlopCounterMode(display=False) as counter:
        guidance.net(torch.randn(B, K, A), torch.rand(B, 1), torch.randn(B, 1, S)).sum().backward()
    assert counter.get_total_flops() * 0.95 < floors.guidance_step(B) < counter.get_total_flops() * 1.05


def test_projection_adds_up_the_recipe(scripts: dict[str, ModuleType]) -> None:
    def record(stage: str, ours: float, other: float, **more: Any) -> dict[str, Any]:
        return {"stage": stage, "ours": {"median": ours}, "reference": {"median": other}, "floor": 0.0, **more}

    records = [
        record("load", 1.0, 2.0, rows=500_000),
        record("behavior", 1e-3, 2e-3, start_up=5.0),
        record("support", 1e-6, 3e-6),
        record("critic", 1e-3, 2e-3, start_up=0.0, reference_loading=1e-3),
        record("energies", 2e-6, 0.0),
        record("guidance", 1e-3, 4e-3, start_up=0.0),
        record("evaluation", 1e-2, 3e-2, start_up=1.0, reference_start_up=2.0),
    ]
    found = scripts["speed"].projection(records)
    ours = {"load": 2, "behavior": 605, "support": 1, "critic": 500, "guidance": 1002, "evaluation": 11}
    other = {"load": 4, "behavior": 1200, "support": 3, "critic": 1000, "guidance": 4500, "evaluation": 32}
    assert found["ours"] == pytest.approx(ours)
    assert found["reference"] == pytest.approx(other)
    assert scripts["speed"].projection(records[1:]) is None


def test_ranges_are_no_work_of_the_gpu(scripts: dict[str, ModuleType]) -> None:
    def event(device: str, microseconds: float, is_range: bool = False) -> SimpleNamespace:
        took = SimpleNamespace(elapsed_us=lambda: microseconds)
        name = SimpleNamespace(name=device)
        return SimpleNamespace(device_type=name, time_range=took, is_user_annotation=is_range)

    events = [event("CUDA", 10.0), event("CUDA", 5.0), event("CUDA", 90.0, is_range=True), event("CPU", 40.0)]
    profiler = SimpleNamespace(events=lambda: events)
    assert scripts["sides"].kernel_seconds(profiler) == pytest.approx(15e-6)


@pytest.mark.slow
def test_table_of_speed(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts["speed"].main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "speed.json").read_text())
    records = {record["stage"]: record for record in found["records"]}
    assert list(records) == [
        *("load", "behavior", "support", "critic", "guidance", "critic + guidance", "energies"),
        *("act, 1", "act, 2", "one step, 1", "one step, 2", "evaluation"),
    ]
    for stage, record in records.items():
        assert 0.0 < record["ours"]["best"] <= record["ours"]["median"]
        assert record["floor"] > 0.0
        if stage != "energies":
            assert record["ratio"] == pytest.approx(record["reference"]["median"] / record["ours"]["median"])
    assert records["support"]["states_per_row"] == pytest.approx(1.001)
    parts = found["projection"]
    assert set(parts) == {"ours", "reference", "floor"}
    shown = capsys.readouterr().out
    assert "reference: full float32 ('highest')" in shown
    assert all(f"\n{stage}, " in shown for stage in records)
    assert f"written {tmp_path / 'speed.json'}" in shown


def test_speed_of_a_part_at_another_precision(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    arguments = ["--quick", "--stages", "one_step", "--matmul_precision", "medium", "--output", str(tmp_path)]
    scripts["speed"].main([*arguments, "--engine", "torch"])
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [record["stage"] for record in found["records"]] == ["one step, 1", "one step, 2"]
    assert found["projection"] is None
    assert found["options"]["matmul_precision"] == torch.get_float32_matmul_precision() == "medium"


@pytest.mark.slow
def test_growth(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--rows", "3000", "--actions", "2", "4", "--solver", "2", "8", "--environments", "1", "3"]
    few += ["--ensemble", "2", "4", "--scales", "1", "2", "--episodes", "2", "4", "--images", "8", "16"]
    scripts["growth"].main(["--quick", *few, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "growth.json").read_text())["records"]
    (rows,) = found["rows"]
    assert rows["memory_mapped"]
    assert rows["array_bytes"] == 3000 * ((11 + 11 + 3 + 1) * 4 + 2)
    assert rows["support_bytes"] == 3003 * 4 * 3 * 4
    assert rows["memory_multiple"] == rows["memory"] / (rows["array_bytes"] + rows["support_bytes"])
    assert min(rows["behavior"], rows["critic"], rows["start_up"], rows["load"]) > 0.0
    assert [record["actions"] for record in found["actions"]] == [2, 4]
    speeds = [record["actions_per_second"] for record in found["solver"]]
    assert speeds[0] > speeds[1] > 0.0  # four times the network evaluations
    sizes = {"environments": [1, 3], "ensemble": [2, 4], "scales": [1, 2], "episodes": [2, 4], "images": [8, 16]}
    for part, expected in sizes.items():
        assert [record[part] for record in found[part]] == expected
        assert all(value > 0.0 for record in found[part] for value in record.values())
    first, second = (record["seconds"] for record in found["solver"])
    line = f"solver steps, seconds per support action, seconds: 2: {first:.3g} (1.00), 8: {second:.3g}"
    assert f"{line} ({second / 8 / (first / 2):.2f})" in capsys.readouterr().out
    assert imread(tmp_path / "growth.png").ndim == 3


def test_reference_rolls_out_each_scale(scripts: dict[str, ModuleType], reference: Any) -> None:
    import gymnasium as gym

    made: list[gym.Env[Any, Any]] = []

    def make_env() -> gym.Env[Any, Any]:
        made.append(gym.make("Reacher-v5", max_episode_steps=2))
        return made[-1]

    sizes = 10, 2
    score_net, energy_net = reference.ScoreNet(*sizes), reference.EnergyNet(*sizes)
    returns = reference.evaluate(score_net, energy_net, make_env, [0.0, 1.0], episodes=2)
    assert len(made) == 4
    assert np.shape(returns) == (2, 2)
    assert np.isfinite(returns).all()
