"""The sampler file of an image run, and what its samples depend on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from cepdiff.data.images.energies import from_bytes
from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.heads import FunctionEnergy
from cepdiff.energy.objectives import CEP, NoisyClassifier
from cepdiff.errors import CepdiffError, ConfigError, RunError
from cepdiff.networks.images.half_unet import HalfUNet
from cepdiff.networks.images.unet import UNetScore
from cepdiff.policy.images import ImageSampler, start_noise, tiled, to_bytes
from cepdiff.policy.recipe import POLICY_FILE, Recipe, write_recipe
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.seals import save_sealed, unsealed
from cepdiff.types import DataSpec

SHAPE, NAMES = (3, 4, 4), ("cat", "dog", "10")
SMALL = {"channels": 3, "block_channels": [8, 8], "layers_per_block": 1}
CEP_SPEC = {"class_path": "cepdiff.energy.objectives.CEP", "init_args": {"inverse_temperature": 2.0}}
BEHAVIOR = {"class_path": "cepdiff.networks.images.unet.UNetScore", "init_args": SMALL}
ENERGY = {"class_path": "cepdiff.networks.images.half_unet.HalfUNet", "init_args": {**SMALL, "num_heads": 3}}
RECIPE = Recipe(
    dataset="pets",
    spec=DataSpec(0, 48, (-1.0,) * 48, (1.0,) * 48).to_dict(),
    sampler={"class_path": "cepdiff.policy.sampler.GuidedSampler", "init_args": {}},
    networks={"behavior": BEHAVIOR, "energy": ENERGY},
    objective=CEP_SPEC,
    schedule={"class_path": "cepdiff.diffusion.schedule.LinearVP", "init_args": {}},
    solver={"class_path": "cepdiff.diffusion.solver.DPMSolver", "init_args": {"num_steps": 3}},
    scales=[0.0, 1.0],
    sources=[],
    head_names=list(NAMES),
    image_shape=list(SHAPE),
)


def make(energy: bool = True, objective: Any = None, names: tuple[str, ...] = NAMES) -> ImageSampler:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks: dict[str, torch.nn.Module] = {"behavior": UNetScore(0, 48, **SMALL)}
        if energy:
            energy_net = HalfUNet(0, 48, num_heads=len(names), **SMALL)
            energy_net.output.weight.data.mul_(30.0)  # strong enough for guidance to change bytes
            networks["energy"] = energy_net
    parts = SamplerParts(48, networks, LinearVP(), DPMSolver(3), objective or CEP(2.0), headed=True)
    return ImageSampler(SHAPE, names, GuidedSampler(parts))


def save(sampler: ImageSampler, folder: Path, recipe: Recipe = RECIPE) -> None:
    """Write the policy file of an image run."""
    write_recipe(folder / POLICY_FILE, recipe, sampler.sampler.networks)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save(make(), tmp_path)
    return tmp_path


def rewrite(run: Path, **changes: Any) -> None:
    content = unsealed(torch.load(run / POLICY_FILE, weights_only=True))
    content["recipe"].update(changes.pop("recipe", {}))
    save_sealed(run / POLICY_FILE, {**content, **changes})


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bytes up to rounding: other batch sizes are summed in another order."""
    return bool(((a.int() - b.int()).abs() <= 1).all())


def test_samples_are_images_in_bytes_and_a_function_of_seed_head_and_index() -> None:
    sampler = make()
    images = sampler.sample(5, "dog")
    assert (images.shape, images.dtype) == ((5, *SHAPE), torch.uint8)
    assert close(images, sampler.sample(7, "dog", batch_size=2)[:5])
    assert close(images, sampler.sample(5, 1))
    assert not torch.equal(images, sampler.sample(5, "cat"))
    assert not torch.equal(images, sampler.sample(5, "dog", seed=1))
    assert not torch.equal(images, sampler.sample(5, "dog", guidance_scale=2.0))


def test_the_noise_is_that_of_its_row() -> None:
    heads, indices = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 0, 3, 0])
    noise = start_noise(heads, indices, 6, seed=5)
    assert torch.equal(noise[2:3], start_noise(heads[2:3], indices[2:3], 6, seed=5))
    assert len({tuple(row) for row in noise.tolist()}) == 4
    assert not torch.equal(noise, start_noise(heads, indices, 6, seed=6))
    many = start_noise(torch.zeros(2000, dtype=torch.int64), torch.arange(2000), 4, seed=0)
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1.0) < 0.05


def test_scale_0_is_the_prior_and_asks_no_head() -> None:
    with_energy, without = make(), make(energy=False)
    prior = without.sample(4, guidance_scale=0.0)
    assert torch.equal(prior, with_energy.sample(4, "cat", guidance_scale=0.0))
    assert not torch.equal(prior, with_energy.sample(4, "cat"))
    with pytest.raises(RunError, match="no energy network yet"):
        without.sample(4, "cat")


def test_the_objective_says_how_logits_guide() -> None:
    assert not torch.equal(make().sample(4, 0), make(objective=NoisyClassifier()).sample(4, 0))


@pytest.mark.parametrize(("head", "index"), [("cat", 0), ("dog", 1), (2, 2), ("1", 1), ("10", 2)])
def test_heads_go_by_name_or_number(head: int | str, index: int) -> None:
    assert make(energy=False).head_index(head) == index


@pytest.mark.parametrize("head", ["dgo", 3, -1, "-1", "", "1.0"])
def test_a_head_that_is_not_there_is_refused(head: int | str) -> None:
    with pytest.raises(ConfigError, match=f"there is no head '{head}'; there are 3: cat, dog, 10"):
        make(energy=False).head_index(head)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num": 0}, "num is 0"),
        ({"num": 2, "batch_size": 0}, "batch_size is 0"),
        ({"num": 2, "head": None}, "choose a head to guide by; there are 3"),
        ({"num": 2, "guidance_scale": -1.0}, "guidance_scale is -1"),
        ({"num": 2, "guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_bad_requests_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make().sample(**{"head": 0, **arguments})


def test_the_only_head_needs_no_name() -> None:
    sampler = make(names=("bright",))
    assert torch.equal(sampler.sample(3), sampler.sample(3, "bright"))


def test_heads_may_be_of_any_integer_type() -> None:
    heads, indices = torch.tensor([0, 2, 1]), torch.arange(3)
    (expected,), (found,) = (list(make().batches(given, indices, 1.0, 0, 3)) for given in (heads, heads.byte()))
    assert torch.equal(found, expected)


def test_a_run_without_images_is_refused(tmp_path: Path) -> None:
    save(make(), tmp_path, replace(RECIPE, image_shape=None))
    with pytest.raises(RunError, match=r"is no run on images; load it with GuidedPolicy\.from_run"):
        ImageSampler.from_run(tmp_path)


def test_batches_are_announced() -> None:
    heard: list[tuple[int, int]] = []
    make().sample(5, 0, batch_size=2, shown=lambda done, total: heard.append((done, total)))
    assert heard == [(2, 5), (4, 5), (5, 5)]


def test_what_is_saved_is_what_is_read(run: Path) -> None:
    read = ImageSampler.from_run(run)
    assert read.recipe == RECIPE
    assert torch.equal(make().sample(4, "dog"), read.sample(4, "dog"))
    assert torch.equal(read.sample(4, "dog"), ImageSampler.from_run(run / POLICY_FILE).sample(4, "dog"))
    assert not torch.equal(read.sample(4, "dog"), ImageSampler.from_run(run, num_solver_steps=9).sample(4, "dog"))


def test_an_energy_that_is_a_function_needs_no_network(tmp_path: Path) -> None:
    objective = {"class_path": "cepdiff.energy.objectives.DPS", "init_args": {"inverse_temperature": 200.0}}
    names = [f"{i}/6" for i in range(6)]
    arguments = {"function": "hues", "image_shape": list(SHAPE), "inverse_temperature": 200.0}
    function = {"class_path": "cepdiff.energy.heads.FunctionEnergy", "init_args": arguments}
    networks = {"behavior": BEHAVIOR, "energy": function}
    recipe = replace(RECIPE, networks=networks, objective=objective, head_names=names)
    trained = {**make(energy=False).sampler.networks, "energy": FunctionEnergy(0, 48, **arguments)}
    write_recipe(tmp_path / POLICY_FILE, recipe, trained)
    sampler = ImageSampler.from_run(tmp_path)
    assert not torch.equal(sampler.sample(4, "3/6"), sampler.sample(4, "3/6", guidance_scale=0.0))


def test_missing_torn_and_foreign_files_are_refused(run: Path) -> None:
    with pytest.raises(RunError, match=r"does not exist: run `cepdiff fit` until"):
        ImageSampler.from_run(run / "nowhere")
    path = run / POLICY_FILE
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(RunError, match="not a policy file"):
            ImageSampler.from_run(run)
    for value in ({"a": 1}, [], {"format": 3}, {"format": 3, "recipe": {"x": 1}, "weights": {}}):
        torch.save(value, path)
        with pytest.raises(RunError, match="not a policy file"):
            ImageSampler.from_run(run)


def test_other_formats_and_weights_are_refused(run: Path) -> None:
    four = {**ENERGY, "init_args": {**SMALL, "num_heads": 4}}
    rewrite(run, recipe={"networks": {"behavior": BEHAVIOR, "energy": four}})
    with pytest.raises(RunError, match="weights do not fit"):
        ImageSampler.from_run(run)
    rewrite(run, format=99)
    with pytest.raises(CepdiffError, match="format 99"):
        ImageSampler.from_run(run)


@pytest.mark.parametrize("where", ["behavior", "energy", "objective", "schedule", "solver", "sampler"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_can_call_no_class_but_those_of_a_sampler(run: Path, where: str, nested: bool) -> None:
    trap = run / "trapped"
    call = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(trap)]}}
    networks = where in RECIPE.networks
    spec: Any = RECIPE.networks[where] if networks else getattr(RECIPE, where)
    changed = {where: {**spec, "init_args": {**spec["init_args"], "channels": call}} if nested else call}
    rewrite(run, recipe={"networks": {**RECIPE.networks, **changed}} if networks else changed)
    with pytest.raises((CepdiffError, TypeError)):
        ImageSampler.from_run(run)
    subprocess.run(["sleep", "0.2"], check=True)  # give a child process time to run
    assert not trap.exists()


def test_loading_needs_no_lightning(run: Path) -> None:
    code = (
        "import json, sys\n"
        "from cepdiff.policy.images import ImageSampler\n"
        f"assert ImageSampler.from_run({str(run)!r}).sample(2, 'cat').shape == (2, 3, 4, 4)\n"
        "print(json.dumps([name for name in ('lightning', 'jsonargparse', 'omegaconf') if name in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_bytes_and_back_are_the_same() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(from_bytes(every)), every)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_lie_in_rows_with_white_lines_between(channels: int) -> None:
    images = torch.randint(0, 255, (2, 3, channels, 4, 5), dtype=torch.uint8)
    picture = tiled(images)
    assert picture.shape == (3, 2 * 5 - 1, 3 * 6 - 1)
    assert torch.equal(picture[:, 5:9, 12:17], images[1, 2].expand(3, -1, -1))
    assert bool((picture[:, 4] == 255).all())
    assert bool((picture[:, :, 5] == 255).all())
