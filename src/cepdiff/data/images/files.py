"""Read images from the embedded digits, folders and Hugging Face datasets into one array of bytes."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cepdiff.data.rl.support_cache import allocate
from cepdiff.errors import ConfigError, DataError, MissingExtraError, nearest

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # decoded by PIL itself, without external programs
_CHUNK = 1024  # files in flight, to bound the memory of decoded images not yet copied
_BAR_FROM = 2000  # above this many files, show a progress bar

File = Path | BytesIO
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSet:
    """`images` (N, C, H, W) uint8; `labels` (N,) int64 index `class_names`. Unlabelled: None and no names.

    `mapped` is the hash of images that are memory-mapped, "" if they are in memory.
    """

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    mapped: str = ""


@dataclass(frozen=True)
class ImageFormat:
    """How images are converted while they are read.

    `channels`: 1 (luma) or 3 (RGB). `image_size`: side of the square images; None keeps their size, which must be the
    same for all. `skip_broken`: skip files that cannot be decoded, with one warning, instead of raising.
    `num_images`: read only this many, evenly spaced over the set. `file`: keep the images in this .npy file, which is
    made, and not in memory.
    """

    channels: int
    image_size: int | None = None
    skip_broken: bool = False
    num_images: int | None = None
    file: Path | None = None

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """Rows to read out of `count`."""
        wanted = count if self.num_images is None else min(self.num_images, count)
        return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)


def read_digits(form: ImageFormat) -> ImageSet:
    """Read the embedded 1,797 handwritten digits of scikit-learn: 8x8, 17 grey levels, classes "0" to "9"."""
    from PIL import Image

    with np.load(str(resources.files("cepdiff.data") / "embedded" / "digits.npz"), allow_pickle=False) as file:
        levels, labels = file["images"], file["labels"]
    rows = form.rows(len(levels))
    grey = ((levels[rows].astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)  # 0...16 -> 0...255, rounded
    images = np.stack([to_pixels(Image.fromarray(digit), form) for digit in grey])
    chosen = torch.from_numpy(labels[rows].astype(np.int64))
    return ImageSet(torch.from_numpy(images), chosen, tuple(str(digit) for digit in range(10)))


def read_folder(folder: Path, form: ImageFormat) -> ImageSet:
    """Read the images of a folder, sorted by path.

    Either each top-level subfolder is a class (sorted by name, with images at any depth), or all images are directly
    in the folder and unlabelled. Hidden files and files without an image suffix are ignored.
    Raises `DataError` for no images, both layouts at once, or a subfolder without images, and like `read_images`.
    """
    classes = {name: _image_files(folder / name) for name in _subfolders(folder)}
    paths = sorted(path for path in folder.iterdir() if _is_image(path))
    labels: npt.NDArray[np.int64] | None = None
    if paths and any(classes.values()):
        raise DataError(f"{folder} has images both directly and in subfolders; expected only one of the two")
    if paths:
        classes = {}
    else:
        if not any(classes.values()):
            known = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{folder} has no images; expected files ({known}) directly or in one subfolder per class")
        empty = [name for name, found in classes.items() if not found]
        if empty:
            raise DataError(f"{folder / empty[0]} has no images; each subfolder is a class: add images or remove it")
        paths = [path for found in classes.values() for path in found]
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in classes.values()])
    rows = form.rows(len(paths))
    chosen = [paths[row] for row in rows]
    chosen_labels = None if labels is None else labels[rows]
    return read_images([str(path) for path in chosen], chosen.__getitem__, chosen_labels, tuple(classes), form)


def read_hub(name: str, split: str, image_column: str | None, label_column: str | None, form: ImageFormat) -> ImageSet:
    """Read the images of a Hugging Face dataset: a name on the hub, or a local folder that `datasets` can read.

    `image_column` and `label_column` default to the only image column and the only class-label column (if none, there
    are no labels). If named, a column of integers or strings also works as labels; its sorted values are the classes.

    Raises `MissingExtraError` without the package `datasets`, `ConfigError` if a column is missing or has another type,
    `DataError` if the dataset or split cannot be loaded or has unlabelled rows, and like `read_images`.
    """
    dataset = open_hub(name, split)
    import datasets

    images = image_column or _only_column(dataset, datasets.Image, "image_column")
    if images is None:
        raise ConfigError(f"{name} has no image column; found {', '.join(dataset.column_names)}")
    label_column = label_column or _only_column(dataset, datasets.ClassLabel, "label_column")
    for key, column in (("image_column", images), ("label_column", label_column)):
        if column is not None and column not in dataset.column_names:
            known = dataset.column_names
            raise ConfigError(
                f"data.{key}: {name} has no column '{column}'; expected one of {', '.join(known)}."
                f"{nearest(column, known)}"
            )
    if not isinstance(dataset.features[images], datasets.Image):
        kind = dataset.features[images]
        raise ConfigError(f"data.image_column: the column '{images}' of {name} is {kind}; expected images")
    rows = form.rows(len(dataset))
    labels, names = (None, ()) if label_column is None else _hub_labels(dataset, name, label_column)
    encoded = dataset.select_columns([images]).cast_column(images, datasets.Image(decode=False))

    def open_file(row: int) -> File:
        cell = encoded[int(rows[row])][images]
        return BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])

    titles = [f"{name}, row {row}" for row in rows]
    return read_images(titles, open_file, None if labels is None else labels[rows], names, form)


def open_hub(name: str, split: str) -> Any:
    """Return the `datasets.Dataset`, downloaded unless it is in the local cache."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtraError(f"The dataset 'hub:{name}'", "images") from None
    folder = Path(name).expanduser()
    saved = any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))  # by save_to_disk
    try:
        if not saved:
            return datasets.load_dataset(str(folder) if folder.is_dir() else name, split=split)
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library lets errors of its network, file and format layers through
        raise DataError(f"hub:{name}, split '{split}' cannot be loaded: {_one_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise DataError(f"hub:{name} has no split '{split}'; found {', '.join(found)}.{nearest(split, found)}")
    return found[split]


def read_images(
    titles: Sequence[str],
    open_file: Callable[[int], File],
    labels: npt.NDArray[np.int64] | None,
    class_names: tuple[str, ...],
    form: ImageFormat,
) -> ImageSet:
    """Decode the files `open_file(0)`, ... in threads, keeping their order; `titles` name them in messages.

    Raises `DataError` for a broken file (unless skipped), only broken files, or different sizes without `image_size`.
    """
    images: Pixels | None = None
    kept: list[int] = []
    broken: list[str] = []
    for index, found in enumerate(_decoded(len(titles), open_file, form)):
        if isinstance(found, Exception):
            broken.append(f"{titles[index]} ({_one_line(found)})")
            if not form.skip_broken:
                raise DataError(f"cannot read image {broken[0]}; remove it, or set data.on_broken to 'skip'")
            continue
        if images is None:
            images = _new_array(form.file, (len(titles), *found.shape))
        elif found.shape != images.shape[1:]:
            raise DataError(
                f"the image {titles[index]} is {_size(found)} pixels, {titles[kept[0]]} is {_size(images[0])}; "
                "set data.image_size to resize all images"
            )
        images[len(kept)] = found
        kept.append(index)
    if images is None:
        raise DataError(f"cannot read any of the {len(titles)} images; the first is {broken[0]}")
    if broken:
        text = f"skipped {len(broken)} of {len(titles)} images that cannot be read; the first is {broken[0]}"
        warnings.warn(text, stacklevel=2)
    kept_labels = None if labels is None else torch.from_numpy(labels[kept])
    return ImageSet(torch.from_numpy(images[: len(kept)]), kept_labels, class_names)


def decode(file: File, form: ImageFormat) -> Pixels:
    """Decode one image (C, H, W): first frame of an animation, EXIF orientation applied, then `to_pixels`."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=_FORMATS) as image:
        return to_pixels(ImageOps.exif_transpose(image), form)


def to_pixels(image: Image.Image, form: ImageFormat) -> Pixels:
    """Convert any PIL image to (C, H, W): 16 bits become 8, transparency goes on white, colours become RGB or luma.

    With `image_size`, the central square is resampled to it (bicubic, antialiased; upwards too).
    Raises ValueError for 32-bit or floating-point pixels.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point; expected 8 or 16 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("L" if form.channels == 1 else "RGB")
    side = form.image_size
    if side is not None:
        left, top = (max(length - min(image.size), 0) / 2 for length in image.size)
        square = (left, top, left + min(image.size), top + min(image.size))
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=square)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if form.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit grey levels, which PIL would clip at 255, to 8 bits."""
    from PIL import Image

    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _new_array(file: Path | None, shape: tuple[int, ...]) -> Pixels:
    if file is None:
        return np.empty(shape, np.uint8)
    allocate(file, shape, np.uint8)
    found: Pixels = np.load(file, mmap_mode="r+")
    return found


def _decoded(count: int, open_file: Callable[[int], File], form: ImageFormat) -> Iterator[Pixels | Exception]:
    """Yield images in order; for each that cannot be decoded, the exception."""
    from tqdm import tqdm

    def read(index: int) -> Pixels | Exception:
        try:
            return decode(open_file(index), form)
        except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
            return error

    hidden = count <= _BAR_FROM
    with (
        ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool,
        tqdm(total=count, desc="images", unit="file", disable=hidden, leave=False) as bar,
    ):
        for start in range(0, count, _CHUNK):
            for found in pool.map(read, range(start, min(start + _CHUNK, count))):
                yield found
                bar.update()


def files_hash(folder: Path) -> str:
    """Hash of the names, sizes and modification times of the images in a folder."""
    digest = hashlib.blake2b(digest_size=8)
    for path in _image_files(folder):
        found = path.stat()
        digest.update(f"{path.relative_to(folder)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """Images at any depth outside hidden folders, sorted by path."""
    here = sorted(path for path in folder.iterdir() if _is_image(path))
    return sorted([*here, *(path for name in _subfolders(folder) for path in _image_files(folder / name))])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _only_column(dataset: Any, kind: type, key: str) -> str | None:
    """The only column with this kind of feature, or None. Raises ConfigError if there are several."""
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(columns) > 1:
        raise ConfigError(f"data.{key} is not set; choose one of the columns {', '.join(columns)}")
    return columns[0] if columns else None


def _hub_labels(dataset: Any, name: str, column: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) and class names of a column."""
    import datasets

    values = list(dataset[column])
    known = dataset.features[column]
    if any(value is None or value == -1 for value in values):  # the library marks unlabelled test sets with -1
        raise DataError(f"hub:{name}: the label column '{column}' has unlabelled rows")
    if isinstance(known, datasets.ClassLabel):
        return np.array(values, dtype=np.int64), tuple(known.names)
    if not all(isinstance(value, (int, str)) for value in values):
        raise ConfigError(f"data.label_column: '{column}' of {name} is {known}; expected class labels")
    classes, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int64), tuple(str(value) for value in classes)


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"
