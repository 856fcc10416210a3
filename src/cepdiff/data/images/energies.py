"""Energies of images: by class, by colour, or by a user's function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from cepdiff.components import import_function
from cepdiff.data.densities.datamodule import call_energy
from cepdiff.errors import ConfigError, DataError, nearest

LABELS = "labels"
HUES = tuple(i / 6 for i in range(6))
"""Red, yellow, green, cyan, blue, magenta: the targets of Lu et al. 2023."""

_SATURATION_FLOOR = 0.1
_SATURATION_WEIGHT = 3.0
_CHUNK = 1 << 22  # image values per call, to bound the memory an energy needs

ImageEnergy = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [-1, 1] -> energies (N,) or (N, heads); called on CPU tensors while data are loaded."""


def from_bytes(images: Tensor) -> Tensor:
    """Scale bytes 0...255 of any shape to float32 in [-1, 1], the range of networks and energies."""
    return images.float() / 127.5 - 1.0


def find_energy(energy: str) -> ImageEnergy:
    """Return the energy "hues" or the function "package.module.function". Raises ConfigError if there is none."""
    if energy == "hues":
        return hue_energy
    if "." not in energy:
        raise ConfigError(
            f"data.energy is '{energy}'; expected {LABELS}, hues or package.module.function."
            f"{nearest(energy, (LABELS, 'hues'))}"
        )
    return import_function(energy, "data.energy")


def evaluate_images(function: ImageEnergy, images: Tensor, name: str) -> Tensor:
    """Energies (N, H) float32 of `images` (N, C, H, W) uint8, in chunks and without gradients.

    Raises DataError if the function raises or returns anything but finite energies (N,) or (N, H).
    """
    parts: list[Tensor] = []
    with torch.no_grad():
        for first, some in _chunks(images):
            part = heads_of(function, from_bytes(some), name).float()
            if parts and part.shape[1] != parts[0].shape[1]:
                raise DataError(f"the energy {name} returned {part.shape[1]} heads, but {parts[0].shape[1]} before")
            if not bool(part.isfinite().all()):
                row, head = (~part.isfinite()).nonzero()[0].tolist()
                raise DataError(
                    f"the energy {name} is {float(part[row, head])} at image {first + row}; expected finite numbers"
                )
            parts.append(part)
    return torch.cat(parts)


def heads_of(function: ImageEnergy, images: Tensor, name: str) -> Tensor:
    """Energies (N, H) of `images` (N, C, H, W) in [-1, 1], with gradients; an (N,) result becomes one head.

    Raises DataError if the function raises or returns another shape.
    """
    energies = call_energy(function, images, name)
    fits = isinstance(energies, Tensor) and energies.ndim in (1, 2) and len(energies) == len(images)
    if not fits or energies.shape[-1] == 0:
        shape = tuple(energies.shape) if isinstance(energies, Tensor) else type(energies).__name__
        n = len(images)
        raise DataError(f"the energy {name} returned {shape} for {tuple(images.shape)}; expected ({n},) or ({n}, H)")
    return energies if energies.ndim == 2 else energies.unsqueeze(-1)


def label_energies(labels: Tensor, num_classes: int) -> Tensor:
    """-log p(y|x) of every class: labels (...) -> (..., num_classes), 0 for the own class and +inf for the others."""
    own = labels.unsqueeze(-1) == torch.arange(num_classes, device=labels.device)
    return torch.where(own, 0.0, torch.inf)


def hue_energy(images: Tensor, targets: Sequence[float] = HUES) -> Tensor:
    """Colour energy of Lu et al. 2023 for `images` (N, 3, H, W), clamped to [-1, 1]: (N, H), one head per target hue.

    The mean over pixels of the circular distance from hue to target, in [0, 1/2], plus a penalty 3 (0.1 - s) against
    grey images if the mean saturation s is below 0.1.
    """
    hue, saturation = hue_saturation((images.clamp(-1.0, 1.0) + 1.0) / 2.0)
    goals = images.new_tensor(targets).reshape(-1, 1, 1)
    distance = (torch.remainder(hue.unsqueeze(1) - goals + 0.5, 1.0) - 0.5).abs()  # (N, H, height, width)
    pale = (_SATURATION_FLOOR - saturation.mean((-2, -1))).clamp(min=0.0)
    return distance.mean((-2, -1)) + _SATURATION_WEIGHT * pale.unsqueeze(-1)


def hue_saturation(images: Tensor) -> tuple[Tensor, Tensor]:
    """HSV hue in [0, 1) and saturation in [0, 1], (..., H, W) each, of RGB `images` (..., 3, H, W) in [0, 1].

    The hue of grey and the saturation of black are undefined and set to 0; their gradients are finite.
    """
    red, green, blue = images.unbind(-3)
    highest, lowest = images.amax(-3), images.amin(-3)
    chroma = highest - lowest
    coloured, lit = chroma > 0.0, highest > 0.0
    divisor = torch.where(coloured, chroma, 1.0)  # before dividing: NaN in the unused branch would reach the gradients
    sixths = torch.where(
        highest == red,
        (green - blue) / divisor,
        torch.where(highest == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = torch.remainder(sixths / 6.0, 1.0)
    hue = torch.where(hue < 1.0, hue, 0.0)  # the remainder of -1e-9 rounds to 1
    return hue, torch.where(lit, chroma / torch.where(lit, highest, 1.0), 0.0)


def tinted(grey: Tensor, hues: Tensor) -> Tensor:
    """Images (N, 3, H, W) uint8 with hue `hues` (N,), full saturation and value `grey` (N, 1, H, W) uint8."""
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
