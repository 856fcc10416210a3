"""The split into training and held-out images, by their labels."""

from __future__ import annotations

import math

import pytest
import torch

from cepdiff.data.images.datamodule import hold_out
from cepdiff.randomness import generator


def test_each_class_gives_its_share() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] + [4] * 9)[torch.randperm(70, generator=generator(0, "x"))]
    train, held = hold_out(labels, 70, 0.25, generator(0, "holdout"))
    counts = labels[held].bincount(minlength=5).tolist()
    assert counts == pytest.approx([10, 5, 0, 0, 2.25], abs=1)
    assert counts[2:4] == [0, 0]
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(70))
    assert train.tolist() == sorted(train.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_classes_of_few_images_give_some_too() -> None:
    labels = torch.arange(50).repeat(4)
    _, held = hold_out(labels, 200, 0.1, generator(0, "holdout"))
    assert len(held) == 20
    assert labels[held].bincount().max() == 1


def test_one_image_of_a_class_stays() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2])
    train, held = hold_out(labels, 5, 0.9, generator(0, "holdout"))
    assert labels[train].tolist() == [0, 2]
    assert len(held) == 3


def test_without_labels() -> None:
    train, held = hold_out(None, 30, 0.1, generator(0, "holdout"))
    assert (len(train), len(held)) == (27, 3)
    assert held.tolist() != [0, 1, 2]


def test_every_image_of_a_class_is_as_likely() -> None:
    """Half of 4 + 6 images: each image is held out in about 100 of 200 splits (binomial deviation 7)."""
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    held = torch.cat([hold_out(labels, 10, 0.5, generator(seed, "holdout"))[1] for seed in range(200)])
    assert bool(((held.bincount(minlength=10) - 100).abs() < 4.5 * math.sqrt(50)).all())
