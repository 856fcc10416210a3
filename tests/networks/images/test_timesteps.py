"""Continuous times mapped to the timesteps of diffusers' schedulers, by log-SNR."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler

from cepdiff.diffusion.schedule import CosineVP, LinearVP, NoiseSchedule
from cepdiff.errors import ConfigError
from cepdiff.networks.images.timesteps import MatchedTimesteps, alphas_cumprod, scaled_times

PROCESSES: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid, 200 steps": {"beta_schedule": "sigmoid", "num_train_timesteps": 200},
    "given betas": {"trained_betas": [0.01, 0.02, 0.1, 0.3, 0.5]},
    "zero terminal SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
}


def process(name: str) -> torch.Tensor:
    return alphas_cumprod({"_class_name": "DDPMScheduler", **PROCESSES[name]}, "scheduler")


@pytest.mark.parametrize("name", PROCESSES)
def test_the_process_is_that_of_the_scheduler(name: str) -> None:
    assert torch.equal(process(name), DDPMScheduler(**PROCESSES[name]).alphas_cumprod)


def test_configs_of_other_samplers_describe_the_same_process() -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.01, clip_sample=False)
    assert torch.equal(alphas_cumprod(dict(scheduler.config), "scheduler"), scheduler.alphas_cumprod)


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=["linear VP", "cosine VP"])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_step_of_the_process_is_told_by_its_own_number(name: str, schedule: NoiseSchedule) -> None:
    """The time with the alpha and sigma of step k has timestep k."""
    abar = process(name)[:-1].double()  # the last may have no signal, hence no time
    timesteps = MatchedTimesteps(process(name), schedule).double()
    t = schedule.inverse_lambda(0.5 * torch.logit(abar))
    inside = t <= 1.0  # the process may end with more noise than ours
    torch.testing.assert_close(schedule.alpha(t)[inside], abar.sqrt()[inside], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(schedule.sigma(t)[inside], (1.0 - abar).sqrt()[inside], rtol=1e-6, atol=1e-7)
    steps = torch.arange(len(abar), dtype=torch.float64)
    torch.testing.assert_close(timesteps(t), steps, rtol=0.0, atol=1e-3)
    assert inside.float().mean() > 0.9


def test_between_steps_lambda_is_interpolated() -> None:
    schedule, abar = LinearVP(), process("given betas")
    lambdas = 0.5 * torch.logit(abar.double())
    timesteps = MatchedTimesteps(abar, schedule).double()
    between = 0.75 * lambdas[1] + 0.25 * lambdas[2]
    torch.testing.assert_close(float(timesteps(schedule.inverse_lambda(between))), 1.25, rtol=0.0, atol=1e-5)


def test_single_precision_tells_steps_apart() -> None:
    timesteps = MatchedTimesteps(process("linear"), LinearVP())
    t = LinearVP().inverse_lambda(0.5 * torch.logit(process("linear").double())).float()
    torch.testing.assert_close(timesteps(t), torch.arange(1000.0), rtol=0.0, atol=0.02)


@pytest.mark.parametrize("name", PROCESSES)
def test_times_beyond_the_process_are_told_as_its_ends(name: str) -> None:
    schedule = LinearVP()
    timesteps = MatchedTimesteps(process(name), schedule)
    last = len(process(name)) - (2 if name == "zero terminal SNR" else 1)
    ends = schedule.inverse_lambda(0.5 * torch.logit(process(name)[[0, last]].double())).float()
    far = torch.tensor([1e-5, 3.0])
    assert timesteps(far).tolist() == [0.0, last]
    torch.testing.assert_close(timesteps.within(far), ends)
    assert timesteps.within(torch.tensor(0.3)) == torch.tensor(0.3)


def test_shapes_and_weights() -> None:
    timesteps = MatchedTimesteps(process("cosine"), LinearVP())
    assert timesteps(torch.rand(4, 1).transpose(0, 1).expand(3, 4)).shape == (3, 4)
    assert timesteps(torch.tensor(0.5)).shape == ()
    assert timesteps.state_dict() == {}


def test_networks_from_scratch_are_told_thousandths() -> None:
    assert scaled_times(torch.tensor([0.001, 1.0])).tolist() == [1.0, 1000.0]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "FlowMatchEuler.* no beta_schedule"),
        ({"beta_schedule": "squared"}, "cannot build a discrete process .*squared"),
        ({"beta_schedule": "linear", "num_train_timesteps": "many"}, "cannot build a discrete process .*many"),
    ],
)
def test_schedulers_that_describe_no_process(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"model: .*{message}"):
        alphas_cumprod(scheduler, "model")


@pytest.mark.parametrize("abar", [[0.9, 0.9, 0.5], [0.9], [1.0, 0.5], [0.5, 0.0]])
def test_values_that_are_no_process(abar: list[float]) -> None:
    with pytest.raises(ConfigError, match="must decrease from step to step"):
        MatchedTimesteps(torch.tensor(abar), LinearVP())
