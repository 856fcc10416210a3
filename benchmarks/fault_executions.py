"""Run folders that name foreign code, which must not run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fault_cases import CANARY

Random = np.random.Generator
Damage = Callable[[Path, Path, Random], object]
"""Arguments: the run folder to damage, a folder with other runs, the random generator."""
EVIL = f"""
open({CANARY!r}, "w").close()
from cepdiff.networks.score import MLPScore
class Net(MLPScore):
    pass
"""


class Payload:
    """An object whose unpickling runs a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def executions() -> Iterator[tuple[str, Damage]]:
    """Files that name foreign code, which must not run."""
    for section in ("networks", "schedule", "solver", "objective", "sampler"):
        yield f"policy.pt names a module for {section}", partial(evil_policy, section)
    yield "policy.pt names a module of its environment", partial(evil_environment, {"module": "evil"})
    yield "policy.pt names an environment in a module", partial(evil_environment, {"env_id": "evil:Env-v0"})
    yield "results.json names a module", evil_results
    yield "a module beside the run", evil_file
    yield "the run's configuration names a module", evil_config
    yield "diagnostics.json is a pickle", pickled


def pickled(run: Path, shared: Path, rng: Random) -> None:
    """Put a pickle in place of JSON."""
    torch.save(Payload(), run / "diagnostics.json")


def evil_file(run: Path, shared: Path, rng: Random) -> None:
    """Put a module that is named like a library beside the run."""
    (run / "torch.py").write_text(EVIL)


def evil_module(run: Path) -> Path:
    """Make a folder with a module that leaves a trace when it is imported."""
    folder = run.parent / "foreign"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    return folder


def evil_policy(where: str, run: Path, shared: Path, rng: Random) -> None:
    """A policy file with a class of its own folder."""
    content = torch.load(run / "policy.pt", weights_only=True)
    recipe = content["recipe"]
    recipe["sources"] = [str(evil_module(run))]
    held = next(iter(recipe[where].values())) if where == "networks" else recipe[where]
    held["class_path"] = "evil.Net"
    torch.save(content, run / "policy.pt")


def evil_environment(changes: dict[str, str], run: Path, shared: Path, rng: Random) -> None:
    """A policy file with an environment in its own folder."""
    content = torch.load(run / "policy.pt", weights_only=True)
    content["recipe"]["sources"] = [str(evil_module(run))]
    content["recipe"]["environment"].update(changes)
    torch.save(content, run / "policy.pt")


def evil_results(run: Path, shared: Path, rng: Random) -> None:
    """Results of a problem in their own folder."""
    content = json.loads((run / "results.json").read_text())
    content.update(problem="evil.Net", sources=[str(evil_module(run))])
    (run / "results.json").write_text(json.dumps(content))


def evil_config(run: Path, shared: Path, rng: Random) -> None:
    """A run's configuration with a class beside it."""
    (run / "evil.py").write_text(EVIL)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("cepdiff.networks.score.MLPScore", "evil.Net"))
