"""Evaluation of guided images: exact samples count as exact, others do not, and tables tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.data.images.energies import from_bytes, tinted
from cepdiff.energy.sample_metrics import image_hues, resample, wasserstein_1
from cepdiff.errors import ConfigError, DataError
from cepdiff.networks.images.classifier import ImageClassifier
from cepdiff.networks.images.inception import check_inception
from cepdiff.problems.density.classifier import (
    ClassJudge,
    accuracy,
    check_class_sizes,
    kept_classifier,
    train_classifier,
)
from cepdiff.problems.density.gallery import histogram, plot_grids, plot_hues, shown_heads
from cepdiff.problems.density.judges import EnergyJudge, judge_samples, training_images
from cepdiff.runs.results import Results, Row

BETA = 50.0
Found = dict[tuple[float, str, str], Row]


def brightness(images: Tensor) -> Tensor:
    """Two energies: low for bright images in the first, for dark images in the second."""
    mean = images.mean((1, 2, 3))
    return torch.stack([1.0 - mean, 1.0 + mean], -1)


@pytest.fixture(scope="module")
def coloured() -> ImageDataModule:
    data = ImageDataModule(tint=True, energy="hues", num_images=600)
    data.setup()
    return data


@pytest.fixture(scope="module")
def labelled() -> ImageDataModule:
    data = ImageDataModule(energy="labels")
    data.setup()
    return data


@pytest.fixture(scope="module")
def classifier(labelled: ImageDataModule) -> ImageClassifier:
    return train_classifier(labelled, 60, 0, "cpu")


def by_key(rows: Sequence[Row]) -> Found:
    """(scale, head, metric) -> row; the head "" is the mean over the heads."""
    found = {(row.scale, row.head, row.metric): row for row in rows}
    assert len(found) == len(rows)
    return found


def multiple(found: Found, scale: float, metric: str) -> float:
    """A mean distance as a multiple of its noise floor."""
    row = found[scale, "", metric]
    assert row.multiple is not None
    return row.multiple


def of_class(data: ImageDataModule, label: int, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W) of the training set."""
    assert data.labels is not None
    rows = data.train_rows[data.labels[data.train_rows] == label]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return data.images[rows[order[:count]]]


def test_the_hue_of_a_tinted_image_is_its_tint() -> None:
    hues = torch.arange(24) / 24.0
    grey = torch.randint(0, 256, (24, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    difference = torch.remainder(image_hues(from_bytes(tinted(grey, hues))) - hues + 0.5, 1.0) - 0.5
    assert float(difference.abs().max()) < 0.01  # the largest difference between the angles of hexagon and circle
    assert float(difference[::4].abs().max()) < 1e-6  # except at its corners: the six hues


def test_grey_pixels_have_no_part_in_a_hue() -> None:
    grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1).clone()
    pixel = torch.tensor([-0.5, 0.9, -0.5])  # green
    grey[:, :, 1, 2] = pixel[None]
    torch.testing.assert_close(image_hues(grey), torch.full((2,), 1 / 3, dtype=torch.float64))


def test_wasserstein_of_numbers_is_their_shift() -> None:
    values = torch.tensor([3.0, -1.0, 0.5])
    assert float(wasserstein_1(values, values.flip(0) + 0.25)) == pytest.approx(0.25)


def test_samples_of_the_reweighted_data_are_at_the_noise_floor(coloured: ImageDataModule) -> None:
    judge = EnergyJudge(coloured, BETA, repeats=8, seed=0)
    images = coloured.images[coloured.train_rows]
    samples = {
        scale: torch.stack([resample(images, judge.weights(head, scale), 200, 7, head) for head in range(6)])
        for scale in (0.0, 1.0)
    }
    rows = judge_samples(samples, judge, coloured.head_names)
    places = [(scale, "") for scale in (0.0, 1.0)]
    places += [(scale, head) for scale in (0.0, 1.0) for head in coloured.head_names]
    metrics = ("energy", "energy_exact", "hue_distance")
    assert [(row.scale, row.head, row.metric) for row in rows] == [
        (*place, name) for place in places for name in metrics
    ]
    found = by_key(rows)
    for scale in (0.0, 1.0):
        assert 0.6 < multiple(found, scale, "hue_distance") < 1.6
        assert found[scale, "", "energy"].value == pytest.approx(found[scale, "", "energy_exact"].value, abs=0.02)
    assert found[1.0, "", "energy"].value < found[0.0, "", "energy"].value - 0.05
    assert all((row.floor is not None) == (row.metric == "hue_distance") for row in rows)
    for key in ("value", "floor", "floor_error"):
        of_heads = [getattr(found[0.0, head, "hue_distance"], key) for head in coloured.head_names]
        assert getattr(found[0.0, "", "hue_distance"], key) == pytest.approx(sum(of_heads) / 6)
    prior_at_1 = by_key(judge_samples({1.0: samples[0.0]}, judge, coloured.head_names))
    assert multiple(prior_at_1, 1.0, "hue_distance") > 3.0


def test_the_exact_energy_is_the_self_normalised_mean(coloured: ImageDataModule) -> None:
    judge = EnergyJudge(coloured, BETA, repeats=2, seed=0)
    energies = coloured.energies[coloured.train_rows].double()
    weights = (-0.5 * BETA * energies[:, 2]).exp()
    found = judge.measure(coloured.images[:20], 2, 0.5)
    assert found["energy_exact"] == pytest.approx(float((weights * energies[:, 2]).sum() / weights.sum()), rel=1e-5)
    assert found["energy"] == pytest.approx(float(coloured.energies[:20, 2].mean()), rel=1e-5)
    assert judge.remark == f"energy of the data {float(energies.mean()):.3f}"


def test_functions_of_the_user_are_judged_by_their_energies() -> None:
    data = ImageDataModule(energy=f"{__name__}.brightness", num_images=300)
    data.setup()
    judge = EnergyJudge(data, 20.0, repeats=4, seed=0)
    assert judge.distance == "energy_distance"
    images = data.images[data.train_rows]
    exact = torch.stack([resample(images, judge.weights(head, 1.0), 150, 3, head) for head in range(2)])
    found = by_key(judge_samples({1.0: exact}, judge, data.head_names))
    assert 0.5 < multiple(found, 1.0, "energy_distance") < 1.7
    swapped = by_key(judge_samples({1.0: exact.flip(0)}, judge, data.head_names))
    assert multiple(swapped, 1.0, "energy_distance") > 5.0


def test_mirror_images_count_among_the_training_images() -> None:
    data = ImageDataModule(num_images=20, horizontal_flip=True, energy=f"{__name__}.brightness")
    data.setup()
    images = torch.cat(list(training_images(data)))
    half = len(images) // 2
    assert torch.equal(images[half:], images[:half].flip(-1))
    assert torch.equal(images[:half], from_bytes(data.images[data.train_rows]))


def test_a_classifier_learns_the_digits_and_is_a_function_of_its_seed(
    labelled: ImageDataModule, classifier: ImageClassifier
) -> None:
    found = accuracy(classifier, labelled)
    assert found is not None
    assert found > 0.9
    first, second = (train_classifier(labelled, 3, 0, "cpu").state_dict() for _ in range(2))
    other = train_classifier(labelled, 3, 1, "cpu").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("0.weight"))


@pytest.mark.parametrize("side", [4, 8, 20, 64])
def test_the_classifier_takes_images_of_any_size(side: int) -> None:
    features, classes = ImageClassifier(3, side, 5).see(torch.zeros(2, 3, side, side, dtype=torch.uint8))
    assert (features.shape, classes.shape) == ((2, 32), (2,))


def test_the_classifier_is_kept_and_trained_again_where_it_does_not_fit(
    labelled: ImageDataModule, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation" / "classifier.pt"
    first = kept_classifier(path, labelled, 2, 0, "cpu")
    written = path.stat().st_mtime_ns
    again = kept_classifier(path, labelled, 2, 0, "cpu")
    assert path.stat().st_mtime_ns == written
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    kept_classifier(path, labelled, 3, 0, "cpu")
    assert torch.load(path, weights_only=True)["made_from"]["steps"] == 3
    path.write_bytes(b"torn")
    kept_classifier(path, labelled, 2, 0, "cpu")
    assert torch.load(path, weights_only=True)["made_from"]["steps"] == 2


def test_real_images_of_a_class_are_judged_well_and_those_of_another_are_not(
    labelled: ImageDataModule, classifier: ImageClassifier
) -> None:
    judge = ClassJudge(labelled, classifier, num_samples=60, repeats=3, seed=0)
    right = torch.stack([of_class(labelled, label, 60, seed=1) for label in range(10)])
    found = by_key(judge_samples({0.0: right, 1.0: right.roll(1, 0)}, judge, labelled.head_names))
    good, bad = ({name: found[scale, "", name].value for name in judge.columns} for scale in (0.0, 1.0))
    assert good["accuracy"] > 0.9
    assert bad["accuracy"] < 0.05
    assert multiple(found, 0.0, "frechet") < 1.3  # samples may be in the training set: below the floor
    assert multiple(found, 1.0, "frechet") > 3.0
    for name in ("precision", "recall", "coverage"):
        assert good[name] > judge.real[name] - 0.1
        assert bad[name] < 0.3
    assert judge.real["accuracy"] == accuracy(classifier, labelled)
    floors = [found[0.0, head, "frechet"].floor for head in labelled.head_names]
    assert judge.real["frechet"] == pytest.approx(sum(floor for floor in floors if floor is not None) / 10)
    assert f"{judge.real['accuracy']:.1%}" in judge.remark


def test_missing_modes_lower_recall_and_not_precision(labelled: ImageDataModule, classifier: ImageClassifier) -> None:
    judge = ClassJudge(labelled, classifier, num_samples=60, repeats=2, seed=0)
    one = of_class(labelled, 3, 2, seed=1).repeat(30, 1, 1, 1)
    found = judge.measure(one, 3, 1.0)
    assert found["recall"] < 0.2
    assert found["precision"] > 0.5


def test_without_held_out_images_the_classifier_is_not_tested() -> None:
    data = ImageDataModule(energy="labels", holdout=0.0, num_images=400)
    data.setup()
    judge = ClassJudge(data, ImageClassifier(1, 8, 10).eval(), num_samples=8, repeats=2, seed=0)
    assert "accuracy" not in judge.real
    assert judge.remark == "no image held out to test the classifier"


def test_classes_of_too_few_images_are_refused(labelled: ImageDataModule) -> None:
    check_class_sizes(labelled)
    few = ImageDataModule(energy="labels", num_images=100)
    few.setup()
    with pytest.raises(DataError, match=r"the class '\d' has \d+ training images; .* needs at least 16"):
        check_class_sizes(few)


ROWS = [
    Row(0.0, "a", 0.5), Row(0.0, "b", 12.0, floor=4.0, floor_error=1.0),
    Row(1.0, "a", 0.25), Row(1.0, "b", 6.0, floor=0.0, floor_error=0.0),
    Row(0.0, "a", 0.125, "cat"), Row(0.0, "b", 3.0, "cat", floor=2.0),
]  # fmt: skip
PETS = Results(
    problem="cepdiff.problems.density.images.ImageDensity",
    dataset="pets",
    seed=0,
    title="pets",
    rows=ROWS,
    columns={"a": ("alpha", ".3f"), "b": ("beta", ".3f")},
    real={"a": 1.0, "b": 4.0},
    about={"heads": ["cat"]},
    sources=["my_folder"],
)


def test_a_table_has_a_line_a_scale_and_one_of_real_images() -> None:
    """The means over the heads, and the noise floor if there is one; real images have none."""
    title, *lines = PETS.table().text().splitlines()
    assert title == "pets"
    assert [line.split() for line in lines] == [
        ["guidance", "scale", "alpha", "beta", "noise", "floor", "multiple"],
        ["0", "0.500", "12.000", "4.000", "±", "1.000", "3.00"],
        ["1", "0.250", "6.000", "0.000", "±", "0.000", "inf"],
        ["real", "data", "1.000", "4.000", "-", "-"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert len(replace(PETS, real={}).table().text().splitlines()) == 4


def test_rows_of_heads_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    PETS.write(path)
    found = Results.read(path)
    assert found == replace(PETS, folder=tmp_path, file=path)
    assert found.row(0.0, "b", "cat") == ROWS[-1]
    assert found.values("a") == {0.0: 0.5, 1.0: 0.25}  # only the means


def test_pictures_are_drawn(coloured: ImageDataModule, tmp_path: Path) -> None:
    from matplotlib.image import imread

    samples = {scale: coloured.images[:60].reshape(6, 10, 3, 8, 8) for scale in (0.0, 1.0)}
    judge = EnergyJudge(coloured, BETA, repeats=2, seed=0)
    grids = [(f"scale {scale:g}", images, coloured.head_names) for scale, images in samples.items()]
    plot_grids(grids, tmp_path / "grids.png", "digits")
    plot_hues(samples, [0, 2, 5], judge, coloured.head_names, tmp_path / "hues.png", "digits")
    for name in ("grids.png", "hues.png"):
        assert imread(tmp_path / name)[..., :3].std() > 0.05


def test_a_histogram_is_a_density() -> None:
    hues = torch.tensor([0.0, 0.5, 0.999999999, 1.0 - 1e-17])
    found = histogram(hues.double(), torch.tensor([1.0, 2.0, 1.0, 0.0]))
    assert found.sum() / len(found) == pytest.approx(1.0)
    assert found[len(found) // 2] == pytest.approx(len(found) / 2)


def test_figures_show_some_of_many_heads() -> None:
    assert shown_heads(6) == [0, 1, 2, 3, 4, 5]
    assert len(set(shown_heads(1000))) == 20
    assert shown_heads(1000)[-1] == 950


def test_the_inception_distance_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        check_inception(str(tmp_path / "missing.pth"))
    pytest.importorskip("torchmetrics")
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        (tmp_path / "weights.pth").write_bytes(b"")
        with pytest.raises(ConfigError, match=r"pip install 'torchmetrics\[image\]'"):
            check_inception(str(tmp_path / "weights.pth"))
