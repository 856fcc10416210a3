"""The sampler that a run on images leaves behind: head and guidance scale in, images out; nothing unpickled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.components import build
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.heads import FunctionEnergy, HeadedLogits, sample_heads
from cepdiff.energy.objectives import EnergyObjective
from cepdiff.errors import ConfigError, RunError, nearest
from cepdiff.policy.recipe_file import PARTS, build_recipe, read_recipe, write_recipe
from cepdiff.randomness import generator

SAMPLER_FILE = "sampler.pt"


@dataclass(frozen=True)
class SamplerRecipe:
    """What a sampler's file says beside its weights; plain types only.

    Networks, objective, schedule and solver are `{"class_path": ..., "init_args": {...}}`. `energy_net` is None before
    the guidance stage, and where the function `energy` itself guides; that is then named here. `image_shape` is
    (C, H, W), `head_names` what the energies stand for, `sources` the folders where a user's own classes were found.
    """

    dataset: str
    image_shape: list[int]
    head_names: list[str]
    behavior_net: dict[str, Any]
    energy_net: dict[str, Any] | None
    energy: str | None
    objective: dict[str, Any]
    schedule: dict[str, Any]
    solver: dict[str, Any]
    scales: list[float]
    sources: list[str]


class ImageSampler:
    """Samples images of p_h(x) ∝ q(x) exp(-scale beta E_h(x)), one energy E_h a head.

    Args:
        image_shape: (C, H, W).
        head_names: one a head.
        eps_net: noise predictor of the prior q, on flat images (..., A).
        schedule: its forward process.
        solver: the sampler.
        energy_net: logits of all heads; None before the guidance stage.
        objective: what these logits were trained on, which says how they guide.
        device: where to compute.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        head_names: Sequence[str],
        eps_net: nn.Module,
        schedule: NoiseSchedule,
        solver: DPMSolver,
        energy_net: HeadedLogits | None,
        objective: EnergyObjective,
        device: torch.device | str = "cpu",
    ) -> None:
        self.image_shape = tuple(image_shape)
        self.head_names = tuple(head_names)
        self.device = torch.device(device)
        self.eps_net = eps_net.to(self.device).eval()
        self.energy_net = energy_net.to(self.device).eval() if isinstance(energy_net, nn.Module) else energy_net
        self.schedule = schedule
        self.solver = solver
        self.objective = objective
        self.recipe: SamplerRecipe | None = None

    def head_index(self, head: int | str) -> int:
        """Of a head's name or number, counted from 0; raises ConfigError where there is none."""
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
        """Images (num, C, H, W) uint8 on the CPU; scale 0 gives the prior, for which no head needs be named.

        Image i starts from noise that is a function of (seed, head, i): scales share it. `shown(done, num)` hears of
        each batch of `batch_size`.

        Raises:
            ConfigError: a head that is not there, or none where there are several; sizes below 1; a scale below 0.
            RunError: a scale other than 0 where there is no energy network.
        """
        for name, value in (("num", num), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        if head is None and guidance_scale != 0.0 and len(self.head_names) != 1:
            names = ", ".join(self.head_names[:12])
            raise ConfigError(f"which head shall guide? there are {len(self.head_names)}: {names}")
        index = 0 if head is None else self.head_index(head)
        parts, done = [], 0
        for part in self.batches(torch.full((num,), index), torch.arange(num), guidance_scale, seed, batch_size):
            parts.append(part.cpu())
            done += len(part)
            if shown is not None:
                shown(done, num)
        return torch.cat(parts)

    def batches(
        self, heads: Tensor, indices: Tensor, guidance_scale: float, seed: int, batch_size: int
    ) -> Iterator[Tensor]:
        """Images (B, C, H, W) uint8 on the device, `batch_size` at a time: those of `indices` (N,) of `heads` (N,)."""
        if not (guidance_scale >= 0.0 and math.isfinite(guidance_scale)):
            raise ConfigError(f"guidance_scale is {guidance_scale}; expected a finite number of 0 or more")
        if self.energy_net is None and guidance_scale != 0.0:
            raise RunError("this sampler has no energy network yet (the guidance stage is unfinished): use scale 0")
        for some, rows in zip(torch.split(heads, batch_size), torch.split(indices, batch_size), strict=True):
            yield self._images(some, rows, guidance_scale, seed)

    @torch.no_grad()
    def _images(self, heads: Tensor, indices: Tensor, guidance_scale: float, seed: int) -> Tensor:
        noise = start_noise(heads, indices, math.prod(self.image_shape), seed).to(self.device)
        samples = sample_heads(
            self.eps_net,
            self.energy_net or no_energy,
            self.objective,
            self.schedule,
            self.solver,
            noise,
            heads.to(self.device),
            torch.full((len(noise),), guidance_scale, device=self.device),
        )
        return to_bytes(samples).reshape(-1, *self.image_shape)  # (B, A) -> (B, C, H, W)

    def save(self, run_dir: Path, recipe: SamplerRecipe) -> None:
        """Writes `run_dir/sampler.pt`: the recipe and the weights, readable with `torch.load(weights_only=True)`."""
        energy_net = self.energy_net if isinstance(self.energy_net, nn.Module) else None
        write_recipe(run_dir / SAMPLER_FILE, recipe, {"behavior": self.eps_net, "energy": energy_net})

    @classmethod
    def from_run(
        cls, run_dir: str | Path, device: torch.device | str = "cpu", num_solver_steps: int | None = None
    ) -> ImageSampler:
        """The sampler of a run folder, or of the `sampler.pt` in one; `num_solver_steps` replaces the run's own.

        Raises:
            RunError: no sampler there, or a file that is not one.
        """
        path = Path(run_dir)
        path = path / SAMPLER_FILE if path.is_dir() else path
        recipe, weights = read_recipe(path, SamplerRecipe, "sampler")
        built = build_recipe(recipe, weights, (0, math.prod(recipe.image_shape)), path, num_solver_steps)
        abstract: Any = EnergyObjective
        objective: EnergyObjective = build(recipe.objective, abstract, "guidance.objective", parts=PARTS)
        energy_net: Any = built.energy_net
        if energy_net is None and recipe.energy is not None:
            from cepdiff.data.images.energies import find_energy  # with Lightning, which other samplers do without

            function = find_energy(recipe.energy)
            energy_net = FunctionEnergy(function, recipe.image_shape, objective.inverse_temperature)
        shape, names = recipe.image_shape, recipe.head_names
        sampler = cls(shape, names, built.eps_net, built.schedule, built.solver, energy_net, objective, device)
        sampler.recipe = recipe
        return sampler


def start_noise(heads: Tensor, indices: Tensor, size: int, seed: int) -> Tensor:
    """Standard normal (N, size) on the CPU, row by row a function of (seed, head, index)."""
    pairs = zip(heads.tolist(), indices.tolist(), strict=True)
    return torch.stack([torch.randn(size, generator=generator(seed, "image", *pair)) for pair in pairs])


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, the inverse of `data.image_energies.from_bytes`; any shape."""
    return ((images + 1.0) * 127.5).round().to(torch.uint8)


def no_energy(x: Tensor, t: Tensor, condition: None) -> Tensor:
    """Stands where there is no energy yet, and is never asked: at scale 0 alone."""
    raise RunError("there is no energy network yet: use scale 0")


def tiled(images: Tensor) -> Tensor:
    """One picture (3, R (H + 1) - 1, M (W + 1) - 1) uint8 of images (R, M, C, H, W) uint8, with white lines between."""
    rows, columns, _, height, width = images.shape
    picture = torch.full((3, rows * (height + 1), columns * (width + 1)), 255, dtype=torch.uint8)
    cells = picture.reshape(3, rows, height + 1, columns, width + 1)  # a view
    cells[:, :, :height, :, :width] = images.expand(-1, -1, 3, -1, -1).permute(2, 0, 3, 1, 4)
    return picture[:, :-1, :-1]
