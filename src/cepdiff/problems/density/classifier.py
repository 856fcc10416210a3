"""An independent classifier of clean images, and a judge that uses its features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cepdiff.data.images.datamodule import ImageDataModule
from cepdiff.energy.sample_metrics import density_coverage, frechet_distance, precision_recall
from cepdiff.errors import DataError
from cepdiff.networks.images.classifier import CHUNK, ImageClassifier
from cepdiff.randomness import generator, stream_seed
from cepdiff.seals import save_sealed, unsealed

BATCH_SIZE = 128
LEARNING_RATE = 2e-3
MIN_REAL = 16  # training images of a class: halves of them, with neighbours to the fifth


def train_classifier(data: ImageDataModule, steps: int, seed: int, device: torch.device | str) -> ImageClassifier:
    """A classifier of the clean training images of `data`, a function of the arguments (on one kind of device)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "classifier", "init"))
        classifier = ImageClassifier(data.image_shape[0], data.image_shape[1], len(data.class_names))
    classifier = classifier.to(device).train()
    fields = ("samples", "labels")
    gather, rows = data.gatherer(fields, device), data.rows(fields)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for step in range(steps):
            picks = torch.randint(len(rows), (BATCH_SIZE,), generator=generator(seed, "classifier", step))
            batch = gather(rows[picks].to(device))
            images = batch["samples"].reshape(-1, *data.image_shape)  # (B, A) -> (B, C, H, W)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(classifier(images), batch["labels"])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


def kept_classifier(
    path: Path, data: ImageDataModule, steps: int, seed: int, device: torch.device | str
) -> ImageClassifier:
    """The classifier in `path` if it was trained on the same data in the same way, else a new one, kept there."""
    made_from = {"dataset": data.content_hash, "steps": steps, "seed": seed}
    classifier = ImageClassifier(data.image_shape[0], data.image_shape[1], len(data.class_names))
    if path.is_file():
        try:
            content = unsealed(torch.load(path, map_location="cpu", weights_only=True))
            if content["made_from"] == made_from:
                classifier.load_state_dict(content["weights"])
                return classifier.to(device).eval().requires_grad_(False)
        except Exception:  # truncated, foreign or changed (torch.load raises many kinds): it is made again
            pass
    classifier = train_classifier(data, steps, seed, device)
    weights = {name: value.cpu() for name, value in classifier.state_dict().items()}
    save_sealed(path, {"made_from": made_from, "weights": weights})
    return classifier


class ClassJudge:
    """Judges by the classifier: accuracy, and in its features precision, recall, density, coverage, Fréchet distance.

    Features of a class's samples are compared with those of its training images, in random sets of one size: half of
    these images, or `num_samples` if that is less. The metrics of two disjoint sets of training images are those of
    real images (`real`); their Fréchet distance is the noise floor.

    Args:
        data: the images and their labels.
        classifier: of clean images.
        num_samples: per head.
        repeats: random sets.
        seed: of the sets.
    """

    distance = "frechet"

    def __init__(
        self, data: ImageDataModule, classifier: ImageClassifier, num_samples: int, repeats: int, seed: int
    ) -> None:
        assert data.labels is not None
        self.classifier = classifier
        self.num_samples = num_samples
        self.repeats = repeats
        self.seed = seed
        names = ("accuracy", "precision", "recall", "density", "coverage")
        self.columns = {**{name: (name, ".3f") for name in names}, "frechet": ("Fréchet", ".3f")}
        features, _ = seen(classifier, data, data.train_rows)
        labels = data.labels[data.train_rows]
        self.features = [features[labels == label] for label in range(len(data.class_names))]
        found = [self._compared(label, None) for label in range(len(self.features))]
        self.floors = [metrics["frechet"] for metrics in found]
        self.real = {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}
        self.remark = "no image held out to test the classifier"
        found_accuracy = accuracy(classifier, data)
        if found_accuracy is not None:
            self.real["accuracy"] = found_accuracy
            self.remark = f"the classifier is right on {found_accuracy:.1%} of the held-out images"

    def measure(self, images: Tensor, head: int, scale: float) -> dict[str, float]:
        features, classes = self.classifier.see(images)
        return {
            "accuracy": float((classes == head).double().mean()),
            **self._compared(head, features),
            "frechet_floor": self.floors[head],
        }

    def _compared(self, label: int, samples: Tensor | None) -> dict[str, float]:
        """Mean metrics of `samples` (M, D), or of other training images where None, against the class's images."""
        real = self.features[label]
        size = min(len(real) // 2, self.num_samples)
        totals: dict[str, float] = {}
        for repeat in range(self.repeats):
            draws = generator(self.seed, "sets", label, repeat)
            order = torch.randperm(len(real), generator=draws)
            first = real[order[:size]]
            if samples is None:
                second = real[order[size : 2 * size]]
            else:
                second = samples[torch.randperm(len(samples), generator=draws)[:size]]
            found = precision_recall(first, second)._asdict() | density_coverage(first, second)._asdict()
            for name, value in {**found, "frechet": float(frechet_distance(first, second))}.items():
                totals[name] = totals.get(name, 0.0) + value / self.repeats
        return totals


def seen(classifier: ImageClassifier, data: ImageDataModule, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(features (R, 32), the most likely class (R,)) of rows of `data`, some at a time: they may be on disk."""
    parts = [classifier.see(data.images[some]) for some in torch.split(rows, max(1, CHUNK // data.spec.action_size))]
    features, classes = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(classes)


def accuracy(classifier: ImageClassifier, data: ImageDataModule) -> float | None:
    """Share of the held-out images that are classified correctly; None if none are held out."""
    rows = data.holdout_rows
    if data.labels is None or not len(rows):
        return None
    _, classes = seen(classifier, data, rows)
    return float((classes == data.labels[rows]).double().mean())


def check_class_sizes(data: ImageDataModule) -> None:
    """Raise DataError if a class has too few training images to compare its samples with."""
    assert data.labels is not None
    counts = data.labels[data.train_rows].bincount(minlength=len(data.class_names))
    if int(counts.min()) < MIN_REAL:
        name = data.class_names[int(counts.argmin())]
        raise DataError(
            f"the class '{name}' has {int(counts.min())} training images; comparing its samples with "
            f"them needs at least {MIN_REAL}"
        )
