"""The policy object: actions in, within bounds, and its file, which is never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cepdiff.diffusion.schedule import CosineVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.errors import CepdiffError, ConfigError, DataError, RunError
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore
from cepdiff.policy.guided import POLICY_FILE, GuidedPolicy, PolicyRecipe
from cepdiff.types import DataSpec

S, A = 3, 2
LOW, HIGH = (-1.0, 2.0), (3.0, 2.5)
SPEC = DataSpec(S, A, LOW, HIGH, observation_mean=(1.0, -2.0, 0.0), observation_std=(2.0, 0.5, 1.0))
RECIPE = PolicyRecipe(
    task="some-task",
    spec=SPEC.to_dict(),
    behavior_net={"class_path": "cepdiff.networks.score.MLPScore", "init_args": {"hidden": [16]}},
    energy_net={"class_path": "cepdiff.networks.energy.EnergyMLP", "init_args": {"hidden": [16, 8]}},
    schedule={"class_path": "cepdiff.diffusion.schedule.CosineVP", "init_args": {"t_max": 0.9}},
    solver={"class_path": "cepdiff.diffusion.solver.DPMSolver", "init_args": {"num_steps": 5, "order": 1}},
    environment={"env_id": "Some-v0", "kwargs": {"a": 1}},
    scales=[0.0, 1.0],
    sources=[],
)


def make(energy: bool = True, spec: DataSpec = SPEC) -> GuidedPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eps_net = MLPScore(S, A, hidden=[16])
        energy_net = EnergyMLP(S, A, hidden=[16, 8]) if energy else None
        if energy_net is not None:  # so strong that guided actions reach the bounds
            energy_net.net.rest[-1].weight.data.mul_(100.0)
    return GuidedPolicy(spec, eps_net, CosineVP(t_max=0.9), DPMSolver(5, order=1), energy_net)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Acting


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
    """And use all of them: unit actions are moved and stretched, not cut off at ±1."""
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
    ],
    ids=["scale of another batch", "negative scale", "scale NaN", "noise of another size", "noise of another batch"],
)
def test_other_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(CepdiffError, match=named):
        make().act(normal(2, S), **arguments)


def test_acting_under_inference_mode() -> None:
    policy, observations, noise = make(), normal(4, S), normal(4, A, seed=1)
    expected = policy.act(observations, noise=noise)
    with torch.inference_mode():
        assert torch.equal(policy.act(observations, noise=noise), expected)


# The file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make().save(tmp_path, RECIPE)
    return tmp_path


def test_a_loaded_policy_acts_as_the_saved_one(run: Path) -> None:
    observations, noise = normal(20, S), normal(20, A, seed=1)
    scales = torch.arange(20) % 3 * 1.0
    expected = make().act(observations, guidance_scale=scales, noise=noise)
    for place in (run, str(run), run / POLICY_FILE):
        policy = GuidedPolicy.from_run(place)
        assert torch.equal(policy.act(observations, guidance_scale=scales, noise=noise), expected)
    assert policy.recipe == RECIPE
    assert policy.spec == SPEC
    assert [path.name for path in run.iterdir()] == [POLICY_FILE]


def test_the_policy_before_guidance(tmp_path: Path) -> None:
    make(energy=False).save(tmp_path, replace(RECIPE, energy_net=None))
    policy = GuidedPolicy.from_run(tmp_path)
    assert policy.energy_net is None
    noise = normal(A)
    expected = make().act(normal(S), guidance_scale=0.0, noise=noise)
    assert torch.equal(policy.act(normal(S), guidance_scale=0.0, noise=noise), expected)


def test_another_number_of_solver_steps(run: Path) -> None:
    policy = GuidedPolicy.from_run(run, num_solver_steps=9)
    assert policy.solver.num_steps == 9
    assert policy.solver.order == 1  # the rest stays
    assert GuidedPolicy.from_run(run).solver.num_steps == 5
    with pytest.raises(ConfigError, match="num_steps is 0"):
        GuidedPolicy.from_run(run, num_solver_steps=0)


def test_own_classes_are_found_beside_their_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = tmp_path / "source"
    source.mkdir()
    (source / "policy_test_parts.py").write_text(
        "from cepdiff.networks.score import MLPScore\n\n\nclass Own(MLPScore):\n    pass\n"
    )
    net = {**RECIPE.behavior_net, "class_path": "policy_test_parts.Own"}
    make().save(tmp_path, replace(RECIPE, behavior_net=net, sources=[str(source)]))
    try:
        assert type(GuidedPolicy.from_run(tmp_path).eps_net).__name__ == "Own"
    finally:
        sys.modules.pop("policy_test_parts", None)


def test_there_is_no_policy(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"does not exist: run `cepdiff fit`"):
            GuidedPolicy.from_run(place)


def test_torn_and_foreign_files_are_refused(run: Path) -> None:
    path = run / POLICY_FILE
    whole = path.read_bytes()
    contents: list[bytes] = [b"", b"hello", whole[: len(whole) // 2], whole[:-10]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(RunError, match="no policy file"):
            GuidedPolicy.from_run(run)
    for value in ({"a": 1}, torch.zeros(3), [], {"format": 1}, {"format": 1, "recipe": {"x": 1}, "weights": {}}):
        torch.save(value, path)
        with pytest.raises(RunError, match="no policy file"):
            GuidedPolicy.from_run(run)


def rewrite(run: Path, **changes: Any) -> None:
    content = torch.load(run / POLICY_FILE, weights_only=True)
    content["recipe"].update(changes.pop("recipe", {}))
    torch.save({**content, **changes}, run / POLICY_FILE)


def test_a_later_format_says_so(run: Path) -> None:
    rewrite(run, format=99)
    with pytest.raises(CepdiffError, match="format 99"):
        GuidedPolicy.from_run(run)


def test_weights_of_other_networks_are_refused(run: Path) -> None:
    rewrite(run, recipe={"behavior_net": {**RECIPE.behavior_net, "init_args": {"hidden": [32]}}})
    with pytest.raises(RunError, match="weights do not fit"):
        GuidedPolicy.from_run(run)


def test_classes_that_are_gone_are_named(run: Path) -> None:
    rewrite(run, recipe={"behavior_net": {"class_path": "gone_module.Net", "init_args": {}}})
    with pytest.raises(CepdiffError, match="gone_module"):
        GuidedPolicy.from_run(run)


class Malicious:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch", "inside", "legacy"])
def test_nothing_is_unpickled(run: Path, form: str) -> None:
    trap, path = run / "trapped", run / POLICY_FILE
    whole = torch.load(path, weights_only=True)
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trap)))
    elif form == "torch":
        torch.save(Malicious(trap), path)
    elif form == "inside":
        torch.save({**whole, "extra": Malicious(trap)}, path)
    else:
        torch.save({**whole, "extra": Malicious(trap)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RunError, match="no policy file"):
        GuidedPolicy.from_run(run)
    assert not trap.exists()


@pytest.mark.parametrize("where", ["behavior_net", "energy_net", "schedule", "solver"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_can_call_no_class_but_those_of_a_policy(run: Path, where: str, nested: bool) -> None:
    """A recipe names classes with arguments; `subprocess.Popen` among them would run any command."""
    trap = run / "trapped"
    call = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(trap)]}}
    spec = getattr(RECIPE, where)
    rewrite(run, recipe={where: {**spec, "init_args": {"hidden": call}} if nested else call})
    with pytest.raises((CepdiffError, TypeError)):
        GuidedPolicy.from_run(run)
    deadline = subprocess.run(["sleep", "0.3"], check=True)  # time for a child to do its work
    assert deadline.returncode == 0
    assert not trap.exists()


def test_loading_needs_neither_lightning_nor_an_environment(run: Path) -> None:
    code = (
        "import json, sys, numpy\n"
        "from cepdiff.policy.guided import GuidedPolicy\n"
        f"action = GuidedPolicy.from_run({str(run)!r}).act(numpy.zeros({S}))\n"
        f"assert action.shape == ({A},)\n"
        "heavy = ('lightning', 'gymnasium', 'h5py', 'jsonargparse', 'omegaconf', 'tensorboard')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
