"""The image data module: what the networks see, energies, held-out rows, hashes, invalid input."""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cepdiff.data.blocks import BlockLoader
from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import from_bytes, hue_energy
from cepdiff.data.images.files import ImageSet
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator
from cepdiff.types import STEP_SEEDS
from devices import needs_gpu

OWN = """
import torch
def left(images): return images[:, 0, 0, 0]
def corners(images): return torch.stack([images[:, 0, 0, 0], images[:, 0, 0, -1]], -1)
"""


def ready(dataset: str | Path = "digits", **options: object) -> ImageDataModule:
    """A data module with its images loaded."""
    data = ImageDataModule(str(dataset), **{"num_images": 200, **options})  # type: ignore[arg-type]
    data.setup()
    return data


def batch_of(data: ImageDataModule, *fields: str, rows: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return data.gatherer(fields)(data.rows(fields) if rows is None else rows)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_of_images.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_of_images"
    sys.modules.pop("own_of_images", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four noisy images of each class, cat and dog, 3x2 (height x width)."""
    draws = np.random.default_rng(0)
    for name in ("dog", "cat"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            pixels = draws.integers(0, 256, (3, 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


class TestWhatNetworksSee:
    def test_digits_are_grey_vectors(self) -> None:
        data = ready(num_images=None)
        assert data.dataset_name == "digits"
        assert data.image_shape == (1, 8, 8)
        assert data.sizes == (0, 64)
        assert data.spec.action_low == (-1.0,) * 64
        assert data.spec.action_high == (1.0,) * 64
        samples = batch_of(data, "samples")["samples"]
        assert samples.dtype == torch.float32
        assert samples.aminmax() == (-1.0, 1.0)
        levels = (samples + 1) * 8  # 17 grey levels, to the nearest byte
        torch.testing.assert_close(levels, levels.round(), atol=16 / 510 + 1e-5, rtol=0)

    def test_images_are_flattened_channel_by_channel(self, folder: Path) -> None:
        data = ready(folder)
        assert data.image_shape == (3, 3, 2)
        assert data.sizes == (0, 18)
        rows = torch.tensor([[5, 0], [7, 7]])
        batch = batch_of(data, "samples", "labels", rows=rows)
        assert set(batch) == {"samples", "labels"}
        expected = data.images[rows].double() / 255 * 2 - 1
        assert batch["samples"].shape == (2, 2, 18)
        torch.testing.assert_close(batch["samples"].reshape(2, 2, 3, 3, 2).double(), expected, atol=1e-6, rtol=0)
        with Image.open(folder / "dog" / "1.png") as image:  # row 5: cats come first
            assert np.array_equal(data.images[5].permute(1, 2, 0).numpy(), np.asarray(image))
        assert batch["labels"].tolist() == [[1, 0], [1, 1]]
        assert batch["labels"].dtype == torch.int64
        assert data.class_names == ("cat", "dog")
        assert data.dataset_name == "pets"

    def test_blocks_serve_training_rows_alone(self) -> None:
        data = ready(num_images=50, holdout=0.4)
        fields = ("samples", "labels")
        loader = BlockLoader(
            data.gatherer(fields), data.rows(fields), batch_size=64, block_size=3, seed=0, stage="behavior", stop=3
        )
        (block,) = loader
        assert set(block) == {"samples", "labels", STEP_SEEDS}
        served = block["samples"].reshape(-1, 64).unique(dim=0)
        kept = from_bytes(data.images[data.train_rows].flatten(1)).unique(dim=0)
        assert torch.equal(served, kept)  # 192 draws cover all of about 30 images

    def test_mirror_images_follow(self, folder: Path) -> None:
        data = ready(folder, horizontal_flip=True, holdout=0.25)
        train, count = data.train_rows, len(data.images)
        assert count == 8
        assert data.rows(()).tolist() == [*train.tolist(), *(train + 8).tolist()]
        rows = torch.arange(8).reshape(4, 2)
        plain, mirrored = (batch_of(data, "samples", "labels", rows=rows + shift) for shift in (0, 8))
        images = plain["samples"].reshape(4, 2, 3, 3, 2)
        assert torch.equal(mirrored["samples"].reshape(4, 2, 3, 3, 2), images.flip(-1))
        assert not torch.equal(plain["samples"], mirrored["samples"])
        assert torch.equal(plain["labels"], mirrored["labels"])

    def test_size_and_channels(self, folder: Path) -> None:
        assert ready(folder, image_size=5).image_shape == (3, 5, 5)
        assert ready(folder, channels=1).image_shape == (1, 3, 2)
        assert ready(channels=3, image_size=16).image_shape == (3, 16, 16)

    def test_fields_that_are_not_there(self, folder: Path) -> None:
        for fields, expected in (
            (("samples", "observations"), "batch field 'observations'; images have samples, energies, labels"),
            (("energies",), "images have no energies: set data.energy"),
        ):
            with pytest.raises(ConfigError, match=expected):
                ready(folder).gatherer(fields)
        with pytest.raises(ConfigError, match=r"batch field 'labels'; .*cat has none"):
            ready(folder / "cat", holdout=0.25).gatherer(("labels",))

    def test_nothing_is_there_before_setup(self) -> None:
        data = ImageDataModule()
        for ask in (lambda: data.images, lambda: data.content_hash, lambda: data.spec, lambda: data.train_rows):
            with pytest.raises(DataError, match=r"call prepare_data\(\) and setup\(\) first"):
                ask()

    def test_images_are_read_once(self) -> None:
        data = ready()
        before = data.images
        data.setup("fit")
        assert data.images is before

    @needs_gpu
    def test_on_the_device(self) -> None:
        data = ready(energy="hues", tint=True, horizontal_flip=True)
        fields = ("samples", "energies", "labels")
        rows = data.rows(fields)
        there = data.gatherer(fields, "cuda")(rows.cuda())
        for name, values in data.gatherer(fields)(rows).items():
            torch.testing.assert_close(there[name].cpu(), values)


class TestTint:
    def test_each_digit_has_a_hue_of_its_own(self) -> None:
        data, grey = ready(tint=True, seed=4), ready(seed=4)
        assert data.image_shape == (3, 8, 8)
        assert torch.equal(data.images.amax(1), grey.images.squeeze(1))
        assert bool((data.images.amin(1) == 0).all())  # full saturation
        hues = torch.rand(200, generator=generator(4, "tint"))
        row, column = 7, int(grey.images[7].flatten().argmax())
        expected = colorsys.hsv_to_rgb(hues[row].item(), 1.0, grey.images[row].max().item() / 255)
        found = data.images[row].flatten(1)[:, column].tolist()
        assert found == pytest.approx([255 * value for value in expected], abs=0.51)

    def test_the_seed_alone_decides(self) -> None:
        torch.manual_seed(1)
        first = ready(tint=True, seed=1)
        torch.manual_seed(2)
        again, other = ready(tint=True, seed=1), ready(tint=True, seed=2)
        assert torch.equal(first.images, again.images)
        assert first.content_hash == again.content_hash
        assert not torch.equal(first.images, other.images)
        assert first.points_hash != other.points_hash

    def test_a_folder_is_tinted_by_its_grey_levels(self, folder: Path) -> None:
        data, grey = ready(folder, tint=True), ready(folder, channels=1)
        assert torch.equal(data.images.amax(1), grey.images.squeeze(1))
        assert data.class_names == ("cat", "dog")


class TestEnergies:
    def test_labels(self) -> None:
        data = ready(energy="labels", horizontal_flip=True)
        assert data.head_names == data.class_names == tuple("0123456789")
        assert data.num_heads == 10
        assert data.labels is not None
        rows = torch.tensor([[3, 150], [199, 203]])
        energies = batch_of(data, "energies", rows=rows)["energies"]
        assert energies.shape == (2, 2, 10)
        own = energies.gather(-1, data.labels[rows % 200].unsqueeze(-1))
        assert bool((own == 0).all())
        assert int(energies.isposinf().sum()) == 4 * 9
        assert torch.equal(data.energies[rows % 200], energies)
        with pytest.raises(ConfigError, match=r"data.energy is labels, not a function of the image"):
            data.energies_of(torch.zeros(1, 1, 8, 8))

    def test_hues(self) -> None:
        data = ready(tint=True, energy="hues")
        assert data.head_names == ("0/6", "1/6", "2/6", "3/6", "4/6", "5/6")
        assert data.num_heads == 6
        torch.testing.assert_close(data.energies, hue_energy(from_bytes(data.images)))
        served = batch_of(data, "energies")["energies"]
        assert served.amin(0).tolist() == [0.0] * 6
        shift = data.energies[data.train_rows] - served
        torch.testing.assert_close(shift, data.energies[data.train_rows].amin(0).expand_as(shift))
        images = from_bytes(data.images[:5]).requires_grad_()
        energies = data.energies_of(images)
        torch.testing.assert_close(energies, data.energies[:5])
        (gradient,) = torch.autograd.grad(energies.sum(), images)
        assert bool(gradient.isfinite().all())
        assert bool((gradient != 0).any())

    def test_own_functions(self, folder: Path, own: str) -> None:
        first = from_bytes(ready(folder).images[:, 0, 0])  # (8, 2)
        one = ready(folder, energy=f"{own}.left")
        assert one.head_names == ("left",)
        assert torch.equal(one.energies, first[:, :1])
        two = ready(folder, energy=f"{own}.corners")
        assert two.head_names == ("corners[0]", "corners[1]")
        assert torch.equal(two.energies, first)
        assert torch.equal(two.energies_of(from_bytes(two.images)), first)
        assert one.energies_of(from_bytes(one.images)).shape == (8, 1)

    def test_mirror_images_have_energies_of_their_own(self, folder: Path, own: str) -> None:
        data = ready(folder, energy=f"{own}.corners", horizontal_flip=True, holdout=0.0)
        assert data.energies.shape == (8, 2)
        served = batch_of(data, "energies")["energies"]
        lowest = data.energies.min()
        assert torch.equal(served, torch.cat([data.energies, data.energies.flip(-1)]) - lowest)

    def test_none(self) -> None:
        data = ready()
        assert data.head_names == ()
        assert data.num_heads == 0
        with pytest.raises(ConfigError, match="images have no energies"):
            _ = data.energies
        with pytest.raises(ConfigError, match=r"data.energy is None, not a function"):
            data.energies_of(torch.zeros(1, 1, 8, 8))


class TestHoldout:
    def test_the_module_holds_out_by_its_seed(self) -> None:
        first, again, other = (ready(seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first.holdout_rows, again.holdout_rows)
        assert not torch.equal(first.holdout_rows, other.holdout_rows)
        assert len(first.holdout_rows) == 20
        assert set(first.holdout_rows.tolist()).isdisjoint(first.rows(()).tolist())
        assert torch.equal(first.rows(()), first.train_rows)
        assert len(ready(holdout=0.0).holdout_rows) == 0

    def test_none_held_out(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"data.holdout 0.05 of 8 images holds out none; raise it"):
            ready(folder, holdout=0.05)


class TestHashes:
    def test_what_they_tell_apart(self, folder: Path, own: str) -> None:
        plain = ready(folder, holdout=0.25)
        energies = [
            ready(folder, holdout=0.25, energy=energy) for energy in ("labels", "hues", f"{own}.left", f"{own}.corners")
        ]
        assert {data.points_hash for data in energies} == {plain.points_hash}
        assert len({data.content_hash for data in (plain, *energies)}) == 5
        other = [
            ready(folder, holdout=0.25, horizontal_flip=True),
            ready(folder, holdout=0.5),
            ready(folder, holdout=0.25, channels=1),
            ready(folder, holdout=0.25, image_size=3),
            ready(folder, holdout=0.25, seed=1),
        ]
        assert len({data.points_hash for data in (plain, *other)}) == 6

    def test_labels_count_as_content(self, folder: Path) -> None:
        before = ready(folder, holdout=0.0)
        (folder / "dog").rename(folder / "wolf")
        after = ready(folder, holdout=0.0)
        assert before.points_hash == after.points_hash
        assert before.content_hash != after.content_hash

    def test_they_are_those_of_the_content(self, folder: Path) -> None:
        first = ready(folder, energy="hues", holdout=0.25)
        again = ready(folder, energy="hues", holdout=0.25)
        assert (first.points_hash, first.content_hash) == (again.points_hash, again.content_hash)


def test_a_subclass_needs_load_alone() -> None:
    class Own(ImageDataModule):
        def load(self) -> ImageSet:
            images = torch.arange(4 * 12, dtype=torch.uint8).reshape(4, 2, 2, 3).permute(0, 3, 1, 2)  # not contiguous
            return ImageSet(images, None, ())

    data = Own("of my own", energy="hues", channels=3, holdout=0.25)
    data.prepare_data()
    data.setup()
    assert data.sizes == (0, 12)
    assert batch_of(data, "samples", "energies")["energies"].shape == (3, 6)
    assert batch_of(data, "samples", rows=torch.tensor([0]))["samples"][0, :4].tolist() == pytest.approx(
        [value / 127.5 - 1 for value in (0, 3, 6, 9)]
    )


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, 1, 2, 2), torch.zeros(4)]
)
def test_a_subclass_with_unusable_images(images: torch.Tensor) -> None:
    class Own(ImageDataModule):
        def load(self) -> ImageSet:
            return ImageSet(images, None, ())

    with pytest.raises(DataError, match=r"of my own: images are \(.*; expected at least 2, uint8 \(N, C, H, W\)"):
        Own("of my own").setup()


def test_a_hugging_face_dataset(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    data = ImageDataModule(f"hub:{folder}", energy="labels", holdout=0.25, label_column="label", split="train")
    data.prepare_data()
    data.setup()
    local = ready(folder, energy="labels", holdout=0.25)
    assert (data.points_hash, data.content_hash) == (local.points_hash, local.content_hash)
    assert data.dataset_name == str(folder).strip("/").replace("/", "-")
    with pytest.raises(DataError, match="split 'tset' cannot be loaded"):
        ImageDataModule(f"hub:{folder}", split="tset").prepare_data()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 0}, "data.image_size is 0"),
        ({"channels": 2}, "data.channels is 2; expected 1 or 3"),
        ({"holdout": 1.0}, "data.holdout is 1.0"),
        ({"holdout": -0.1}, "data.holdout is -0.1"),
        ({"on_broken": "skipp"}, r"data.on_broken is 'skipp'; expected refuse or skip$"),
        ({"num_images": 1}, "data.num_images is 1"),
        ({"block_size": 0}, "data.block_size is 0"),
        ({"tint": True, "channels": 1}, "data.tint needs colours: set data.channels to 3"),
        ({"energy": "hues"}, "data.energy 'hues' needs colours"),
        ({"energy": "label"}, r"data.energy is 'label'.* Did you mean labels\?"),
        ({"energy": "no_such_module.function"}, "there is no module 'no_such_module'"),
        ({"split": "train"}, "data.split only applies to 'hub:NAME' datasets; data.dataset is 'digits'"),
        ({"label_column": "label"}, "data.label_column only applies to"),
        ({"image_column": "image"}, "data.image_column only applies to"),
    ],
)
def test_unusable_settings(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        ImageDataModule(**options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_datasets_that_are_not_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown dataset 'digit'; .*Did you mean digits\?"):
        ready("digit")
    with pytest.raises(DataError, match="nowhere is missing; expected a folder of images"):
        ready(folder / "nowhere")
    with pytest.raises(DataError, match=r"0\.png is a file; expected a folder of images"):
        ready(folder / "cat" / "0.png")


def test_labels_that_cannot_serve_as_energies(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cat has no labels; the energy 'labels' needs"):
        ready(folder / "cat", energy="labels", holdout=0.25)
    with pytest.raises(DataError, match=r"digits: 8 of 10 classes have no training image, first '1'"):
        ready(num_images=2, energy="labels", holdout=0.0)
    (folder / "dog").rename(tmp_path / "dog")
    with pytest.raises(DataError, match=r"all images of .*pets are of class 'cat'; .* at least two"):
        ready(folder, energy="labels", holdout=0.25)
    assert ready(folder, holdout=0.25).class_names == ("cat",)


def test_broken_files_as_asked(folder: Path) -> None:
    (folder / "cat" / "1.png").write_text("no image")
    with pytest.raises(DataError, match=r"cannot read image .*1\.png .*; remove it, or set data\.on_broken to 'skip'"):
        ready(folder, holdout=0.25)
    with pytest.warns(UserWarning, match="skipped 1 of 8 images that cannot be read"):
        data = ready(folder, holdout=0.25, on_broken="skip")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_the_digits_that_are_held_out() -> None:
    data = ready(num_images=None)
    assert (len(data.train_rows), len(data.holdout_rows)) == (1617, 180)
    assert data.labels is not None
    assert data.labels[data.holdout_rows].bincount().tolist() == [18] * 10
