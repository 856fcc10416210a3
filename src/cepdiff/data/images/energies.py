"""Energies of images: their class, their colour, or any function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cepdiff.components import import_function
from cepdiff.data.densities.datamodule import evaluate_energy
from cepdiff.errors import ConfigError, DataError, nearest

LABELS = "labels"
HUES = tuple(i / 6 for i in range(6))
"""Red, yellow, green, cyan, blue, magenta: the targets of Lu et al. 2023."""

_SATURATION_FLOOR = 0.1
_SATURATION_WEIGHT = 3.0
_CHUNK = 1 << 22  # values of images at a time: bounds what an energy holds beside the data

ImageEnergy = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [-1, 1] -> energies (N,) or (N, heads); while data are loaded, images lie on the CPU."""


def from_bytes(images: Tensor) -> Tensor:
    """Bytes 0...255 as float32 in [-1, 1], as networks and energies see images; any shape."""
    return images.float() / 127.5 - 1.0


def find_energy(energy: str) -> ImageEnergy:
    """The energy called "hues", or the function "package.module.function"; raises ConfigError where there is none."""
    if energy == "hues":
        return hue_energy
    if "." not in energy:
        raise ConfigError(
            f"data.energy is '{energy}'; expected {LABELS}, hues or package.module.function."
            f"{nearest(energy, (LABELS, 'hues'))}"
        )
    return import_function(energy, "data.energy")


def evaluate_images(function: ImageEnergy, images: Tensor, name: str) -> Tensor:
    """Energies (N, H) float32 of `images` (N, C, H, W) uint8, some at a time and without gradients.

    Raises DataError where the function raises, or gives anything but finite energies (N,) or (N, H).
    """
    parts: list[Tensor] = []
    with torch.no_grad():
        for first, some in _chunks(images):
            part = heads_of(function, from_bytes(some), name).float()
            if parts and part.shape[1] != parts[0].shape[1]:
                raise DataError(f"the energy {name} gave {part.shape[1]} heads after {parts[0].shape[1]}")
            if not bool(part.isfinite().all()):
                row, head = (~part.isfinite()).nonzero()[0].tolist()
                raise DataError(
                    f"the energy {name} is {float(part[row, head])} at image {first + row}; expected finite numbers"
                )
            parts.append(part)
    return torch.cat(parts)


def heads_of(function: ImageEnergy, images: Tensor, name: str) -> Tensor:
    """Energies (N, H) of `images` (N, C, H, W) in [-1, 1], with their gradients; one head where they are (N,).

    Raises DataError where the function raises, or gives another shape.
    """
    found: list[Tensor] = []

    def call(points: Tensor) -> Tensor:
        found.append(function(points))
        return points.new_zeros(len(points))

    evaluate_energy(call, images, name)  # for what it says where the function raises; it knows one head alone
    energies = found[0]
    fits = isinstance(energies, Tensor) and energies.ndim in (1, 2) and len(energies) == len(images)
    if not fits or energies.shape[-1] == 0:
        shape = tuple(energies.shape) if isinstance(energies, Tensor) else type(energies).__name__
        n = len(images)
        raise DataError(f"the energy {name} gave {shape} for images {tuple(images.shape)}; expected ({n},) or ({n}, H)")
    return energies if energies.ndim == 2 else energies.unsqueeze(-1)


def label_energies(labels: Tensor, num_classes: int) -> Tensor:
    """-log p(y|x) of every class, 0 for an image's own and +inf for others: labels (...) -> (..., num_classes)."""
    own = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
    return torch.where(own, 0.0, torch.inf)


def hue_energy(images: Tensor, targets: Sequence[float] = HUES) -> Tensor:
    """The colour energy of Lu et al. 2023 for `images` (N, 3, H, W) in [-1, 1]: one head a target hue, (N, H).

    The mean over pixels of the hue's distance on the circle to the target, in [0, 1/2], and 3 (0.1 - s) where the mean
    saturation s is below 0.1, so that grey does not pay. Values beyond [-1, 1] count as its ends.
    """
    hue, saturation = hue_saturation((images.clamp(-1.0, 1.0) + 1.0) / 2.0)
    goals = images.new_tensor(targets).reshape(-1, 1, 1)
    distance = (torch.remainder(hue.unsqueeze(1) - goals + 0.5, 1.0) - 0.5).abs()  # (N, H, height, width)
    pale = (_SATURATION_FLOOR - saturation.mean((-2, -1))).clamp(min=0.0)
    return distance.mean((-2, -1)) + _SATURATION_WEIGHT * pale.unsqueeze(-1)


def hue_saturation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Hue in [0, 1) and saturation in [0, 1] of HSV, of RGB `images` (..., 3, H, W) in [0, 1] -> (..., H, W) each.

    Both are 0 where they are not defined: the hue of grey, the saturation of black; gradients there are finite.
    """
    red, green, blue = images.unbind(-3)
    highest, lowest = images.amax(-3), images.amin(-3)
    chroma = highest - lowest
    coloured, lit = chroma > 0.0, highest > 0.0
    divisor = torch.where(coloured, chroma, 1.0)  # before the division: a NaN in the branch not taken spoils gradients
    sixths = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = torch.remainder(sixths / 6.0, 1.0)
    hue = torch.where(hue < 1.0, hue, 0.0)  # the remainder of -1e-9 rounds to 1
    return hue, torch.where(lit, chroma / torch.where(lit, highest, 1.0), 0.0)


def tinted(grey: Tensor, hues: Tensor) -> Tensor:
    """Images (N, 3, H, W) of hue `hues` (N,), full saturation and the value of `grey` (N, 1, H, W), all uint8."""
    corners = torch.remainder(torch.tensor([5.0, 3.0, 1.0]) + 6.0 * hues.unsqueeze(-1), 6.0)
    colours = 1.0 - torch.minimum(corners, 4.0 - corners).clamp(0.0, 1.0)  # (N, 3): RGB of HSV (hue, 1, 1)
    images = torch.empty(len(grey), 3, *grey.shape[2:], dtype=torch.uint8)
    for first, some in _chunks(grey):
        last = first + len(some)
        images[first:last] = (colours[first:last, :, None, None] * some).round().to(torch.uint8)
    return images


def _chunks(images: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of images (N, C, H, W)."""
    step = max(1, _CHUNK // images[0].numel())
    return ((first, images[first : first + step]) for first in range(0, len(images), step))
