"""Training of d3rlpy's algorithms for a given CPU time; runs in d3rlpy's environment, without cepdiff.

A run's folder has `policy_M.pt` (the deterministic policy after M minutes, as TorchScript), `state.pt` to resume from,
and `training.json`, which records what was trained and for how long.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import d3rlpy
import h5py
import numpy as np
import torch

CONFIGS: dict[str, Any] = {
    "TD3+BC": d3rlpy.algos.TD3PlusBCConfig,
    "IQL": d3rlpy.algos.IQLConfig,
    "BC": d3rlpy.algos.BCConfig,
}
BATCH_SIZE = 256  # the default of TD3+BC and IQL; BC's own is 100


def read_buffer(path: Path) -> Any:
    """A file in D4RL's layout as d3rlpy's dataset, without the steps after the last end of an episode."""
    if not path.is_file():
        raise SystemExit(f"there is no buffer {path}")
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    with h5py.File(path) as file:
        observations, actions, rewards, terminals, timeouts = (np.asarray(file[name]) for name in names)
    return d3rlpy.dataset.MDPDataset(
        observations.astype(np.float32),
        actions.astype(np.float32),
        rewards.astype(np.float32),
        terminals.astype(np.float32),
        (timeouts.astype(bool) & ~terminals.astype(bool)).astype(np.float32),
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
        action_size=actions.shape[1],
    )


def train(buffer: Any, dataset: str, algorithm: str, seed: int, minutes: Sequence[float], folder: Path) -> None:
    """Train until each of the `minutes` of the process's CPU time, with one thread; resumes the run in `folder`.

    Only the sampling of batches and the optimiser steps count, not reading or saving.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    d3rlpy.seed(seed)
    scaler = d3rlpy.preprocessing.StandardObservationScaler()
    algo = CONFIGS[algorithm](batch_size=BATCH_SIZE, observation_scaler=scaler).create(device="cpu")
    scaler.fit_with_transition_picker(buffer.episodes, buffer.transition_picker)
    algo.build_with_dataset(buffer)
    about = {"algorithm": algorithm, "dataset": dataset, "seed": seed, "batch_size": BATCH_SIZE}
    record: dict[str, Any] = {**about, "d3rlpy": d3rlpy.__version__, "torch": torch.__version__, "checkpoints": []}
    state = folder / "state.pt"
    if state.is_file():
        found = torch.load(state, weights_only=False)
        record = found["record"]
        algo.impl.load_model(io.BytesIO(found["model"]))
    done = record["checkpoints"]
    steps, cpu, wall = (done[-1][name] if done else 0 for name in ("steps", "cpu_seconds", "wall_seconds"))
    for target in sorted(minutes):
        if cpu >= 60 * target:
            continue
        # A fresh seed per checkpoint, so that a resumed run draws the same batches as one that was never stopped.
        d3rlpy.seed((1_000_003 * seed + steps) % 2**32)
        algo.set_grad_step(steps)
        cpu_start, wall_start = time.process_time() - cpu, time.perf_counter() - wall
        while cpu < 60 * target:
            algo.update(buffer.sample_transition_batch(BATCH_SIZE))
            steps += 1
            cpu = time.process_time() - cpu_start
        wall = time.perf_counter() - wall_start
        done.append({"minutes": target, "steps": steps, "cpu_seconds": cpu, "wall_seconds": wall})
        save(algo, record, folder)
        print(f"{dataset} {algorithm} seed {seed}: {target:g} min, {steps} steps, {wall:.0f} s elapsed", flush=True)


def save(algo: Any, record: dict[str, Any], folder: Path) -> None:
    """Write the checkpoint's policy, then the state, then the record, each to a temporary file that is renamed."""
    aside = folder / "aside.pt"
    algo.save_policy(str(aside))
    aside.replace(folder / f"policy_{record['checkpoints'][-1]['minutes']:g}.pt")
    model = io.BytesIO()
    algo.impl.save_model(model)
    torch.save({"record": record, "model": model.getvalue()}, aside)
    aside.replace(folder / "state.pt")
    aside.write_text(json.dumps(record, indent=1))
    aside.replace(folder / "training.json")


def train_all(args: Any) -> None:
    """Every algorithm on every buffer with every seed, one after the other."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: the budget is in minutes of one core")
    for dataset in args.datasets:
        buffer = read_buffer(args.data / f"{dataset}.hdf5")
        for algorithm in args.algorithms:
            for seed in args.seeds:
                train(buffer, dataset, algorithm, seed, args.minutes, args.output / dataset / algorithm / str(seed))
