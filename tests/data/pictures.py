"""Small images on disk, for the tests of every source of images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cepdiff.data.images.files import ImageFormat, ImageSet

RGB, GREY = ImageFormat(3), ImageFormat(1)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path: Path, colour: tuple[int, ...] = RED, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def colours(data: ImageSet) -> list[list[int]]:
    """The first pixel of each image."""
    return data.images[:, :, 0, 0].tolist()
