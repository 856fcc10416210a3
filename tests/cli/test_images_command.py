"""`cepdiff fit` and `cepdiff sample` on images, as a user types them: prior, energies with heads, evaluated samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from density_runs import complaint, fit, said, same_weights, weights
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytest.importorskip("diffusers")

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from cepdiff.cli import main
from cepdiff.policy.images import ImageSampler
from cepdiff.runs.config import load_config
from devices import needs_gpu

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "images").glob("digits_*.yaml"))
TINY = """
data: {class_path: cepdiff.ImageDataModule, dataset: digits, energy: labels, num_images: 400, block_size: 5}
behavior: {net: {block_channels: [8, 8], layers_per_block: 1}, batch_size: 16}
guidance: {net: {block_channels: [8, 8], layers_per_block: 1}, batch_size: 16}
solver: {num_steps: 2}
stages:
  behavior: {max_steps: 10, checkpoint_every: 5}
  guidance: {max_steps: 10, checkpoint_every: 5}
evaluation: {scales: [0, 1], num_samples: 8, classifier_steps: 3, floor_repeats: 2, grid_columns: 3}
trainer: {progress_bar: false}
"""
OWN = """
def darkness(images): return 1 + images.mean((1, 2, 3))
def steps(images): return images.sign().mean((1, 2, 3)).detach()
"""
FEW = [
    "--data.num_images", "400", "--stages.behavior.max_steps", "2", "--stages.guidance.max_steps", "2",
    "--evaluation.num_samples", "8", "--evaluation.classifier_steps", "2", "--evaluation.floor_repeats", "2",
    "--solver.num_steps", "2", "--behavior.batch_size", "8", "--guidance.batch_size", "8",
    "--trainer.progress_bar", "false",
]  # fmt: skip
SKIPPED = "finished earlier, skipped"
DARK = ["--data.energy", "image_energies_of_a_user.darkness"]
ANALYTIC = ["--guidance.objective", "DPS", "--stages.guidance.max_steps", "0"]


def results(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "results.json").read_text())
    return found


def touched(run_dir: Path) -> dict[str, int]:
    """Modification time of each result of a run."""
    names = ("*/final.ckpt", "results.json", "grids.png", "samples.npz", "evaluation/*")
    return {str(path.relative_to(run_dir)): path.stat().st_mtime_ns for name in names for path in run_dir.glob(name)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A configuration of a few steps on some digits, with a module of energies beside it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "image_energies_of_a_user.py").write_text(OWN)
    (folder / "tiny.yaml").write_text(TINY)
    yield folder / "tiny.yaml"
    sys.modules.pop("image_energies_of_a_user", None)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    """A finished run, read-only; tests that change it take `run`."""
    run_dir = config.parent / "finished"
    assert fit(config, run_dir) == 0
    return run_dir


def test_another_temperature_of_the_energy_itself_is_evaluated_again(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert fit(config, run_dir, *DARK, *ANALYTIC) == 0
    shutil.rmtree(run_dir / "guidance")
    capsys.readouterr()
    assert fit(config, run_dir, *DARK, *ANALYTIC, "--guidance.objective.inverse_temperature", "5") == 0
    assert said(capsys)["evaluation"] == "running"
    assert results(run_dir)["inverse_temperature"] == 5.0


def test_other_images_in_the_same_process(config: Path, tmp_path: Path) -> None:
    """The supplied channels of one run are not those of the next."""
    few = [*FEW, "--evaluation.scales", "[1]"]
    text = "data: {class_path: cepdiff.ImageDataModule, dataset: digits, energy: labels}\n"
    (tmp_path / "grey.yaml").write_text(text)
    (tmp_path / "tinted.yaml").write_text(text.replace("labels", "hues, tint: true"))
    assert fit(tmp_path / "grey.yaml", tmp_path / "grey", *few, "--stage", "behavior") == 0
    assert fit(tmp_path / "tinted.yaml", tmp_path / "tinted", *few, "--stage", "behavior") == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains_and_leaves_its_files(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert fit(path, run_dir, *FEW) == 0
    shown = capsys.readouterr().out.splitlines()
    colour = path.stem == "digits_colour"
    beta, heads = (50, 6) if colour else (1, 10)
    assert shown[1].startswith(f"digits, CEP, beta {beta}, seed 0, ")
    assert ("energy of the data" if colour else "the classifier is right on") in shown[1]
    assert "multiple" in shown[2]
    assert [line.split()[0] for line in shown[3:8]] == ["0", "0.5", "1", "2", "4"]
    found = results(run_dir)
    assert (found["problem"], found["title"]) == ("cepdiff.problems.density.images.ImageDensity", shown[1])
    distance = found["about"]["distance"]
    assert distance == ("hue_distance" if colour else "frechet")
    means = [row for row in found["rows"] if row["head"] == ""]
    scales = [0.0, 0.5, 1.0, 2.0, 4.0]
    assert list(dict.fromkeys(row["scale"] for row in means)) == scales
    for scale in scales:
        assert set(found["columns"]) <= {row["metric"] for row in means if row["scale"] == scale}
    assert len(found["rows"]) == (1 + heads) * len(means)
    assert len(found["about"]["heads"]) == heads
    of_heads = [row["head"] for row in found["rows"] if row["metric"] == distance and row["head"]]
    assert of_heads == found["about"]["heads"] * len(scales)
    for row in found["rows"]:
        assert (row["multiple"] is not None) == (row["floor"] is not None) == (row["metric"] == distance)
        if row["metric"] == distance:
            assert row["multiple"] == pytest.approx(row["value"] / row["floor"])
    assert imread(run_dir / "grids.png").shape[1] > 500
    assert (run_dir / "hues.png").exists() == colour
    events = EventAccumulator(str(run_dir / "logs" / "evaluation")).Reload()
    assert f"eval/{distance}_multiple/s=1.0" in events.Tags()["scalars"]
    assert set(events.Tags()["images"]) == ({"grids", "hues"} if colour else {"grids"})


def test_channels_heads_and_schedule_come_from_the_data(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert fit(config, run_dir, "--data.tint", "true", "--data.energy", "hues", "--schedule.beta_max", "15") == 0
    kept = load_config([run_dir / "config.yaml"])
    behavior, guidance = (kept.values[key]["init_args"]["net"]["init_args"] for key in ("behavior", "guidance"))
    assert (behavior["channels"], guidance["channels"], guidance["num_heads"]) == (3, 3, 6)
    assert behavior["schedule"] == guidance["schedule"] == kept.values["schedule"]
    assert kept.values["schedule"]["init_args"]["beta_max"] == 15.0
    capsys.readouterr()
    assert fit(run_dir / "config.yaml", run_dir) == 0  # the saved configuration is complete and equivalent
    assert capsys.readouterr().err.count(SKIPPED) == 3


def test_a_finished_run_is_skipped_and_shown(config: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = touched(run)
    assert len(before) == 6
    capsys.readouterr()
    assert fit(config, run) == 0
    again = capsys.readouterr()
    assert again.err.count(SKIPPED) == 3
    assert "real data" in again.out
    assert touched(run) == before


def test_the_evaluation_alone_is_made_again_with_other_scales(
    config: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = touched(run)
    capsys.readouterr()
    assert fit(config, run, "--evaluation.scales", "[3]") == 0
    assert said(capsys) == {"behavior": SKIPPED, "guidance": SKIPPED, "evaluation": "running"}
    after = touched(run)
    assert {name for name in after if after[name] != before[name]} == {"results.json", "grids.png", "samples.npz"}
    assert {row["scale"] for row in results(run)["rows"]} == {3.0}


@pytest.mark.parametrize(
    "arguments",
    [["--guidance.objective", "NoisyClassifier"], [*DARK, "--data.holdout", "0.1"], [*DARK, *ANALYTIC]],
    ids=["objective", "energy", "no network of the energy"],
)
def test_the_prior_is_taken_over(
    config: Path, finished: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    capsys.readouterr()
    assert fit(config, other, *arguments, "--reuse", finished) == 0
    assert said(capsys)["behavior"] == SKIPPED
    assert same_weights(finished, other, "behavior")
    found = results(other)
    if "--data.energy" in arguments:
        assert (found["about"]["energy"], found["about"]["distance"]) == (DARK[1], "energy_distance")
        assert found["about"]["heads"] == ["darkness"]
        assert {(row["scale"], row["head"]) for row in found["rows"]} == {
            (scale, head) for scale in (0.0, 1.0) for head in ("", "darkness")
        }
        assert not (other / "evaluation").exists()
    with np.load(other / "samples.npz") as ours:  # as another process would, from the file only
        again = ImageSampler.from_run(other).sample(3, 0, 1.0)
        assert np.abs(ours["guided, scale 1"][0].astype(int) - again.numpy()).max() <= 1


def test_images_of_other_kinds_do_not_take_the_prior(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert fit(config, tmp_path / "other", "--data.num_images", 380, "--reuse", finished, "--stage", "behavior") == 0
    assert said(capsys) == {"behavior": "running"}


def test_the_sampler_draws_what_the_evaluation_saw(finished: Path) -> None:
    sampler = ImageSampler.from_run(finished)
    assert sampler.head_names == tuple("0123456789")
    with np.load(finished / "samples.npz") as kept:
        assert {name: array.shape for name, array in kept.items()} == {
            "guided, scale 0": (10, 3, 1, 8, 8),
            "guided, scale 1": (10, 3, 1, 8, 8),
        }
        for scale in (0, 1):
            found = torch.stack([sampler.sample(3, head, scale, batch_size=2) for head in range(10)]).numpy()
            assert np.abs(kept[f"guided, scale {scale}"].astype(int) - found).max() <= 1  # rounding: other batch sizes


def test_samples_as_a_picture_and_as_an_array(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(finished), "--head", "3", "--num", "5", "--accelerator", "cpu", "--output"]
    assert main([*command, str(tmp_path / "a.npz")]) == 0
    assert "5 images (1, 8, 8) of head 3 at scale 1, seed 0" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as file:
        images = file["images"]
    assert (images.shape, images.dtype) == ((5, 1, 8, 8), np.uint8)
    assert np.array_equal(images, ImageSampler.from_run(finished).sample(5, "3").numpy())
    assert main([*command, str(tmp_path / "a.png")]) == 0
    picture = (imread(tmp_path / "a.png") * 255).round().astype(np.uint8)
    assert picture.shape == (2 * 9 - 1, 3 * 9 - 1, 3)
    assert np.array_equal(picture[9:17, :8, 0], images[3, 0])  # three columns: image 3 starts the second row
    assert "exists: use --force" in complaint(capsys, *command, tmp_path / "a.png")
    assert main([*command, str(tmp_path / "a.png"), "--seed", "1", "--force"]) == 0
    assert not np.array_equal(picture, (imread(tmp_path / "a.png") * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--head", "12"], "there is no head '12'; there are 10"),
        ([], "choose a head to guide by; there are 10"),
        (["--head", "1", "--scale", "-1"], "guidance_scale is -1"),
        (["--head", "1", "--output", "x.jpg"], "ends with '.jpg'; expected .png or .npz"),
        (["--head", "1", "--accelerator", "abacus"], "trainer: "),
    ],
)
def test_bad_requests_for_samples(
    finished: Path, tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.png"
    assert expected in complaint(capsys, "sample", finished, "--output", output, *arguments)
    assert not output.exists()
    assert "does not exist" in complaint(capsys, "sample", tmp_path, "--output", output, "--head", "1")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--critic.discount", "0.9"], "unknown key 'critic'"),
        (["--stages.support.num_actions", "3"], "unknown key 'stages.support'"),
        (["--evaluation.episodes", "3"], "unknown key 'evaluation.episodes'"),
        (["--guidance.net.num_heads", "6"], "guidance.net.num_heads is 6, but here it is 10: leave it out"),
        (["--behavior.net.channels", "3"], "behavior.net.channels is 3, but here it is 1: leave it out"),
        (["--data.energy", "null"], "data.energy is missing"),
        (["--data.num_images", "100"], "training images; comparing its samples with them needs at least 16"),
        (["--stages.behavior.max_steps", "0"], "behavior.net.pretrained names no prior"),
        (["--stages.behavior.max_steps", "-1"], "stages.behavior.max_steps is -1"),
        (["--stages.guidance.max_steps", "0"], "expected DPS as guidance.objective, found CEP"),
        (ANALYTIC, "data.energy is labels, not a function of the image"),
        (["--evaluation.num_samples", "7"], "evaluation.num_samples is 7; expected at least 8"),
        (["--evaluation.grid_columns", "0"], "evaluation.grid_columns is 0"),
        (["--evaluation.scales", "[]"], "evaluation.scales is []"),
        (["--evaluation.fid_weights", "nowhere.pth"], "there is no file nowhere.pth"),
    ],
)
def test_bad_settings_end_with_one_line(
    config: Path, tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in complaint(capsys, "fit", "--config", config, "--run_dir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "behavior").exists()


def test_objectives_say_which_energies_they_cannot_take(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    line = complaint(
        capsys, "fit", "--config", config, "--run_dir", run_dir, "--reuse", finished, "--guidance.objective", "MSE"
    )
    assert "MSE cannot be trained on infinite energies" in line


def test_an_energy_without_a_gradient_cannot_guide(
    config: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "--config", config, "--run_dir", tmp_path / "run", "--reuse", finished, *ANALYTIC]
    assert "has no gradient" in complaint(capsys, *command, "--data.energy", "image_energies_of_a_user.steps")


def test_a_pretrained_prior_is_used_as_it_is(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    folder, moved = tmp_path / "pipeline", tmp_path / "moved"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    overlay = tmp_path / "pretrained.yaml"
    overlay.write_text(f"behavior: {{net: {{pretrained: {folder}}}}}\nstages: {{behavior: {{max_steps: 0}}}}\n")
    run_dir = tmp_path / "run"
    assert fit(config, run_dir, "--config", overlay) == 0
    kept = weights(run_dir, "behavior")
    assert all(torch.equal(kept[f"net.unet.{name}"], value) for name, value in unet.state_dict().items())
    assert "pipeline" not in (run_dir / "behavior" / "stage.json").read_text()  # a hash, not a path
    folder.rename(moved)
    assert ImageSampler.from_run(run_dir).sample(2, 0).shape == (2, 1, 8, 8)  # works without the folder
    capsys.readouterr()
    assert fit(config, run_dir, "--config", overlay, "--behavior.net.pretrained", moved) == 0
    assert capsys.readouterr().err.count(SKIPPED) == 3


def test_grids_during_training_leave_it_as_it_is(config: Path, finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert fit(config, run_dir, "--evaluation.every_n_steps", 5) == 0
    for stage, scale in (("behavior", 0), ("guidance", 1)):
        assert same_weights(finished, run_dir, stage)
        events = EventAccumulator(str(run_dir / "logs" / stage)).Reload()
        assert events.Tags()["images"] == [f"samples/s={scale}"]
        found = events.Images(f"samples/s={scale}")
        assert [event.step for event in found] == [5, 10]
        assert (found[0].width, found[0].height) == (3 * 9 - 1, 10 * 9 - 1)


@needs_gpu
def test_a_second_run_on_a_gpu_has_the_same_weights(config: Path, finished: Path, tmp_path: Path) -> None:
    assert fit(config, tmp_path / "again") == 0
    assert all(same_weights(finished, tmp_path / "again", stage) for stage in ("behavior", "guidance"))


@pytest.mark.slow
def test_two_processes_equal_one(config: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert fit(config, one, "--trainer.accelerator", "cpu") == 0
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "cepdiff", "fit", "--config", str(config), "--run_dir", str(two)]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    done = subprocess.run(
        [*command, "--evaluation.every_n_steps", "5"],
        env={**kept, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guidance scale") == 1  # only one process prints the table
    for stage in ("behavior", "guidance"):
        a, b = weights(one, stage), weights(two, stage)
        # Contrasts and attention ignore some biases: their gradients are rounding noise, which Adam scales up.
        for name in (name for name in a if not name.endswith("bias")):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=f"{stage}: {name}")
    with np.load(one / "samples.npz") as ours, np.load(two / "samples.npz") as theirs:
        for name in ours:
            assert np.abs(ours[name].astype(int) - theirs[name].astype(int)).max() <= 3, name


def test_a_class_conditional_prior_in_mixed_precision(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains on labels, is sampled under autocast, and is rebuilt from the policy file."""
    by_class = ["--behavior.net.num_classes"]
    run = tmp_path / "run"
    more = [*by_class, "10", "--trainer.precision", "bf16-mixed", "--evaluation.every_n_steps", "5"]
    assert fit(config, run, *more) == 0
    assert [row["metric"] for row in results(run)["rows"]].count("accuracy") == 22
    image = tmp_path / "threes.npz"
    capsys.readouterr()
    command = ["sample", str(run), "--num", "2", "--output", str(image)]
    assert main([*command, "--scale", "0"]) == 2
    assert "choose a head, its class" in capsys.readouterr().err
    assert main([*command, "--head", "3", "--precision", "bf16-mixed"]) == 0
    assert np.load(image)["images"].shape == (2, 1, 8, 8)
    assert "found labels with 10 heads" in complaint(
        capsys, "fit", "--config", config, "--run_dir", tmp_path / "no", *by_class, "9"
    )
