"""Images from files: the embedded digits, folders, Hugging Face datasets; all as one array of bytes."""

from __future__ import annotations

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

from cepdiff.errors import ConfigError, DataError, MissingExtraError, nearest

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # what PIL decodes itself, with no foreign program
_CHUNK = 1024  # files in flight: bounds what threads hold before it is copied to its place
_BAR_FROM = 2000  # files from which on a progress bar is shown

File = Path | BytesIO
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSet:
    """`images` (N, C, H, W) uint8; `labels` (N,) int64 that index `class_names`, or None and no names."""

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class ImageFormat:
    """What images are turned into while they are read.

    `channels`: 1 (luma) or 3 (RGB). `image_size`: images become squares of this side, None keeps the one size that all
    must have. `skip_broken`: leave files out that cannot be decoded, with one warning, instead of refusing them.
    `num_images`: read so many alone, evenly spaced over the set.
    """

    channels: int
    image_size: int | None = None
    skip_broken: bool = False
    num_images: int | None = None

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """Row numbers of the images to read, of `count`."""
        wanted = count if self.num_images is None else min(self.num_images, count)
        return np.arange(wanted, dtype=np.int64) * count // max(wanted, 1)


def read_digits(form: ImageFormat) -> ImageSet:
    """The 1,797 handwritten digits of scikit-learn, embedded: 8x8, 17 grey levels; classes "0" to "9"."""
    from PIL import Image

    with np.load(str(resources.files("cepdiff.data") / "embedded" / "digits.npz"), allow_pickle=False) as file:
        levels, labels = file["images"], file["labels"]
    rows = form.rows(len(levels))
    grey = ((levels[rows].astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)  # 0...16 -> 0...255, to the nearest
    images = np.stack([to_pixels(Image.fromarray(digit), form) for digit in grey])
    return ImageSet(
        torch.from_numpy(images),
        torch.from_numpy(labels[rows].astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
    )


def read_folder(folder: Path, form: ImageFormat) -> ImageSet:
    """Images of a folder, in the order of their sorted paths.

    They lie in subfolders, at any depth, whose first names are the classes (sorted), or directly in the folder:
    without labels. Hidden files, and files with a suffix that is none of an image, are passed over.

    Raises:
        DataError: no images, both layouts at once, a subfolder without images; see also `read_images`.
    """
    classes = {name: _image_files(folder / name) for name in _subfolders(folder)}
    paths = sorted(path for path in folder.iterdir() if _is_image(path))
    labels: npt.NDArray[np.int64] | None = None
    if paths and any(classes.values()):
        raise DataError(f"{folder} holds images both directly and in subfolders; expected one of the two")
    if paths:
        classes = {}
    else:
        if not any(classes.values()):
            known = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{folder} holds no images; expected files ({known}) directly or in a subfolder a class")
        empty = [name for name, found in classes.items() if not found]
        if empty:
            raise DataError(f"{folder / empty[0]} holds no images; a subfolder is a class: remove it or fill it")
        paths = [path for found in classes.values() for path in found]
        labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(found) for found in classes.values()])
    rows = form.rows(len(paths))
    chosen = [paths[row] for row in rows]
    return read_images(
        [str(path) for path in chosen],
        chosen.__getitem__,
        None if labels is None else labels[rows],
        tuple(classes),
        form,
    )


def read_hub(name: str, split: str, image_column: str | None, label_column: str | None, form: ImageFormat) -> ImageSet:
    """Images of a Hugging Face dataset: a name on the hub, or a local folder that `datasets` can read.

    `image_column` and `label_column` default to the only column of images, and of class labels (none: no labels). A
    column of integers or strings serves as labels too, if it is named; its sorted values are the classes.

    Raises:
        MissingExtraError: without the package `datasets`.
        ConfigError: a column that is missing or of another kind.
        DataError: a dataset or split that cannot be loaded, unlabelled rows; see also `read_images`.
    """
    dataset = open_hub(name, split)
    import datasets

    images = image_column or _only_column(dataset, datasets.Image, "image_column")
    if images is None:
        raise ConfigError(f"{name}: none of its columns {', '.join(dataset.column_names)} holds images")
    label_column = label_column or _only_column(dataset, datasets.ClassLabel, "label_column")
    for key, column in (("image_column", images), ("label_column", label_column)):
        if column is not None and column not in dataset.column_names:
            known = dataset.column_names
            raise ConfigError(
                f"data.{key}: {name} has no column '{column}', but {', '.join(known)}.{nearest(column, known)}"
            )
    if not isinstance(dataset.features[images], datasets.Image):
        raise ConfigError(
            f"data.image_column: the column '{images}' of {name} is {dataset.features[images]}, no images"
        )
    rows = form.rows(len(dataset))
    labels, names = (None, ()) if label_column is None else _hub_labels(dataset, name, label_column)
    encoded = dataset.select_columns([images]).cast_column(images, datasets.Image(decode=False))

    def open_file(row: int) -> File:
        cell = encoded[int(rows[row])][images]
        return BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])

    titles = [f"{name}, row {row}" for row in rows]
    return read_images(titles, open_file, None if labels is None else labels[rows], names, form)


def open_hub(name: str, split: str) -> Any:
    """The `datasets.Dataset`, downloaded where it is not in the local cache."""
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
    except Exception as error:  # the library raises what its network, file and format layers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"hub:{name}, split '{split}', cannot be loaded: {reason}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise DataError(f"hub:{name} has no split '{split}', but {', '.join(found)}.{nearest(split, found)}")
    return found[split]


def read_images(
    titles: Sequence[str],
    open_file: Callable[[int], File],
    labels: npt.NDArray[np.int64] | None,
    class_names: tuple[str, ...],
    form: ImageFormat,
) -> ImageSet:
    """Decodes the files `open_file(0)`, ... in threads, in their order; `titles` name them in messages.

    Raises:
        DataError: a broken file (unless skipped), nothing but broken files, or several sizes without `image_size`.
    """
    images: Pixels | None = None
    kept: list[int] = []
    broken: list[str] = []
    for index, found in enumerate(_decoded(len(titles), open_file, form)):
        if isinstance(found, Exception):
            broken.append(f"{titles[index]} ({_one_line(found)})")
            if not form.skip_broken:
                raise DataError(f"the image {broken[0]} cannot be read; remove it, or set data.on_broken to 'skip'")
            continue
        if images is None:
            images = np.empty((len(titles), *found.shape), np.uint8)
        elif found.shape != images.shape[1:]:
            raise DataError(
                f"the image {titles[index]} is {_size(found)} pixels, {titles[kept[0]]} is {_size(images[0])}; "
                "set data.image_size to bring all to one size"
            )
        images[len(kept)] = found
        kept.append(index)
    if images is None:
        raise DataError(f"none of the {len(titles)} images can be read; the first is {broken[0]}")
    if broken:
        text = f"{len(broken)} of {len(titles)} images cannot be read and are left out; the first is {broken[0]}"
        warnings.warn(text, stacklevel=2)
    return ImageSet(
        torch.from_numpy(images[: len(kept)]), None if labels is None else torch.from_numpy(labels[kept]), class_names
    )


def decode(file: File, form: ImageFormat) -> Pixels:
    """One image (C, H, W): of an animation the first frame, upright by its EXIF note, then as `to_pixels` says."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=_FORMATS) as image:
        return to_pixels(ImageOps.exif_transpose(image), form)


def to_pixels(image: Image.Image, form: ImageFormat) -> Pixels:
    """(C, H, W) of any PIL image: 16 bits become 8, transparency is laid on white, colours become RGB or luma.

    With `image_size` the central square is resampled to it (bicubic, antialiased); a smaller image is enlarged.
    Raises ValueError for pixels of 32 bits.
    """
    from PIL import Image

    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; expected 8 or 16 bits")
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
    """Grey levels of 16 bits, which PIL would clip at 255, to the nearest of 8."""
    from PIL import Image

    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def _decoded(count: int, open_file: Callable[[int], File], form: ImageFormat) -> Iterator[Pixels | Exception]:
    """The images in their order, or what their decoding raised."""
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


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """Images at any depth, sorted by path; a hidden folder's are not among them."""
    here = sorted(path for path in folder.iterdir() if _is_image(path))
    return sorted([*here, *(path for name in _subfolders(folder) for path in _image_files(folder / name))])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _only_column(dataset: Any, kind: type, key: str) -> str | None:
    """The column of a kind of feature, None where there is none; ConfigError where one must be chosen."""
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
    if len(columns) > 1:
        raise ConfigError(f"data.{key} must name one of the columns {', '.join(columns)}")
    return columns[0] if columns else None


def _hub_labels(dataset: Any, name: str, column: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) and class names of a column."""
    import datasets

    values = list(dataset[column])
    known = dataset.features[column]
    if any(value is None or value == -1 for value in values):  # -1 is the library's mark of a test set
        raise DataError(f"hub:{name}: rows of the column '{column}' have no label")
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
