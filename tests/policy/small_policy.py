"""A policy of small networks, and its recipe."""

from __future__ import annotations

from pathlib import Path

import torch

from cepdiff.diffusion.schedule import CosineVP
from cepdiff.diffusion.solver import DPMSolver
from cepdiff.energy.objectives import CEP, DPS
from cepdiff.networks.energy import EnergyMLP
from cepdiff.networks.score import MLPScore
from cepdiff.policy.guided import GuidedPolicy
from cepdiff.policy.recipe import POLICY_FILE, Recipe, write_recipe
from cepdiff.policy.sampler import GuidedSampler, SamplerParts
from cepdiff.types import DataSpec

S, A = 3, 2
LOW, HIGH = (-1.0, 2.0), (3.0, 2.5)
SPEC = DataSpec(S, A, LOW, HIGH, observation_mean=(1.0, -2.0, 0.0), observation_std=(2.0, 0.5, 1.0))
BEHAVIOR = {"class_path": "cepdiff.networks.score.MLPScore", "init_args": {"hidden": [16]}}
ENERGY = {"class_path": "cepdiff.networks.energy.EnergyMLP", "init_args": {"hidden": [16, 8]}}
RECIPE = Recipe(
    dataset="some-task",
    spec=SPEC.to_dict(),
    sampler={"class_path": "cepdiff.policy.sampler.GuidedSampler", "init_args": {}},
    networks={"behavior": BEHAVIOR, "energy": ENERGY},
    schedule={"class_path": "cepdiff.diffusion.schedule.CosineVP", "init_args": {"t_max": 0.9}},
    solver={"class_path": "cepdiff.diffusion.solver.DPMSolver", "init_args": {"num_steps": 5, "order": 1}},
    objective={"class_path": "cepdiff.energy.objectives.CEP", "init_args": {}},
    environment={"env_id": "Some-v0", "kwargs": {"a": 1}, "module": None, "reference": None, "episodes": 1},
    scales=[0.0, 1.0],
    sources=[],
)


def parts(energy: bool = True, on_clean: bool = False) -> SamplerParts:
    """Two small networks, the same on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eps_net = MLPScore(S, A, hidden=[16])
        energy_net = EnergyMLP(S, A, hidden=[16, 8]) if energy else None
        if energy_net is not None:  # strong enough for guided actions to reach the bounds
            energy_net.net.rest[-1].weight.data.mul_(100.0)
    networks = {"behavior": eps_net} | ({} if energy_net is None else {"energy": energy_net})
    objective = DPS() if on_clean else CEP()
    return SamplerParts(A, networks, CosineVP(t_max=0.9), DPMSolver(5, order=1), objective)


def make(energy: bool = True, spec: DataSpec = SPEC, on_clean: bool = False) -> GuidedPolicy:
    return GuidedPolicy(spec, GuidedSampler(parts(energy, on_clean)))


def save(policy: GuidedPolicy, folder: Path, recipe: Recipe = RECIPE) -> None:
    """Write a run's policy file."""
    write_recipe(folder / POLICY_FILE, recipe, policy.sampler.networks)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
