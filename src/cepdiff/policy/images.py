"""Images of a run: head and guidance scale in, images out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cepdiff.errors import ConfigError, RunError, nearest
from cepdiff.files import written_aside
from cepdiff.policy.recipe import Recipe, load_sampler
from cepdiff.policy.sampler import GuidedSampler
from cepdiff.randomness import generator


class ImageSampler:
    """Images of p_h(x) ∝ q(x) exp(-scale beta E_h(x)), one energy E_h per head.

    Args:
        image_shape: (C, H, W).
        head_names: one per head.
        sampler: of flat images (B, A) in [-1, 1], given the index of a head (B, 1).
        recipe: of the file that the sampler came from.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        head_names: Sequence[str],
        sampler: GuidedSampler,
        recipe: Recipe | None = None,
    ) -> None:
        self.image_shape = tuple(image_shape)
        self.head_names = tuple(head_names)
        self.sampler = sampler
        self.recipe = recipe

    def head_index(self, head: int | str) -> int:
        """The index of a head's name or number, counted from 0; raises ConfigError if there is none."""
        if isinstance(head, str) and head in self.head_names:
            return self.head_names.index(head)
        if str(head).isdecimal() and int(head) < len(self.head_names):
            return int(head)
        known = ", ".join(self.head_names[:12]) + (", ..." if len(self.head_names) > 12 else "")
        raise ConfigError(
            f"there is no head '{head}'; there are {len(self.head_names)}: {known}."
            f"{nearest(str(head), self.head_names)}"
        )

    def sample(
        self,
        num: int,
        head: int | str | None = None,
        guidance_scale: float = 1.0,
        seed: int = 0,
        batch_size: int = 250,
        shown: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Images (num, C, H, W) uint8 on the CPU; scale 0 samples the prior and needs no head, unless
        the prior is conditioned on classes.

        Image i starts from noise that depends on (seed, head, i) only, so scales share it. `shown(done, num)` is called
        after each batch of `batch_size`.

        Raises:
            ConfigError: an unknown head, or none if there are several; sizes below 1; a scale below 0.
            RunError: a scale other than 0 without an energy network.
        """
        for name, value in (("num", num), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        if head is None and guidance_scale != 0.0 and len(self.head_names) != 1:
            names = ", ".join(self.head_names[:12])
            raise ConfigError(f"choose a head to guide by; there are {len(self.head_names)}: {names}")
        if head is None and getattr(self.sampler.networks["behavior"], "num_classes", None) is not None:
            raise ConfigError("the prior is conditioned on classes: choose a head, its class")
        index = 0 if head is None else self.head_index(head)
        parts, done = [], 0
        for part in self.batches(torch.full((num,), index), torch.arange(num), guidance_scale, seed, batch_size):
            parts.append(part.cpu())
            done += len(part)
            if shown is not None:
                shown(done, num)
        return torch.cat(parts)

    def evaluation(self, rows: int) -> Callable[[], Tensor]:
        """One evaluation of the prior on `rows` images, to measure its speed by."""
        x = torch.zeros(rows, self.sampler.size, device=self.sampler.device)
        prior, t, head = self.sampler.networks["behavior"], x.new_full((rows,), 0.5), x.new_zeros(rows, 1)
        return torch.no_grad()(lambda: prior(x, t, head))

    def batches(
        self, heads: Tensor, indices: Tensor, guidance_scale: float, seed: int, batch_size: int
    ) -> Iterator[Tensor]:
        """Images (B, C, H, W) uint8 on the device for `indices` (N,) of `heads` (N,), `batch_size` at a time."""
        if not (guidance_scale >= 0.0 and math.isfinite(guidance_scale)):
            raise ConfigError(f"guidance_scale is {guidance_scale}; expected a finite number of 0 or more")
        self.sampler.require_energy(guidance_scale)
        device = self.sampler.device
        for some, rows in zip(torch.split(heads, batch_size), torch.split(indices, batch_size), strict=True):
            noise = start_noise(some, rows, self.sampler.noise_size, seed).to(device)
            scale = torch.full((len(noise),), guidance_scale, device=device)
            head = some.to(device, torch.int64).unsqueeze(-1)  # (B,) -> (B, 1)
            yield to_bytes(self.sampler.sample(head, noise, scale)).reshape(-1, *self.image_shape)  # -> (B, C, H, W)

    @classmethod
    def from_run(
        cls,
        run_dir: str | Path,
        device: torch.device | str = "cpu",
        num_solver_steps: int | None = None,
        trust_sources: Sequence[str | Path] = (),
    ) -> ImageSampler:
        """The sampler of a run folder, or of the `policy.pt` in one; `num_solver_steps` replaces the run's own.

        Your own classes are imported only from the folders `trust_sources`. Raises RunError for a run that is not on
        images, and as `load_sampler`.
        """
        sampler, recipe = load_sampler(run_dir, device, num_solver_steps, trust_sources)
        if recipe.image_shape is None:
            raise RunError(f"{run_dir} is no run on images; load it with GuidedPolicy.from_run")
        return cls(recipe.image_shape, recipe.head_names, sampler, recipe)


def start_noise(heads: Tensor, indices: Tensor, size: int, seed: int) -> Tensor:
    """Standard normal (N, size) on the CPU; each row depends on (seed, head, index) only."""
    pairs = zip(heads.tolist(), indices.tolist(), strict=True)
    return torch.stack([torch.randn(size, generator=generator(seed, "image", *pair)) for pair in pairs])


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, the inverse of `data.images.energies.from_bytes`; any shape."""
    return ((images + 1.0) * 127.5).round().to(torch.uint8)


def tiled(images: Tensor) -> Tensor:
    """One picture (3, R (H + 1) - 1, M (W + 1) - 1) uint8 of images (R, M, C, H, W) uint8, with white lines between."""
    rows, columns, _, height, width = images.shape
    picture = torch.full((3, rows * (height + 1), columns * (width + 1)), 255, dtype=torch.uint8)
    cells = picture.reshape(3, rows, height + 1, columns, width + 1)  # a view
    cells[:, :, :height, :, :width] = images.expand(-1, -1, 3, -1, -1).permute(2, 0, 3, 1, 4)
    return picture[:, :-1, :-1]


def write_picture(path: Path, images: Tensor) -> None:
    """Write images (N, C, H, W) uint8 as one nearly square grid, a PNG file."""
    from PIL import Image

    columns = math.isqrt(len(images) - 1) + 1
    rows = -(-len(images) // columns)
    missing = images.new_full((rows * columns - len(images), *images.shape[1:]), 255)
    grid = tiled(torch.cat([images, missing]).reshape(rows, columns, *images.shape[1:]))
    with written_aside(path) as file:
        Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy()).save(file, format="png")


def write_array(path: Path, images: Tensor) -> None:
    """Write images (N, C, H, W) uint8 as the array `images` of an NPZ file."""
    with written_aside(path) as file:
        np.savez_compressed(file, images=images.numpy())


WRITERS: dict[str, Callable[[Path, Tensor], None]] = {".png": write_picture, ".npz": write_array}
