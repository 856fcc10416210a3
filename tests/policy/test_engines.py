"""Engines for a policy: the same actions by torch, by onnxruntime and by a captured sampler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_policy import A, S, make, normal
from torch import Tensor

from cepdiff.errors import ConfigError, DataError, DivergenceError, RunError
from cepdiff.policy.engines import ENGINES, CapturedPolicy, OnnxPolicy, run_by
from cepdiff.policy.guided import GuidedPolicy
from devices import NoWaiting, needs_gpu, same


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, noise, and scales, every other one 0."""
    return normal(rows, S), normal(rows, A, seed=1), torch.arange(rows).remainder(2) * 1.5


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("on_clean", [False, True])
def test_a_captured_sampler_acts_alike(rows: int, on_clean: bool) -> None:
    policy = make(on_clean=on_clean)
    captured = CapturedPolicy(policy, capture=same)
    observations, noise, scales = inputs(rows)
    for shift in (0.0, 0.5):  # the second call reuses the first one's memory
        expected = policy.act(observations + shift, guidance_scale=scales, noise=noise)
        actions = captured.act(observations + shift, guidance_scale=scales, noise=noise)
        torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5)


def test_a_capture_serves_all_sizes_up_to_the_next_power_of_two() -> None:
    captures: list[int] = []

    def counting(step: Callable[[], None]) -> Callable[[], None]:
        captures.append(1)
        return step

    policy = CapturedPolicy(make(), capture=counting)
    for rows in (5, 6, 8, 7):
        observations, noise, scales = inputs(rows)
        assert policy.act(observations, guidance_scale=scales, noise=noise).shape == (rows, A)
    assert len(captures) == 1
    policy.act(normal(9, S), guidance_scale=1.0, noise=normal(9, A))
    assert len(captures) == 2


def test_behavior_alone_is_captured_too() -> None:
    policy = make(energy=False)
    observations, noise, _ = inputs(4)
    actions = CapturedPolicy(policy, capture=same).act(observations, guidance_scale=0.0, noise=noise)
    torch.testing.assert_close(actions, policy.act(observations, guidance_scale=0.0, noise=noise))


def test_a_captured_sampler_never_waits_for_the_device() -> None:
    replays: list[Callable[[], None]] = []

    def remembered(step: Callable[[], None]) -> Callable[[], None]:
        step()  # the first call computes the solver's grid on the host
        replays.append(step)
        return step

    observations, noise, scales = inputs(4)
    CapturedPolicy(make(), capture=remembered).act(observations, guidance_scale=scales, noise=noise)
    with NoWaiting(), torch.no_grad():
        replays[0]()


def test_networks_that_cannot_be_captured() -> None:
    def refuse(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(ConfigError, match=r"\(operation not permitted.*capturing\); run them with the engine torch"):
        CapturedPolicy(make(), capture=refuse).act(normal(1, S), noise=normal(1, A))


@pytest.mark.parametrize("energy", [True, False])
def test_onnxruntime_acts_alike(energy: bool) -> None:
    pytest.importorskip("onnxruntime")
    policy = make(energy)
    exported = OnnxPolicy(policy)
    assert exported.action_size == exported.noise_size == A
    for rows in (1, 6):
        observations, noise, scales = inputs(rows)
        scales = scales if energy else torch.zeros(rows)
        expected = policy.act(observations, guidance_scale=scales, noise=noise)
        actions = exported.act(observations, guidance_scale=scales, noise=noise)
        torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match="observations hold NaN"):
        exported.act(observations / 0.0, guidance_scale=0.0, noise=noise)
    with pytest.raises(DivergenceError, match="NaN or infinite action at guidance scale 0"):
        exported.act(observations, guidance_scale=0.0, noise=noise / 0.0)


def test_no_engine_guides_without_an_energy_network() -> None:
    observations, noise, _ = inputs(2)
    for policy in (make(energy=False), CapturedPolicy(make(energy=False), capture=same)):
        with pytest.raises(RunError, match="no energy network yet"):
            policy.act(observations, guidance_scale=1.0, noise=noise)


def test_engines_by_name() -> None:
    policy = make()
    assert run_by(policy) is policy
    assert run_by(policy, "torch") is policy
    with pytest.raises(ConfigError, match="the engine cuda_graph needs a GPU; the policy is on cpu"):
        run_by(policy, "cuda_graph")
    with pytest.raises(ConfigError, match=r"no engine 'onx'.*onnx"):
        run_by(policy, "onx")
    assert set(ENGINES) == {"torch", "onnx", "cuda_graph"}


def test_a_policy_on_another_device_is_a_copy() -> None:
    policy = make()
    assert policy.on("cpu") is policy
    moved = policy.on("meta")
    for name, net in policy.sampler.networks.items():
        assert moved.device.type == next(moved.sampler.networks[name].parameters()).device.type == "meta"
        assert next(net.parameters()).device.type == "cpu"


def test_an_infinite_gradient_ends_in_one_line_and_not_at_scale_0() -> None:
    policy = make()
    for parameter in policy.sampler.networks["energy"].parameters():
        parameter.data.fill_(torch.inf)
    captured = CapturedPolicy(policy, capture=same)
    observations, noise, scales = inputs(2)
    expected = make().act(observations, guidance_scale=0.0, noise=noise)
    torch.testing.assert_close(captured.act(observations, guidance_scale=0.0, noise=noise), expected)
    with pytest.raises(DivergenceError, match=r"NaN or infinite action at guidance scale 1\.5"):
        captured.act(observations, guidance_scale=scales, noise=noise)
    with pytest.raises(DataError, match="observations hold NaN"):
        captured.act(observations / 0.0, guidance_scale=0.0, noise=noise)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 10])
def test_graphs_of_the_sampler_on_a_gpu(rows: int) -> None:
    policy: GuidedPolicy = make().on("cuda")
    captured = run_by(policy)
    assert isinstance(captured, CapturedPolicy)
    observations, noise, scales = (value.cuda() for value in inputs(rows))
    for shift in (0.0, 0.5):
        expected = policy.act(observations + shift, guidance_scale=scales, noise=noise)
        actions = captured.act(observations + shift, guidance_scale=scales, noise=noise)
        torch.testing.assert_close(actions, expected, rtol=1e-4, atol=1e-4)
