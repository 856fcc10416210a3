"""The recipes for real images: loaded at their real sizes, and run for a step per stage with tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("datasets")

import datasets
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn

from cepdiff.cli import main
from cepdiff.networks.images.unet import UNetScore
from cepdiff.policy.images import ImageSampler
from cepdiff.runs.config import Config, load_config

FOLDER = Path(__file__).parent.parent / "configs" / "images"
# Each recipe's side, heads and millions of parameters: of the prior (None where it is downloaded; Dhariwal & Nichol's
# priors have 296, 422 and 554, with class embeddings) and of the energy network.
RECIPES = {
    "imagenet64_class": (64, 1000, 294.5, 59.7),
    "imagenet128_class": (128, 1000, 417.1, 37.7),
    "imagenet256_class": (256, 1000, 542.6, 46.8),
    "imagenet256_colour": (256, 6, 542.6, 46.3),
    "cifar10_class": (32, 10, None, 14.2),
    "cifar10_colour": (32, 6, None, 14.2),
    "celeba_class": (64, 2, 74.1, 10.5),
    "celeba_colour": (256, 6, None, 30.9),
}
PAPER = [name for name in RECIPES if name.startswith("imagenet")]
CLASSES = ("cat", "dog")
SIDE = 8
WIDTHS = "[8, 8]"
TINY = [
    "--data.image_size", SIDE, "--data.block_size", "1", "--stages.guidance.max_steps", "1",
    "--guidance.net.block_channels", WIDTHS, "--guidance.net.layers_per_block", "1", "--guidance.net.attention", "[1]",
    "--behavior.batch_size", "4", "--behavior.micro_batch_size", "2", "--guidance.batch_size", "4",
    "--solver.num_steps", "2", "--evaluation.scales", "[0, 1]", "--evaluation.num_samples", "8",
    "--evaluation.classifier_steps", "1", "--evaluation.floor_repeats", "2", "--evaluation.batch_size", "16",
    "--trainer.progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
    "--trainer.strategy", "auto",
]  # fmt: skip
TINY_UNET = [
    "--behavior.net.config.block_out_channels", WIDTHS, "--behavior.net.config.layers_per_block", "1",
    "--behavior.net.config.down_block_types", "[DownBlock2D, AttnDownBlock2D]",
    "--behavior.net.config.up_block_types", "[AttnUpBlock2D, UpBlock2D]",
    "--behavior.net.config.attention_head_dim", "8", "--behavior.net.config.norm_num_groups", "2",
]  # fmt: skip
TINY_OPTIONS = [
    "--behavior.net.block_channels", WIDTHS, "--behavior.net.layers_per_block", "1", "--behavior.net.attention", "[1]",
]  # fmt: skip


def recipe(name: str) -> Config:
    return load_config([FOLDER / f"{name}.yaml"])


def net_of(config: Config, stage: str) -> dict[str, Any]:
    """The configuration of a stage's network."""
    found: dict[str, Any] = config.values[stage]["init_args"]["net"]["init_args"]
    return found


def random_images(count: int) -> list[Image.Image]:
    """Images that are not square, and larger than the recipe needs."""
    draws = np.random.default_rng(0)
    return [Image.fromarray(draws.integers(0, 256, (12, 14, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in one subfolder per class."""
    root = tmp_path_factory.mktemp("images")
    for label in CLASSES:
        (root / label).mkdir()
        for index, image in enumerate(random_images(20)):
            image.save(root / label / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset like CelebA on the hub: images, identities, and boolean attributes."""
    root = tmp_path_factory.mktemp("hub") / "celeba"
    features = datasets.Features(
        {"image": datasets.Image(), "celeb_id": datasets.Value("int64"), "Smiling": datasets.Value("bool")}
    )
    columns = {"image": random_images(40), "celeb_id": list(range(40)), "Smiling": [i % 2 == 0 for i in range(40)]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(root))
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior in the hub's layout: a pipeline with U-Net and scheduler in one folder."""
    root = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=SIDE, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(root)
    return root


def test_every_recipe_is_known_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*RECIPES, "digits_class", "digits_colour"}


@pytest.mark.parametrize("name", RECIPES)
def test_networks_fit_the_images_at_their_real_sizes(name: str) -> None:
    side, heads, prior_size, energy_size = RECIPES[name]
    config = recipe(name)
    assert config.components["data"].arguments["image_size"] == side
    for stage in ("behavior", "guidance"):  # memory that a process gathers at a time, on top of the images themselves
        rows = (
            config.components["data"].arguments["block_size"]
            * config.components[stage].arguments["batch_size"]
            / config.trainer.devices
        )
        assert rows * 3 * side**2 * 4 < 2**29
    with torch.device("meta"):  # only shapes
        energy_net = config.components["guidance"].arguments["net"](0, 3 * side**2, num_heads=heads)
        x, t = torch.empty(2, 3 * side**2), torch.empty(2)
        assert energy_net(x, t, None).shape == (2, heads)
        assert millions(energy_net) == pytest.approx(energy_size, abs=0.05)
        if prior_size is not None:
            prior = config.components["behavior"].arguments["net"](0, 3 * side**2)
            assert prior(x, t, None).shape == x.shape
            assert millions(prior) == pytest.approx(prior_size, abs=0.05)


def millions(net: nn.Module) -> float:
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_the_paper_says(name: str) -> None:
    config = recipe(name)
    guidance = config.components["guidance"].arguments
    colour = name.endswith("colour")
    assert config.components["data"].arguments["energy"] == ("hues" if colour else "labels")
    assert guidance["objective"].inverse_temperature == (50.0 if colour else 1.0)
    assert (guidance["learning_rate"], guidance["lr_schedule"], guidance["weight_decay"]) == (3e-4, "cosine", 0.05)
    assert config.trainer.precision == "bf16-mixed"
    if name in PAPER:
        assert config.settings["stages"].guidance.max_steps == 500_000
        assert guidance["batch_size"] == 32 * config.trainer.devices == 256
        assert config.components["behavior"].arguments["batch_size"] % config.trainer.devices == 0
        assert config.settings["stages"].behavior.max_steps > 0
    elif net_of(config, "behavior")["pretrained"]:
        assert net_of(config, "behavior")["pretrained"].startswith("google/ddpm-")
        assert config.settings["stages"].behavior.max_steps == 0


def run(name: str, run_dir: Path, *arguments: object) -> int:
    """The command in this process."""
    config = FOLDER / f"{name}.yaml"
    return main(["fit", "--config", str(config), "--run_dir", str(run_dir), *map(str, (*TINY, *arguments))])


def prior_of(name: str, pretrained: Path) -> list[object]:
    """Arguments that make a recipe's prior tiny and train it for one step, if the recipe trains it."""
    net, stages = net_of(recipe(name), "behavior"), recipe(name).settings["stages"]
    if net["pretrained"]:
        return ["--behavior.net.pretrained", pretrained]
    assert stages.behavior.max_steps > 0
    return ["--stages.behavior.max_steps", "1", *(TINY_OPTIONS if net["config"] is None else TINY_UNET)]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name: str, folder: Path, attributes: Path, pretrained: Path, tmp_path: Path) -> None:
    dataset = f"hub:{attributes}" if name == "celeba_class" else str(folder)
    run_dir = tmp_path / "run"
    assert run(name, run_dir, "--data.dataset", dataset, *prior_of(name, pretrained)) == 0
    found = json.loads((run_dir / "results.json").read_text())
    heads = {"celeba_class": ["False", "True"]}.get(name, list(CLASSES))
    expected = [f"{i}/6" for i in range(6)] if name.endswith("colour") else heads
    assert found["about"]["heads"] == expected
    distance = found["about"]["distance"]
    assert [row["head"] for row in found["rows"] if row["metric"] == distance and row["head"]] == 2 * expected
    assert ImageSampler.from_run(run_dir).sample(2, expected[1], 1.0).shape == (2, 3, SIDE, SIDE)
    prior = UNetScore(0, 3 * SIDE**2, pretrained=str(pretrained)).state_dict()
    kept = torch.load(run_dir / "behavior" / "final.ckpt", weights_only=True)["state_dict"]
    frozen = [torch.equal(kept.get(f"net.{key}", torch.empty(0)), value) for key, value in prior.items()]
    assert all(frozen) == bool(net_of(recipe(name), "behavior")["pretrained"])


def test_a_prior_of_ones_own_takes_the_place_of_the_recipes(folder: Path, pretrained: Path, tmp_path: Path) -> None:
    given = ["--behavior.net.pretrained", pretrained, "--behavior.net.config", "null", "--stages.behavior.max_steps", 0]
    assert run("imagenet256_class", tmp_path / "run", "--data.dataset", folder, *given) == 0
    kept = torch.load(tmp_path / "run" / "behavior" / "final.ckpt", weights_only=True)["state_dict"]
    prior = UNetScore(0, 3 * SIDE**2, pretrained=str(pretrained)).state_dict()
    assert all(torch.equal(kept[f"net.{key}"], value) for key, value in prior.items())


def test_the_colours_take_over_the_prior_of_the_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--data.dataset", folder, "--stages.behavior.max_steps", "1", *TINY_UNET]
    assert run("imagenet256_class", tmp_path / "classes", *tiny) == 0
    capsys.readouterr()
    assert run("imagenet256_colour", tmp_path / "colours", *tiny, "--reuse", tmp_path / "classes") == 0
    assert "behavior: finished earlier, skipped" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10_colour", "celeba_colour"])
def test_colours_guide_without_a_network(name: str, folder: Path, pretrained: Path, tmp_path: Path) -> None:
    analytic = ["--guidance.objective", "DPS", "--stages.guidance.max_steps", 0]
    assert run(name, tmp_path / "run", "--data.dataset", folder, *prior_of(name, pretrained), *analytic) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["method"] == "DPS (analytic)"


def test_a_prior_is_fine_tuned(folder: Path, pretrained: Path, tmp_path: Path) -> None:
    tuned = ["--behavior.net.pretrained", pretrained, "--stages.behavior.max_steps", 1, "--behavior.ema_decay", 0.999]
    assert run("cifar10_class", tmp_path / "run", "--data.dataset", folder, *tuned) == 0
    kept = torch.load(tmp_path / "run" / "behavior" / "final.ckpt", weights_only=True)["state_dict"]
    prior = UNetScore(0, 3 * SIDE**2, pretrained=str(pretrained)).state_dict()
    assert not any(torch.equal(kept[f"net.{key}"], value) for key, value in prior.items() if key.endswith("weight"))
