"""Error of samplers that choose among K candidates, with closed forms in place of networks.

    python benchmarks/resampling.py                                   # exact energy network, 8-D
    python benchmarks/resampling.py --energies doubled rough          # energy networks with a fault

The target at guidance scale s is a Gaussian mixture times exp(-s beta E), E quadratic; the critic is -E. `doubled`
multiplies the logits of the energy network by 2, `rough` adds waves to them. Distances (sliced Wasserstein-2) are
multiples of the noise floor, the distance between two exact samples. `energy` is the mean energy minus the exact one,
in exact standard deviations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cepdiff.diffusion.schedule import LinearVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.distances import noise_floor, sliced_wasserstein
from cepdiff.energy.objectives import CEP
from cepdiff.files import write_json
from cepdiff.policy.resampling import Resampled
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.randomness import generator
from closed_form import ClosedForm, GaussianMixture, QuadraticEnergy, exact_draws, problem

ROWS = 1 << 12  # candidates at a time, so that they stay in a core's cache
FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "exact": lambda f, x, alpha: f,
    "doubled": lambda f, x, alpha: 2.0 * f,
    "rough": lambda f, x, alpha: f + 0.5 * (10.0 * alpha * x).sin().sum(-1),
}
METHODS: dict[str, Callable[[SamplerParts, int], GuidedSampler]] = {
    "guided": lambda parts, k: GuidedSampler(parts),
    "resampled": lambda parts, k: Resampled(parts, "draw", k),
    "resampled, guided candidates": lambda parts, k: Resampled(parts, "draw", k, candidate_scale=1.0),
}


def within_bounds(exact: ClosedForm, factor: float = 4.0) -> tuple[GaussianMixture, QuadraticEnergy]:
    """The mixture shrunk by `factor`, so that the samplers' bounds of [-1, 1] do not cut it off, and its energy."""
    prior, energy = exact.prior, exact.energy
    return (
        GaussianMixture(prior.log_weights, prior.means / factor, prior.covariances / factor**2),
        QuadraticEnergy(energy.matrices * factor**2, energy.slopes * factor, energy.constants),
    )


class Exact(nn.Module):
    """A closed form in place of a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Tensor:
        return self.function(*args)


def parts(exact: ClosedForm, fault: str, num_solver_steps: int) -> SamplerParts:
    """Exact behavior and critic, and an energy network with a fault."""

    def logits(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return FAULTS[fault](exact.logits(x, t), x, exact.schedule.alpha(t))

    networks = {
        "behavior": Exact(exact.noise),
        "energy": Exact(logits),
        "critic": Exact(lambda condition, x: -exact.clean_energy(x).unsqueeze(0)),
    }
    solver = DPMSolver(num_solver_steps)
    return SamplerParts(exact.prior.size, networks, exact.schedule, solver, CEP(exact.inverse_temperature))


def samples_of(sampler: GuidedSampler, scale: float, count: int, candidates: int) -> tuple[Tensor, float | None]:
    """`count` samples in blocks, and the mean effective sample size."""
    draws = generator(0, "noise")
    found: list[Tensor] = []
    sizes: list[float] = []
    for rows in torch.split(torch.arange(count), max(1, ROWS // candidates)):
        noise = torch.randn(len(rows), sampler.noise_size, generator=draws, dtype=torch.float64)
        given = torch.empty(len(rows), 0, dtype=torch.float64), noise, torch.full((len(rows),), scale).double()
        found.append(sampler.sample(*given))
        if len(sizes) < 2 and (ess := sampler.effective_sample_size(*given)) is not None:
            sizes.append(float(ess.mean()))
    return torch.cat(found), sum(sizes) / len(sizes) if sizes else None


def records(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per dimension, scale, energy network, method and K."""
    for size in args.dims:
        prior, energy = within_bounds(problem(size, args.beta))
        exact = ClosedForm(prior, energy, args.beta, LinearVP())
        for scale in args.scales:
            target = ClosedForm(prior, energy, scale * args.beta, LinearVP())
            draw = exact_draws(target, args.samples)
            floor = noise_floor(sliced_wasserstein, draw, 4).mean
            energies = target.clean_energy(draw(99))
            for fault, method, count in ((f, m, k) for f in args.energies for m in args.methods for k in args.counts):
                if method == "guided" and count != args.counts[0]:
                    continue
                sampler = METHODS[method](parts(exact, fault, args.num_solver_steps), count)
                samples, ess = samples_of(sampler, scale, args.samples, count if method != "guided" else 1)
                distance = sum(float(sliced_wasserstein(samples, draw(i))) for i in range(2)) / 2
                excess = float((target.clean_energy(samples).mean() - energies.mean()) / energies.std())
                print(
                    f"{size:3d}-D  s {scale:4g}  {fault:8} {method:29} K {count:3d}  {distance / floor:6.2f} x floor"
                    f"  energy {excess:+6.2f}" + (f"  ESS {ess:5.1f}" if ess is not None else ""),
                    flush=True,
                )
                yield {
                    "size": size, "scale": scale, "energy_network": fault, "method": method, "count": count,
                    "multiple": distance / floor, "energy": excess, "effective_sample_size": ess,
                }  # fmt: skip


def main(arguments: Iterable[str] | None = None) -> None:
    """Print one line per record and write `resampling.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="+", type=int, default=[8])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--beta", type=float, default=3.0, help="inverse temperature of the energy network")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="K")
    parser.add_argument("--energies", nargs="+", choices=list(FAULTS), default=["exact"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--num_solver_steps", type=int, default=15)
    parser.add_argument("--samples", type=int, default=1000, help="samples to compare with exact ones")
    parser.add_argument("--output", type=Path, default=Path("report"))
    args = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    found: list[dict[str, Any]] = []
    for record in records(args):
        found.append(record)
        write_json(args.output / "resampling.json", {"settings": settings, "records": found})


if __name__ == "__main__":
    main()
