"""The policy object: actions from observations, within bounds, deterministic for given noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_policy import HIGH, LOW, SPEC, A, S, make, normal

from cepdiff.diffusion.guidance import predicted_data_logits
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.errors import CepdiffError, DataError, DivergenceError, RunError


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_shapes_and_kinds(rows: int) -> None:
    policy, observations, noise = make(), normal(rows, S), normal(rows, A, seed=1)
    tensor = policy.act(observations, noise=noise)
    array = policy.act(observations.numpy(), noise=noise)
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(array, np.ndarray)
    assert tensor.shape == array.shape == (rows, A)
    assert tensor.dtype == torch.float32
    assert array.dtype == np.float32
    assert np.array_equal(tensor.numpy(), array)
    assert not tensor.requires_grad


def test_a_single_observation() -> None:
    policy, observation, noise = make(), normal(S), normal(A, seed=1)
    action = policy.act(observation, noise=noise)
    assert action.shape == (A,)
    assert policy.act(observation.numpy(), noise=noise).shape == (A,)
    torch.testing.assert_close(action, policy.act(observation[None], noise=noise[None])[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_observations_of_any_number_type(dtype: type) -> None:
    observations = np.array([[1, 2, 3], [0, -1, 4]], dtype)
    noise = normal(2, A)
    expected = make().act(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]]), noise=noise)
    assert np.array_equal(make().act(observations, noise=noise), expected.numpy())


def test_no_rows_give_no_actions() -> None:
    assert make().act(torch.zeros(0, S)).shape == (0, A)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_actions_lie_within_asymmetric_bounds(scale: float) -> None:
    """They use the whole range: unit actions are shifted and scaled, not clipped at ±1."""
    actions = make().act(3.0 * normal(500, S), guidance_scale=scale, noise=3.0 * normal(500, A, seed=1))
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    assert bool(((actions >= low) & (actions <= high)).all())
    if scale > 1.0:
        assert torch.equal(actions.amin(0), low)
        assert torch.equal(actions.amax(0), high)


def test_units_of_the_actions() -> None:
    unit = make(spec=replace(SPEC, action_low=(-1.0, -1.0), action_high=(1.0, 1.0)))
    observations, noise = normal(20, S), normal(20, A, seed=1)
    scaled = make().act(observations, noise=noise)
    centre, half = torch.tensor([1.0, 2.25]), torch.tensor([2.0, 0.25])
    torch.testing.assert_close(scaled, centre + half * unit.act(observations, noise=noise))


def test_observations_are_standardised_as_in_training() -> None:
    raw = make(spec=replace(SPEC, observation_mean=None, observation_std=None))
    observations, noise = normal(20, S), normal(20, A, seed=1)
    standardised = (observations - torch.tensor([1.0, -2.0, 0.0])) / torch.tensor([2.0, 0.5, 1.0])
    torch.testing.assert_close(make().act(observations, noise=noise), raw.act(standardised, noise=noise))


def test_noise_makes_actions_deterministic() -> None:
    policy, observations = make(), normal(5, S)
    first, second = (policy.act(observations, noise=normal(5, A, seed=1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, policy.act(observations, noise=normal(5, A, seed=2)))
    drawn = [policy.act(observations, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    torch.manual_seed(5)
    noise = torch.randn(5, A)
    torch.manual_seed(5)
    assert torch.equal(policy.act(observations), policy.act(observations, noise=noise))


def test_a_scale_for_each_row() -> None:
    policy, observations, noise = make(), normal(4, S), normal(4, A, seed=1)
    scales = torch.tensor([0.0, 1.0, 3.0, 0.0])
    together = policy.act(observations, guidance_scale=scales, noise=noise)
    for i, scale in enumerate(scales.tolist()):
        alone = policy.act(observations[i], guidance_scale=scale, noise=noise[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)
    assert not torch.equal(together, policy.act(observations, guidance_scale=0.0, noise=noise))


def test_the_default_scale_is_the_exact_one() -> None:
    policy, observations, noise = make(), normal(4, S), normal(4, A, seed=1)
    assert torch.equal(policy.act(observations, noise=noise), policy.act(observations, guidance_scale=1.0, noise=noise))


def test_scale_0_is_the_behavior_policy() -> None:
    observations, noise = normal(4, S), normal(4, A, seed=1)
    guided, behavior = (make(energy).act(observations, guidance_scale=0.0, noise=noise) for energy in (True, False))
    assert torch.equal(guided, behavior)


@pytest.mark.parametrize("scale", [1.0, torch.tensor([0.0, 2.0])])
def test_a_scale_without_an_energy_network_is_refused(scale: Any) -> None:
    with pytest.raises(RunError, match=r"no energy network yet.*use scale 0"):
        make(energy=False).act(normal(2, S), guidance_scale=scale)


@pytest.mark.parametrize("shape", [(2, S + 1), (S - 1,), (2, 2, S), ()])
def test_observations_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=rf"shape .*expected \(B, {S}\) or \({S},\)"):
        make().act(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite_are_refused(value: float) -> None:
    observations = np.zeros((4, S))
    observations[2, 1] = value
    with pytest.raises(DataError, match="NaN or infinite"):
        make().act(observations)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"guidance_scale": torch.ones(3)}, "guidance_scale"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"noise": torch.zeros(2, A + 1)}, "noise"),
        ({"noise": torch.zeros(3, A)}, "noise"),
        ({"noise": torch.tensor(0.0)}, "noise"),
        ({"guidance_scale": "1"}, "guidance_scale"),
        ({"guidance_scale": None}, "guidance_scale"),
    ],
    ids=[
        "scale of another batch",
        "negative scale",
        "scale NaN",
        "noise of another size",
        "noise of another batch",
        "one noise",
        "text",
        "None",
    ],
)
def test_other_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(CepdiffError, match=named):
        make().act(normal(2, S), **arguments)


VALUES = [[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]]
LAYOUTS = {
    "lists": VALUES,
    "tuples": tuple(map(tuple, VALUES)),
    "list of arrays": [np.array(row) for row in VALUES],
    "list of tensors": [torch.tensor(row) for row in VALUES],
    "big-endian": np.array(VALUES, ">f8"),
    "float16": np.array(VALUES, np.float16),
    "long double": np.array(VALUES, np.longdouble),
    "int8": np.array(VALUES, np.int8),
    "negative strides": np.array([row[::-1] for row in VALUES])[:, ::-1],
    "columns first": np.asfortranarray(VALUES),
    "float16 tensor": torch.tensor(VALUES, dtype=torch.float16),
    "integer tensor": torch.tensor(VALUES, dtype=torch.int64),
    "tensor with a gradient": torch.tensor(VALUES, requires_grad=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_observations_of_any_layout(layout: str, recwarn: pytest.WarningsRecorder) -> None:
    observations: Any = LAYOUTS[layout]
    expected = make().act(torch.tensor(VALUES), noise=normal(2, A))
    actions = make().act(observations, noise=normal(2, A).numpy())
    assert isinstance(actions, torch.Tensor if isinstance(observations, torch.Tensor) else np.ndarray)
    assert torch.equal(torch.as_tensor(actions), expected)
    assert not recwarn.list


def test_read_only_observations_are_not_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    observations = np.array(VALUES, np.float32)
    observations.flags.writeable = False
    assert make().act(observations).shape == (2, A)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ((np.zeros(S), {}), r"pair \(observation, info\), as reset\(\) returns it; pass the observation only"),
        ([[1.0, 2.0, 3.0], [1.0]], "not an array of numbers"),
        (None, "NoneType of type object"),
        ({"observation": np.zeros(S)}, "dict of type object"),
        (["a", "b", "c"], "list of type <U1"),
        (np.zeros(S, complex), "ndarray of type complex128"),
        (torch.zeros(S, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, S).to_sparse(), "sparse"),
        (torch.zeros(S, device="meta"), "on meta"),
        ([], r"shape \(1, 0\)"),
        (np.full(S, 1e300), "NaN or infinite"),
        (torch.full((S,), 1e300, dtype=torch.float64), "NaN or infinite"),
    ],
)
def test_observations_that_are_no_numbers_are_refused(observations: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make().act(observations)
    assert "\n" not in str(caught.value)


def test_an_action_that_is_not_finite_is_refused() -> None:
    observations = np.zeros((3, S))
    observations[1] = 3e38  # infinite once standardised
    with pytest.raises(DivergenceError, match=r"NaN or infinite action at guidance scale 2.*far outside the data"):
        make().act(observations, guidance_scale=torch.tensor([0.0, 2.0, 1.0]))


def test_acting_under_inference_mode() -> None:
    policy, observations, noise = make(), normal(4, S), normal(4, A, seed=1)
    expected = policy.act(observations, noise=noise)
    with torch.inference_mode():
        assert torch.equal(policy.act(observations, noise=noise), expected)


def test_an_energy_of_clean_samples_guides_through_the_predicted_one() -> None:
    """DPS: the same networks, another gradient; scale 0 is still the behavior policy."""
    observations, noise = normal(6, S), normal(6, A, seed=1)
    plain, clean = make(), make(on_clean=True)
    assert torch.equal(
        plain.act(observations, guidance_scale=0.0, noise=noise),
        clean.act(observations, guidance_scale=0.0, noise=noise),
    )
    assert not torch.equal(plain.act(observations, noise=noise), clean.act(observations, noise=noise))
    networks, schedule = clean.sampler.networks, clean.sampler.schedule
    logits = predicted_data_logits(networks["energy"], networks["behavior"], schedule)
    with torch.no_grad():
        expected = sample_guided(
            networks["behavior"],
            schedule,
            clean.sampler.solver,
            clean.condition(observations),
            noise,
            logits=logits,
            guidance_scale=torch.ones(6),
            data_bound=1.0,
        )
    centre, half = torch.tensor([1.0, 2.25]), torch.tensor([2.0, 0.25])
    torch.testing.assert_close(clean.act(observations, noise=noise), centre + half * expected)
