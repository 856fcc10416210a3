"""Image data: bytes on the device, served as flat vectors in [-1, 1], with labels and energies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cepdiff.data.blocks import StageDataModule
from cepdiff.data.images.energies import (
    HUES,
    LABELS,
    evaluate_images,
    find_energy,
    from_bytes,
    heads_of,
    hue_energy,
    label_energies,
    tinted,
)
from cepdiff.data.images.files import ImageFormat, ImageSet, files_hash, open_hub, read_digits, read_folder, read_hub
from cepdiff.data.images.mapped import mapped_images
from cepdiff.errors import ConfigError, DataError, nearest
from cepdiff.randomness import generator
from cepdiff.ranges import AtLeastTwo, Count, Fraction, Width, check_arguments
from cepdiff.seals import content_hash
from cepdiff.types import Batch, DataSpec

DIGITS = "digits"
_HUB = "hub:"


class ImageDataModule(StageDataModule):
    """Images x ~ q for unconditional training of p(x) ∝ q(x) exp(-beta E_h(x)), with one energy E_h per head.

    Networks see an image as the field `samples` (B, A), A = C H W: flattened channel by channel, in [-1, 1].
    `energies` (B, heads) are relative to each head's minimum over the training rows, which does not change p;
    `labels` (B,) are int64. Held-out images are never served. To serve other images, subclass and override `load`.

    Args:
        dataset: "digits" (1,797 handwritten digits, 8x8, shipped with the package); a folder of images, either with
            one subfolder per class or without subfolders; or "hub:" and the name or folder of a Hugging Face dataset.
        image_size: crop each image to its central square and resize it to this side; default: keep the images' own
            size, which must be the same for all.
        channels: 1 (grey) or 3 (RGB); default: 1 for digits without `tint`, else 3.
        tint: read images as grey and give each a random hue at full saturation, with the grey level as value.
        horizontal_flip: also train on the mirror images.
        energy: "labels": -log p(y|x), one head per class; "hues": the colour energy, one head for each of six hues; or
            "package.module.function" of images (N, C, H, W) in [-1, 1] -> energies (N,) or (N, heads). Default: none.
        holdout: fraction of the images to hold out, per class if they have labels, in [0, 1).
        split: split of the Hugging Face dataset; default "train".
        image_column: its image column; default: the only one.
        label_column: its label column; default: the only column of class labels, if there is one.
        on_broken: for files that cannot be decoded: "refuse", or "skip" with one warning.
        num_images: use only this many images, evenly spaced over the set; default: all.
        cache_dir: folder for the decoded images, which are memory-mapped from there; default: they are held in memory.
        block_size: minibatches per `training_step`.
        seed: of the held-out images, the hues and the row order.
    """

    problem = "cepdiff.problems.density.images.ImageDensity"

    def __init__(
        self,
        dataset: str = DIGITS,
        image_size: Width | None = None,
        channels: int | None = None,
        tint: bool = False,
        horizontal_flip: bool = False,
        energy: str | None = None,
        holdout: Fraction = 0.1,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        on_broken: Literal["refuse", "skip"] = "refuse",
        num_images: AtLeastTwo | None = None,
        cache_dir: str | None = None,
        block_size: Count = 50,
        seed: int = 0,
    ) -> None:
        super().__init__(block_size, seed)
        check_arguments(ImageDataModule, locals(), "data")
        if channels not in (None, 1, 3):
            raise ConfigError(f"data.channels is {channels}; expected 1 or 3")
        for key, value in (("split", split), ("image_column", image_column), ("label_column", label_column)):
            if value is not None and not dataset.startswith(_HUB):
                raise ConfigError(f"data.{key} only applies to '{_HUB}NAME' datasets; data.dataset is '{dataset}'")
        self.channels = channels or (1 if dataset == DIGITS and not tint else 3)
        for key, used in (("tint", tint), ("energy 'hues'", energy == "hues")):
            if used and self.channels == 1:
                raise ConfigError(f"data.{key} needs colours: set data.channels to 3")
        if cache_dir is not None and (dataset == DIGITS or tint):
            raise ConfigError(f"data.cache_dir is for folders of images and '{_HUB}NAME', without tint: leave it out")
        self.dataset = dataset
        self.image_size = image_size
        self.tint = tint
        self.horizontal_flip = horizontal_flip
        self.energy = energy
        self.holdout = holdout
        self.split = split or "train"
        self.image_column, self.label_column = image_column, label_column
        self.on_broken = on_broken
        self.num_images = num_images
        self.cache_dir = cache_dir
        self.points_hash = ""  # hash of images, mirroring and held-out rows; set by setup()
        self._function = None if energy in (None, LABELS) else find_energy(str(energy))
        self._data: ImageSet | None = None
        self._energies: Tensor | None = None  # (N, heads) of a function; (2N, heads) with mirror images
        self._train = self._held_out = torch.empty(0, dtype=torch.int64)
        self._hash = ""

    @property
    def dataset_name(self) -> str:
        if self.dataset.startswith(_HUB):
            return self.dataset.removeprefix(_HUB).strip("/").replace("/", "-")
        return Path(self.dataset).expanduser().resolve().name

    @property
    def content_hash(self) -> str:
        self._loaded()
        return self._hash

    @property
    def spec(self) -> DataSpec:
        size = self.images[0].numel()
        return DataSpec(0, size, (-1.0,) * size, (1.0,) * size)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) uint8, including held-out images but not mirror images."""
        return self._loaded().images

    def summary(self) -> str:
        """Images and their shape."""
        return f"{len(self.images):,} images ({len(self.holdout_rows):,} held out) of shape {self.image_shape}"

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64, or None for unlabelled data."""
        return self._loaded().labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, indexed by label; empty without labels."""
        return self._loaded().class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def train_rows(self) -> Tensor:
        """Ascending rows of `images` used for training."""
        self._loaded()
        return self._train

    @property
    def holdout_rows(self) -> Tensor:
        """Ascending rows of `images` held out from training."""
        self._loaded()
        return self._held_out

    @property
    def head_names(self) -> tuple[str, ...]:
        """One name per head: the classes, the hues "0/6" to "5/6", or the function's name; empty without an energy."""
        if self.energy == LABELS:
            return self.class_names
        if self._function is None:
            return ()
        if self._function is hue_energy:
            return tuple(f"{i}/{len(HUES)}" for i in range(len(HUES)))
        name, heads = str(self.energy).rpartition(".")[2], self._table().shape[1]
        return (name,) if heads == 1 else tuple(f"{name}[{head}]" for head in range(heads))

    @property
    def num_heads(self) -> int:
        return len(self.head_names)

    @property
    def energies(self) -> Tensor:
        """(N, heads) of `images`, not shifted; for labels, recomputed on each access."""
        data = self._loaded()
        if self.energy == LABELS and data.labels is not None:
            return label_energies(data.labels, len(data.class_names))
        return self._table()[: len(data.images)]

    def energies_of(self, images: Tensor) -> Tensor:
        """Unshifted energies (N, heads) of any `images` (N, C, H, W) in [-1, 1], with gradients.

        Raises ConfigError if `energy` is "labels" or None, which are not functions of the image.
        """
        if self._function is None:
            raise ConfigError(f"data.energy is {self.energy}, not a function of the image; expected hues or a function")
        return heads_of(self._function, images, str(self.energy))

    def prepare_data(self) -> None:
        """Download a missing Hugging Face dataset, fill `cache_dir`; Lightning calls this on one process per node."""
        if type(self).load is not ImageDataModule.load:
            return
        if self.cache_dir is not None:
            self.load()
        elif self.dataset.startswith(_HUB):
            open_hub(self.dataset.removeprefix(_HUB), self.split)

    def setup(self, stage: str | None = None) -> None:
        """Read the images, choose the held-out rows and evaluate the energy; only once."""
        if self._data is not None:
            return
        data = self.load()
        if data.images.ndim != 4 or data.images.dtype != torch.uint8 or len(data.images) < 2:
            found = f"{tuple(data.images.shape)} {data.images.dtype}"
            raise DataError(f"{self.dataset}: images are {found}; expected at least 2, uint8 (N, C, H, W)")
        draws = generator(self.seed, "holdout")
        self._train, self._held_out = hold_out(data.labels, len(data.images), self.holdout, draws)
        if self.energy == LABELS:
            check_classes(data, self._train, self.dataset)
        if function := self._function:
            self._energies = evaluate_images(function, data.images, str(self.energy))
            if self.horizontal_flip:
                mirrored = evaluate_images(lambda some: function(some.flip(-1)), data.images, str(self.energy))
                self._energies = torch.cat([self._energies, mirrored])
        self._data = data
        whole: Any = data.mapped.encode() if data.mapped else data.images.contiguous().numpy().data
        digest = hashlib.blake2b(whole, digest_size=8)
        digest.update(f"{tuple(data.images.shape)} {self.horizontal_flip}".encode())
        digest.update(self._train.numpy().data)
        self.points_hash = digest.hexdigest()
        digest.update(f"{self.energy} {data.class_names}".encode())
        for extra in (data.labels, self._energies):
            if extra is not None:
                digest.update(extra.numpy().data)
        self._hash = digest.hexdigest()

    def load(self) -> ImageSet:
        """Return images (N, C, H, W) uint8, with C = `channels`, and their labels."""
        channels = 1 if self.tint else self.channels
        form = ImageFormat(channels, self.image_size, self.on_broken == "skip", self.num_images)
        data = self._read(form) if self.cache_dir is None else self._mapped(Path(self.cache_dir).expanduser(), form)
        if not self.tint:
            return data
        hues = torch.rand(len(data.images), generator=generator(self.seed, "tint"))
        return ImageSet(tinted(data.images, hues), data.labels, data.class_names)

    def rows(self, fields: Sequence[str]) -> Tensor:
        """Training rows; row N + i is the mirror image of row i."""
        count = len(self.images)
        return torch.cat([self._train, self._train + count]) if self.horizontal_flip else self._train

    def gatherer(self, fields: Sequence[str], device: torch.device | str = "cpu") -> Callable[[Tensor], Batch]:
        tables = {field: self._gather_one(field, device) for field in fields}
        return lambda rows: {field: gather(rows) for field, gather in tables.items()}

    def _gather_one(self, field: str, device: torch.device | str) -> Callable[[Tensor], Tensor]:
        """Return a function from row numbers (...) to one field (..., size)."""
        data, count = self._loaded(), len(self.images)
        if field == "samples":
            mirrored = self.horizontal_flip
            images = data.images if data.mapped else data.images.to(device)

            def samples(rows: Tensor) -> Tensor:
                picked = images[(rows % count).to(images.device)].to(device)
                if mirrored:
                    picked = torch.where((rows >= count)[..., None, None, None], picked.flip(-1), picked)
                return from_bytes(picked.flatten(-3))  # (..., C, H, W) -> (..., A)

            return samples
        if field == "labels" or (field == "energies" and self.energy == LABELS):
            if data.labels is None:
                raise ConfigError(f"the module needs the batch field 'labels'; {self.dataset} has none")
            labels, classes = data.labels.to(device), len(data.class_names)
            if field == "labels":
                return lambda rows: labels[rows % count]
            return lambda rows: label_energies(labels[rows % count], classes)  # not a table: it would be N x classes
        if field == "energies":
            table = self._table()
            shifted = (table - table[self.rows(())].amin(0)).to(device)
            return lambda rows: shifted[rows]
        raise ConfigError(f"the module needs the batch field '{field}'; images have samples, energies, labels")

    def _mapped(self, cache: Path, form: ImageFormat) -> ImageSet:
        """The images in a folder of `cache` for this dataset and format, decoded if they are not there yet."""
        if self.dataset.startswith(_HUB):
            stamp = str(getattr(open_hub(self.dataset.removeprefix(_HUB), self.split), "_fingerprint", ""))
        else:
            folder = Path(self.dataset).expanduser()
            stamp = files_hash(folder) if folder.is_dir() else ""  # `_read` says what is wrong
        options = {
            "split": self.split, "image_column": self.image_column, "label_column": self.label_column,
            **{key: value for key, value in asdict(form).items() if key != "file"},
        }  # fmt: skip
        where = cache / f"{self.dataset_name}-{content_hash([self.dataset, options])}"
        made_from = {"dataset": self.dataset, "files": stamp, **options}
        return mapped_images(where, made_from, lambda file: self._read(replace(form, file=file)))

    def _read(self, form: ImageFormat) -> ImageSet:
        if self.dataset == DIGITS:
            return read_digits(form)
        if self.dataset.startswith(_HUB):
            name = self.dataset.removeprefix(_HUB)
            return read_hub(name, self.split, self.image_column, self.label_column, form)
        folder = Path(self.dataset).expanduser()
        if folder.is_dir():
            return read_folder(folder, form)
        if folder.exists() or len(folder.parts) > 1:
            raise DataError(f"{folder} is {'a file' if folder.exists() else 'missing'}; expected a folder of images")
        raise ConfigError(
            f"unknown dataset '{self.dataset}'; expected {DIGITS}, a folder of images or {_HUB}NAME."
            f"{nearest(self.dataset, (DIGITS,))}"
        )

    def _table(self) -> Tensor:
        """Energies of a function: (N, heads), or (2N, heads) with mirror images."""
        self._loaded()
        if self._energies is None:
            raise ConfigError("images have no energies: set data.energy to labels, hues or a function")
        return self._energies

    def _loaded(self) -> ImageSet:
        if self._data is None:
            raise DataError("the images are not loaded yet: call prepare_data() and setup() first")
        return self._data


def hold_out(labels: Tensor | None, count: int, share: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ascending (training rows, held-out rows) of `count` images, stratified by class.

    Each class holds out `share` of its images to within one image, but keeps at least one for training. Raises
    DataError if `share` > 0 holds out none.
    """
    order = torch.randperm(count, generator=draws)
    sizes = torch.tensor([count])
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
        sizes = labels.bincount()
    quota = (torch.arange(count + 1, dtype=torch.float64) * share + 0.5).floor()
    chosen = quota.diff() > 0.0  # evenly spaced over the classes, so small ones also contribute
    ends = sizes.cumsum(0)
    whole = (sizes > 0) & (quota[ends] - quota[ends - sizes] == sizes)
    chosen[ends[whole] - 1] = False
    if share > 0.0 and not bool(chosen.any()):
        raise DataError(f"data.holdout {share:g} of {count} images holds out none; raise it, or set it to 0")
    return order[~chosen].sort().values, order[chosen].sort().values


def check_classes(data: ImageSet, rows: Tensor, source: str) -> None:
    """Raise DataError unless `data` has labels of two or more classes, each with an image among `rows`."""
    if data.labels is None:
        raise DataError(f"{source} has no labels; the energy 'labels' needs one subfolder or one label per class")
    names = data.class_names
    if len(names) < 2:
        raise DataError(f"all images of {source} are of class '{names[0]}'; the energy 'labels' needs at least two")
    missing = (data.labels[rows].bincount(minlength=len(names)) == 0).nonzero().squeeze(-1).tolist()
    if missing:
        first = names[missing[0]]
        raise DataError(f"{source}: {len(missing)} of {len(names)} classes have no training image, first '{first}'")
