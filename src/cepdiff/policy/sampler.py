"""The guided sampler: the one place where noise predictor, energy, schedule, solver and bounds meet."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from cepdiff.diffusion.guidance import predicted_data_logits
from cepdiff.diffusion.sampling import sample_guided
from cepdiff.diffusion.schedule import NoiseSchedule
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.heads import head_guidance, head_prior
from cepdiff.energy.objectives import CEP, EnergyObjective
from cepdiff.errors import RunError
from cepdiff.networks.tempered import Tempered, at_scale, with_scale, without_scale
from cepdiff.types import EnergyLogits, NoisePredictor

S = TypeVar("S", bound="GuidedSampler")


@dataclass(frozen=True)
class SamplerParts:
    """The parts of a sampler.

    Args:
        size: A, of one sample.
        networks: by name: "behavior" (the noise predictor) and, once they are trained, "energy" and "critic".
        schedule: the forward process.
        solver: of the diffusion ODE.
        objective: what "energy" was trained on; None is `CEP()`.
        headed: "energy" has heads; a row's condition is then (1,), the index of its head.
        energy_unit: unit of the energies that "energy" was trained on: they are minus Q of "critic" divided by it.
        deviations: how the values of "critic" become one, see `energy.bellman.lower_bound`.
    """

    size: int
    networks: Mapping[str, nn.Module]
    schedule: NoiseSchedule
    solver: DPMSolver
    objective: EnergyObjective | None = None
    headed: bool = False
    energy_unit: float = 1.0
    deviations: float | None = None


class Networks(dict[str, nn.Module]):
    """Networks by name; one that is asked for before it was trained is a RunError."""

    def __missing__(self, name: str) -> nn.Module:
        raise RunError(f"there is no network '{name}' yet: its stage is unfinished")


class GuidedSampler:
    """Samples in [-1, 1] of p(x|s) ∝ q(x|s) exp(-scale beta E(x, s)) by guided diffusion (Lu et al. 2023, Eq. 8).

    To sample in another way, override `sample`, and name the class under `sampler:`. A subclass adds options as
    arguments after `parts`; policy files keep its class and options.
    """

    supplied: ClassVar[frozenset[str]] = frozenset({"parts"})
    needs: ClassVar[tuple[str, ...]] = ("behavior", "energy")
    """Networks to use, of those there are; policy files keep these."""

    def __init__(self, parts: SamplerParts) -> None:
        self.size = parts.size
        self.networks = Networks({name: net.eval() for name, net in parts.networks.items() if name in self.needs})
        self.schedule = parts.schedule
        self.solver = parts.solver
        self.objective = parts.objective or CEP()
        self.headed = parts.headed
        self.energy_unit = parts.energy_unit
        self.deviations = parts.deviations
        # The largest guidance scale to sample at.
        self.max_scale = math.inf if self.tempered is None else self.tempered.highest_scale

    @property
    def noise_size(self) -> int:
        """Standard normal numbers per sample: A, unless a subclass draws more."""
        return self.size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next((p.device for net in self.networks.values() for p in net.parameters()), torch.device("cpu"))

    @property
    def has_energy(self) -> bool:
        """True if the samples can be guided."""
        return "energy" in self.networks

    @property
    def logits(self) -> EnergyLogits | None:
        """The function whose gradient guides at scale 1: the energy network, or its value at the predicted sample."""
        found = self._logits() if self.has_energy else None
        return at_scale(found, 1.0) if found is not None and self.tempered else found

    @property
    def tempered(self) -> Tempered | None:
        """The energy network if it takes the guidance scale as an input; the scale does not multiply its gradient."""
        energy = self.networks.get("energy")
        return energy if isinstance(energy, Tempered) else None

    def _logits(self) -> EnergyLogits:
        """As `logits`, but for a `Tempered` network conditions end with the scale."""
        behavior, energy = self.networks["behavior"], self.networks["energy"]
        if self.headed:
            return head_guidance(behavior, energy, self.objective, self.schedule)
        if not self.objective.on_clean:
            return energy
        return predicted_data_logits(energy, without_scale(behavior) if self.tempered else behavior, self.schedule)

    def require_energy(self, guidance_scale: float | Tensor) -> None:
        """Raise RunError for a scale other than 0 if nothing can guide, or an error for a scale above `max_scale`."""
        scale = torch.as_tensor(guidance_scale)
        if not self.has_energy and bool((scale != 0).any()):
            raise RunError("there is no energy network yet (the guidance stage is unfinished): use scale 0")
        if self.tempered is not None:
            self.tempered.check_scales([float(scale.max())] if scale.numel() else [])
        elif self.max_scale < math.inf and bool((scale > self.max_scale).any()):
            raise RunError(
                f"guidance scale {float(scale.max()):g} is above {self.max_scale:g}, the largest that the one-step "
                "network was trained at: use a smaller one, or the run's own sampler"
            )

    def on(self: S, device: torch.device | str) -> S:
        """This sampler on another device; networks are copied, unless they are there already."""
        if torch.device(device) == self.device:
            return self
        moved = copy.deepcopy(self)
        for net in moved.networks.values():
            net.to(device)
        return moved

    def sample(
        self, condition: Tensor, noise: Tensor, guidance_scale: Tensor | None = None, *, static: bool = False
    ) -> Tensor:
        """Samples (..., A) from standard normal `noise` (..., `noise_size`), given `condition` (..., S).

        With guidance all have one batch axis, and `guidance_scale` is (B,). Without guidance (None) or with `static`,
        leading axes broadcast. `static` makes the sequence of operators independent of the values, for capture and
        export: gradients are computed at scale 0 too. An override without `static` runs operator by operator only.
        """
        behavior: NoisePredictor = self.networks["behavior"]
        eps_net = head_prior(behavior) if self.headed else behavior
        logits = self._logits() if guidance_scale is not None and self.has_energy else None
        if guidance_scale is not None and self.tempered:  # the scale is an input and multiplies nothing
            eps_net, condition = without_scale(behavior), with_scale(condition, guidance_scale)
            guidance_scale = (guidance_scale != 0).to(guidance_scale.dtype)
        with torch.no_grad():
            return sample_guided(
                eps_net,
                self.schedule,
                self.solver,
                condition,
                noise,
                logits=logits,
                guidance_scale=guidance_scale,
                data_bound=1.0,
                guide_every_row=static,
            )

    def effective_sample_size(self, condition: Tensor, noise: Tensor, guidance_scale: Tensor) -> Tensor | None:
        """Effective number of weighted candidates (...) of each sample, arguments as in `sample`.

        None for samplers without weighted candidates.
        """
        return None


def is_static(sample: Callable[..., Tensor]) -> bool:
    """True if this `sample` can be captured and exported: it takes `static`."""
    return "static" in inspect.signature(sample).parameters
