"""Energies of images: hue against colorsys, gradients where hue is undefined, colours, classes, functions."""

from __future__ import annotations

import colorsys
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cepdiff.data.images import energies as image_energies
from cepdiff.data.images.energies import (
    HUES,
    evaluate_images,
    find_energy,
    from_bytes,
    heads_of,
    hue_energy,
    hue_saturation,
    label_energies,
    tinted,
)
from cepdiff.errors import ConfigError, DataError
from cepdiff.randomness import generator

OWN = """
import torch
sizes, graded = [], []
def brightness(images):
    sizes.append(len(images))
    graded.append(torch.is_grad_enabled())
    return images.mean((1, 2, 3))
def ends(images): return torch.stack([images[:, 0, 0, 0], images[:, 0, -1, -1]], -1).double()
def nan(images): return torch.where(images[:, 0, 0, :1] > 0.5, torch.nan, images[:, 0, 0, :2])
def table(images): return images[:, 0]
def none_at_all(images): return images[:, 0, 0, :0]
def scalar(images): return images.sum()
def array(images): return images.mean((1, 2, 3)).numpy()
def clumsy(images): return images[:, 7]
def fickle(images): return images[:, 0, 0, : len(images)]
"""


def as_image(*colours: tuple[float, float, float]) -> torch.Tensor:
    """(3, 1, len(colours)) of RGB in [0, 1], float64."""
    return torch.tensor(colours, dtype=torch.float64).T.unsqueeze(1)


def flat(colour: tuple[float, float, float], side: int = 2) -> torch.Tensor:
    """(1, 3, side, side) in [-1, 1] of one colour."""
    return (2.0 * torch.tensor(colour) - 1.0).reshape(1, 3, 1, 1).expand(1, 3, side, side).clone()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_image_energies.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_image_energies"
    sys.modules.pop("own_image_energies", None)


class TestHueAndSaturation:
    def test_they_are_those_of_colorsys(self) -> None:
        grid = list(itertools.product([0.0, 0.2, 0.5, 0.8, 1.0], repeat=3))  # with greys, black, two equal channels
        random = torch.rand(500, 3, generator=generator(0, "colours"), dtype=torch.float64).tolist()
        colours = [*grid, *map(tuple, random)]
        hue, saturation = hue_saturation(as_image(*colours))
        expected = torch.tensor([colorsys.rgb_to_hsv(*colour)[:2] for colour in colours], dtype=torch.float64)
        torch.testing.assert_close(hue[0], expected[:, 0], atol=1e-12, rtol=0)
        torch.testing.assert_close(saturation[0], expected[:, 1], atol=1e-12, rtol=0)

    def test_a_hue_just_below_red_stays_below_one(self) -> None:
        hue, _ = hue_saturation(torch.tensor([1.0, 0.0, 1e-9]).reshape(3, 1, 1))
        assert hue.item() == 0.0
        hue, _ = hue_saturation(torch.tensor([1.0, 0.0, 1e-3]).reshape(3, 1, 1))
        assert 0.999 < hue.item() < 1.0

    def test_leading_axes(self) -> None:
        images = torch.rand(2, 5, 3, 4, 6, generator=generator(1, "colours"))
        hue, saturation = hue_saturation(images)
        assert hue.shape == saturation.shape == (2, 5, 4, 6)
        assert torch.equal(hue[1, 3], hue_saturation(images[1, 3])[0])

    def test_gradients_are_those_of_finite_differences(self) -> None:
        images = as_image((0.9, 0.3, 0.1), (0.2, 0.7, 0.4), (0.3, 0.1, 0.6), (0.6, 0.2, 0.5)).requires_grad_()
        assert torch.autograd.gradcheck(hue_saturation, images)

    @pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (1.0, 1.0, 0.0)])
    def test_gradients_are_finite_where_hue_is_not_defined(self, colour: tuple[float, float, float]) -> None:
        images = as_image(colour).requires_grad_()
        hue, saturation = hue_saturation(images)
        (gradient,) = torch.autograd.grad(hue.sum() + saturation.sum(), images)
        assert bool(gradient.isfinite().all())


class TestHueEnergy:
    @pytest.mark.parametrize("i", range(6))
    def test_pure_colours_lie_at_their_targets(self, i: int) -> None:
        images = flat(colorsys.hsv_to_rgb(i / 6, 1.0, 0.8))
        expected = torch.tensor([min(abs(i - j), 6 - abs(i - j)) / 6 for j in range(6)])
        torch.testing.assert_close(hue_energy(images)[0], expected, atol=1e-6, rtol=0)

    def test_the_mean_over_pixels(self) -> None:
        """Half red, half hue 0.9: distances 0 and 0.1 (across the circle's seam) to the target 0."""
        images = torch.cat([flat((1.0, 0.0, 0.0)), flat(colorsys.hsv_to_rgb(0.9, 1.0, 1.0))], dim=-1)
        assert hue_energy(images, [0.0])[0].tolist() == pytest.approx([0.05], abs=1e-6)

    @pytest.mark.parametrize(
        ("saturation", "penalty"), [(0.0, 0.3), (0.04, 0.18), (0.0999, 0.0003), (0.1001, 0.0), (1.0, 0.0)]
    )
    def test_pale_images_pay(self, saturation: float, penalty: float) -> None:
        images = flat(colorsys.hsv_to_rgb(0.5, saturation, 0.5))
        distance = 0.5 if saturation == 0.0 else 0.0  # the hue of grey counts as 0
        assert hue_energy(images, [0.5])[0].tolist() == pytest.approx([distance + penalty], abs=1e-5)

    def test_the_mean_saturation_decides(self) -> None:
        images = torch.cat([flat((0.3, 0.3, 0.3)), flat((1.0, 0.0, 0.0))], dim=-1)  # mean saturation 0.5
        assert hue_energy(images, [0.0])[0].tolist() == [0.0]

    def test_values_beyond_the_ends_count_as_the_ends(self) -> None:
        images = torch.randn(4, 3, 5, 5, generator=generator(2, "colours")) * 2
        assert torch.equal(hue_energy(images), hue_energy(images.clamp(-1, 1)))

    def test_gradients(self) -> None:
        images = torch.rand(2, 3, 2, 2, generator=generator(3, "colours"), dtype=torch.float64) * 1.6 - 0.8
        assert torch.autograd.gradcheck(hue_energy, images.requires_grad_())
        grey = torch.zeros(1, 3, 2, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(hue_energy(grey).sum(), grey)
        assert bool(gradient.isfinite().all())


class TestTint:
    def test_colours_are_those_of_colorsys(self) -> None:
        hues = torch.rand(40, generator=generator(4, "colours"))
        grey = torch.arange(40 * 6, dtype=torch.uint8).reshape(40, 1, 2, 3)
        images = tinted(grey, hues)
        assert images.shape == (40, 3, 2, 3)
        for row in range(40):
            for pixel, level in zip(images[row].flatten(1).T.tolist(), grey[row].flatten().tolist(), strict=True):
                expected = colorsys.hsv_to_rgb(hues[row].item(), 1.0, level / 255)
                assert pixel == pytest.approx([255 * value for value in expected], abs=0.5 + 1e-4)

    def test_the_value_is_the_grey_level_and_the_hue_comes_back(self) -> None:
        hues = torch.rand(50, generator=generator(5, "colours"))
        images = tinted(torch.full((50, 1, 1, 1), 255, dtype=torch.uint8), hues)
        assert bool((images.amax(1) == 255).all())
        hue, saturation = hue_saturation(images / 255.0)
        torch.testing.assert_close(hue.flatten(), hues, atol=0.5 / 255 / 6 + 1e-6, rtol=0)
        assert bool((saturation == 1.0).all())
        assert bool((tinted(torch.zeros(50, 1, 1, 1, dtype=torch.uint8), hues) == 0).all())


def test_energies_of_labels() -> None:
    energies = label_energies(torch.tensor([[0, 2], [1, 1]]), 3)
    own, other = 0.0, math.inf
    assert energies.tolist() == [
        [[own, other, other], [other, other, own]],
        [[other, own, other], [other, own, other]],
    ]


def test_bytes_fill_the_interval() -> None:
    values = from_bytes(torch.arange(256, dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert values[[0, -1]].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(values.diff(), torch.full((255,), 2 / 255), atol=1e-6, rtol=0)


class TestFunctions:
    images = (torch.arange(5 * 12, dtype=torch.uint8) * 4).reshape(5, 3, 2, 2)

    def test_one_head_and_several(self, own: str) -> None:
        points = from_bytes(self.images)
        one = evaluate_images(find_energy(f"{own}.brightness"), self.images, "brightness")
        torch.testing.assert_close(one, points.mean((1, 2, 3)).unsqueeze(-1))
        two = evaluate_images(find_energy(f"{own}.ends"), self.images, "ends")
        assert two.dtype == torch.float32
        assert torch.equal(two, torch.stack([points[:, 0, 0, 0], points[:, 0, 1, 1]], -1))

    def test_some_at_a_time_without_gradients(self, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = evaluate_images(hue_energy, self.images, "hues")
        monkeypatch.setattr(image_energies, "_CHUNK", 2 * self.images[0].numel())
        assert torch.equal(evaluate_images(hue_energy, self.images, "hues"), whole)
        evaluate_images(find_energy(f"{own}.brightness"), self.images, "brightness")
        module = sys.modules[own]
        assert module.sizes == [2, 2, 1]  # type: ignore[attr-defined]
        assert module.graded == [False] * 3  # type: ignore[attr-defined]
        hues = torch.rand(5, generator=generator(6, "colours"))
        parts = tinted(self.images[:, :1], hues)
        monkeypatch.setattr(image_energies, "_CHUNK", 1 << 22)
        assert torch.equal(parts, tinted(self.images[:, :1], hues))
        monkeypatch.setattr(image_energies, "_CHUNK", 1)  # images larger than a chunk are processed one by one
        assert torch.equal(evaluate_images(hue_energy, self.images, "hues"), whole)

    def test_gradients_pass(self, own: str) -> None:
        images = from_bytes(self.images).requires_grad_()
        energies = heads_of(find_energy(f"{own}.brightness"), images, "brightness")
        assert energies.shape == (5, 1)
        (gradient,) = torch.autograd.grad(energies.sum(), images)
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 12))

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("nan", r"nan is nan at image 4; expected finite numbers"),
            ("table", r"returned \(5, 2, 2\) for \(5, 3, 2, 2\); expected \(5,\) or \(5, H\)"),
            ("none_at_all", r"returned \(5, 0\)"),
            ("scalar", r"returned \(\) for \(5, 3, 2, 2\)"),
            ("array", "returned ndarray for "),
            ("clumsy", r"clumsy raised IndexError: .*own_image_energies\.py, line \d+"),
        ],
    )
    def test_unusable_results(self, own: str, name: str, expected: str) -> None:
        images = torch.zeros(5, 3, 2, 2, dtype=torch.uint8)
        images[4] = 255
        with pytest.raises(DataError, match=expected) as raised:
            evaluate_images(find_energy(f"{own}.{name}"), images, f"{own}.{name}")
        assert "\n" not in str(raised.value)

    def test_heads_that_change(self, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_energies, "_CHUNK", 2 * self.images[0].numel())
        with pytest.raises(DataError, match="returned 1 heads, but 2 before"):
            evaluate_images(find_energy(f"{own}.fickle"), self.images, "fickle")

    def test_names(self, own: str) -> None:
        assert find_energy("hues") is hue_energy
        assert len(HUES) == 6
        with pytest.raises(ConfigError, match=r"data.energy is 'hue'; expected labels, hues or .* Did you mean hues\?"):
            find_energy("hue")
        with pytest.raises(ConfigError, match=r"has no function 'brightnes'.*Did you mean brightness\?"):
            find_energy(f"{own}.brightnes")
