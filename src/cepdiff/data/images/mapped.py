"""Decoded images in a memory-mapped file, for sets that are larger than the memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cepdiff.data.images.files import ImageSet
from cepdiff.errors import DataError
from cepdiff.files import file_hash, path_aside, written_aside
from cepdiff.seals import read_sealed, write_sealed

FORMAT = 1
PIXELS, LABELS, ABOUT = "images.npy", "labels.npy", "about.json"


def mapped_images(folder: Path, made_from: Mapping[str, Any], read: Callable[[Path], ImageSet]) -> ImageSet:
    """The images in `folder`, memory-mapped; decoded into it by `read(file)` unless it has those made from the same.

    Args:
        folder: for three files; made if it is missing.
        made_from: plain values that name the source and how it is converted.
        read: decodes all images into the .npy file it is given, of which the first ones count.

    Raises:
        DataError: a file was changed after it was made.
        OutputError: they cannot be written.
    """
    about = _about(folder, made_from)
    if about is None:
        about = _make(folder, made_from, read)
    pixels, again = folder / PIXELS, f"delete {folder} to decode the images again"
    try:
        if pixels.stat().st_mtime_ns != about["written"] and file_hash(pixels) != about["images"]:
            raise DataError(f"{pixels} was changed after it was made; {again}")
        if about["labels"] and file_hash(folder / LABELS) != about["labels"]:
            raise DataError(f"{folder / LABELS} was changed after it was made; {again}")
        images = np.load(pixels, mmap_mode="r")[: about["count"]]
        labels = torch.from_numpy(np.load(folder / LABELS, allow_pickle=False)) if about["labels"] else None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is damaged ({error}); {again}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nothing writes to images
        return ImageSet(torch.from_numpy(images), labels, tuple(about["class_names"]), about["images"])


def _about(folder: Path, made_from: Mapping[str, Any]) -> dict[str, Any] | None:
    """The description of the files in `folder`; None if there is none, or one of other images."""
    if not (folder / ABOUT).is_file():
        return None
    try:
        found = read_sealed(folder / ABOUT, FORMAT)
    except ValueError as error:
        raise DataError(f"{folder / ABOUT} is damaged ({error}); delete {folder} to decode the images again") from error
    return found if found is not None and found["made_from"] == made_from else None


def _make(folder: Path, made_from: Mapping[str, Any], read: Callable[[Path], ImageSet]) -> dict[str, Any]:
    """Decode all images; the description is written last, so that it stands only beside whole files."""
    (folder / ABOUT).unlink(missing_ok=True)
    with path_aside(folder / PIXELS) as aside:
        data = read(aside)
    labels = ""
    if data.labels is not None:
        with written_aside(folder / LABELS) as file:
            np.save(file, data.labels.numpy())
        labels = file_hash(folder / LABELS)
    about = {
        "format": FORMAT, "made_from": dict(made_from), "count": len(data.images), "labels": labels,
        "class_names": list(data.class_names), "images": file_hash(folder / PIXELS),
        "written": (folder / PIXELS).stat().st_mtime_ns,
    }  # fmt: skip
    write_sealed(folder / ABOUT, about)
    return about
