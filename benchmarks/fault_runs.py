"""Damaged run folders: `fit`, `evaluate` and `report` must give the same numbers as before, or refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cepdiff.callbacks.checkpoint import AtomicCheckpointIO
from fault_cases import Case, Part, Verdict, call, chosen, random_of
from fault_executions import Damage, executions
from fault_run_table import STAGES, damages, nothing, stopped_damages
from fault_toy import write_toy

CONFIG = """
data: {{dataset: {file}, env_id: InvertedPendulum-v5, action_low: -3, action_high: 3, block_size: 5}}
behavior: {{net: {{class_path: cepdiff.networks.score.MLPScore, hidden: [8]}}, batch_size: 16}}
critic: {{net: {{hidden: [8]}}, batch_size: 16}}
guidance: {{net: {{hidden: [8]}}, batch_size: 16}}
solver: {{num_steps: 2}}
stages:
  behavior: {{max_steps: {steps}, checkpoint_every: 5}}
  support: {{num_actions: {actions}, chunk_size: 32}}
  critic: {{max_steps: {steps}, checkpoint_every: 5}}
  guidance: {{max_steps: {steps}, checkpoint_every: 5}}
evaluation: {{scales: [0, 1], episodes: 2}}
trainer: {{progress_bar: false}}
"""


def write_config(folder: Path, steps: int, actions: int = 3) -> Path:
    """Write a configuration whose whole run takes about two seconds, and its buffer."""
    buffer = folder / "buffer.hdf5"
    if not buffer.exists():
        rng = np.random.default_rng(1)
        rows = 120
        arrays = {
            "observations": rng.normal(size=(rows, 4)).astype(np.float32),
            "actions": rng.uniform(-3, 3, size=(rows, 1)).astype(np.float32),
            "rewards": rng.normal(size=rows).astype(np.float32),
            "terminals": np.arange(rows) % 10 == 9,
            "timeouts": np.zeros(rows, dtype=bool),
        }
        write_toy(buffer, arrays, env_id=None, action_low=None, action_high=None, horizon=None)
    path = folder / f"steps-{steps}-actions-{actions}.yaml"
    path.write_text(CONFIG.format(file=buffer, steps=steps, actions=actions))
    return path


def fingerprint(run: Path) -> dict[str, Any]:
    """The weights (as hashes) and results of a finished run, without times."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        state = torch.load(run / stage / "final.ckpt", weights_only=True)["state_dict"]
        found[stage] = digest(*(state[name].numpy().tobytes() for name in sorted(state)))
    found["support"] = digest(
        *(np.load(run / "support" / f"{name}.npy").tobytes() for name in ("state_ids", "actions"))
    )
    found["results"] = rows_of(run / "results.json")
    return found


def digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def rows_of(results: Path) -> Any:
    return json.loads(results.read_text())["rows"]


def made(*arguments: object) -> str:
    """Run a command that must succeed, and return its output."""
    called = call(*arguments)
    if called.kind != "valid":
        raise RuntimeError(called.detail)
    return called.out


def prepare(folder: Path) -> None:
    """Make a finished run, runs with another seed and another K, a run stopped in mid-stage, and their numbers."""
    config = write_config(folder, 20)
    made("fit", "--config", config, "--run_dir", folder / "run")
    made("fit", "--config", config, "--run_dir", folder / "seed", "--seed", 1)
    made("fit", "--config", write_config(folder, 20, actions=2), "--run_dir", folder / "fewer")
    pid = os.fork()
    if not pid:
        stop_in(config, folder / "stopped", "critic")
    os.waitpid(pid, 0)
    assert (folder / "stopped" / "critic" / "last.ckpt").exists()
    facts: dict[str, Any] = {"fit": fingerprint(folder / "run")}
    shutil.copytree(folder / "run", folder / "copy" / "run")
    made("evaluate", folder / "copy" / "run", "--episodes", 1)
    facts["evaluate"] = rows_of(folder / "copy" / "run" / "evaluation.json")
    facts["report"] = plain(made("report", folder / "copy" / "run", "--output", folder / "report"), folder / "copy")
    (folder / "facts.json").write_text(json.dumps(facts))


def stop_in(config: Path, run: Path, stage: str) -> None:
    """Fit until a stage's first checkpoint, then end like a killed process."""
    write = AtomicCheckpointIO.save_checkpoint

    def save(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        write(self, checkpoint, path, storage_options)
        if Path(path) == run / stage / "last.ckpt":
            os._exit(0)

    AtomicCheckpointIO.save_checkpoint = save  # type: ignore[method-assign]
    call("fit", "--config", config, "--run_dir", run)
    os._exit(1)


def plain(report: str, folder: Path) -> str:
    """A report without the paths of its files."""
    lines = [line for line in report.splitlines() if ".png" not in line and ".md" not in line and ".json" not in line]
    return "\n".join(lines).replace(str(folder), "")


def examine(shared: Path, name: str, base: str, damage: Damage, seed: int, index: int, place: Path) -> Verdict:
    """Run three commands, each on its own damaged copy."""
    facts = json.loads((shared / "facts.json").read_text())
    rng = partial(random_of, f"runs {name}", seed, index)
    verdicts = []
    for command in ("evaluate", "report", "fit") if base == "run" else ("fit",):
        run = place / command / "run"
        shutil.copytree(shared / base, run, symlinks=True)
        damage(run, shared, rng())
        verdicts.append(outcome(command, run, shared, facts))
        if verdicts[-1].bad:
            return verdicts[-1]
    refused = [verdict for verdict in verdicts if verdict.outcome == "line"]
    return refused[-1] if refused else Verdict("valid")


def outcome(command: str, run: Path, shared: Path, facts: dict[str, Any]) -> Verdict:
    """Run one command on one damaged folder."""
    arguments: dict[str, list[object]] = {
        "fit": ["fit", "--config", shared / "steps-20-actions-3.yaml", "--run_dir", run],
        "evaluate": ["evaluate", run, "--episodes", 1],
        "report": ["report", run, "--output", run.parent / "report"],
    }
    called = call(*arguments[command])
    if called.kind != "valid":
        return Verdict(called.kind, f"{command}: {called.detail}")
    if command == "fit":
        found: Any = fingerprint(run)
    elif command == "evaluate":
        found = rows_of(Path(called.out.rpartition("\nresults ")[2].splitlines()[0]))  # beside a file that is there
    else:
        found = plain(called.out, run.parent)
    if found == facts[command]:
        return Verdict("valid")
    wrong = [key for key in found if found[key] != facts[command][key]] if isinstance(found, dict) else ["numbers"]
    return Verdict("silent", f"{command}: other {', '.join(wrong)}")


def cases(folder: Path, seed: int, count: int) -> list[Case]:
    """The undamaged folders, then damaged ones in random order."""

    def case(name: str, base: str, damage: Damage, index: int) -> Case:
        return Case(f"{base}: {name}", partial(examine, folder, name, base, damage, seed, index))

    files = sorted(str(path.relative_to(folder / "run")) for path in (folder / "run").rglob("*") if path.is_file())
    files = [name for name in files if not name.startswith(("logs", ".lock")) and not name.endswith(".png")]
    pool = [case(name, "run", damage, index) for index, (name, damage) in enumerate(damages(files))]
    stopped = [case(name, "stopped", damage, index) for index, (name, damage) in enumerate(stopped_damages())]
    few = chosen("runs", stopped, seed, max(1, count // 10))
    foreign = [case(name, "run", damage, 0) for name, damage in executions()]
    few += chosen("runs", foreign, seed, max(2, count // 20))
    whole = case("unchanged", "run", nothing, 0)
    return [whole, *few, *chosen("runs", pool, seed, count - len(few) - 1)]


PART = Part("runs", 300, 12, 30, prepare, cases)
