"""D4RL's mazes under an older MuJoCo: steps the models of `maze_physics.py --models`; only needs numpy and mujoco.

python3.10 -m venv old && old/bin/pip install mujoco==2.2.0 "numpy<2"    # the oldest version on the package index
old/bin/python benchmarks/maze_recorder.py models tests/envs/golden/maze-mujoco-2.2.0.npz
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

LAYOUTS = ("antmaze-eval-umaze", "maze2d-umaze")


def main(models: Path, output: Path) -> None:
    """Write every tenth state, the action that follows, and the state after it."""
    numbers: dict[str, Any] = {"mujoco": np.array(mujoco.__version__)}
    for name in LAYOUTS:
        model = mujoco.MjModel.from_xml_path(str(models / f"{name}.xml"))
        data = mujoco.MjData(model)
        given = np.load(models / f"{name}.npz")
        data.qpos[:], data.qvel[:] = np.split(given["start"], [model.nq])
        states = [given["start"]]
        for action in given["actions"]:
            if model.nu == 2:
                data.qvel[:] = np.clip(data.qvel, -5.0, 5.0)
                mujoco.mj_forward(model, data)
                data.ctrl[:] = np.clip(action, -1, 1)
                mujoco.mj_step(model, data)
            else:
                data.ctrl[:] = np.clip((action + 1) * 0.5 * 60 - 30, -30, 30)
                for _ in range(5):
                    mujoco.mj_step(model, data)
            states.append(np.concatenate([data.qpos, data.qvel]))
        numbers[f"{name}/before"] = np.array(states[:-1:10])
        numbers[f"{name}/actions"] = given["actions"][::10]
        numbers[f"{name}/after"] = np.array(states[1::10])
    np.savez_compressed(output, **numbers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
