"""AntMaze and Maze2D compared with D4RL's own model files: compiled fields and trajectories of 1,000 steps.

    pip download d4rl==1.1 --no-deps && unzip d4rl-1.1-py3-none-any.whl   # d4rl is not imported
    python benchmarks/maze_physics.py --d4rl d4rl --output report/maze-physics.json

D4RL's models are built by D4RL's own files and stepped by the rules of its environments; those of `cepdiff.envs` are
stepped through `step`. Both have the capsules, margins and contact softness of the MuJoCo that recorded the data; how
much one step changes if current MuJoCo takes D4RL's file unchanged is reported too. `--golden FOLDER` writes the
numbers that the tests use, `--models FOLDER` the models that `maze_recorder.py` steps under an older MuJoCo.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from cepdiff.envs.antmaze import AntMaze
from cepdiff.envs.capsules import compile_with_cylindrical_capsules
from cepdiff.envs.contacts import margins_add
from cepdiff.envs.layouts import ANTMAZE_LAYOUTS, MAZE2D_LAYOUTS
from cepdiff.envs.maze2d import Maze2D

Array = NDArray[np.float64]

STEPS = 1000
# D4RL's names of the layouts of its registered environments.
ANTMAZE_NAMES = {
    "umaze": "U_MAZE_TEST",
    "medium": "BIG_MAZE_TEST",
    "large": "HARDEST_MAZE_TEST",
    "eval-umaze": "U_MAZE_EVAL_TEST",
    "eval-medium": "BIG_MAZE_EVAL_TEST",
    "eval-large": "HARDEST_MAZE_EVAL_TEST",
}
MAZE2D_NAMES = {
    "open": "OPEN",
    "umaze": "U_MAZE",
    "medium": "MEDIUM_MAZE",
    "large": "LARGE_MAZE",
    "eval-umaze": "U_MAZE_EVAL",
    "eval-medium": "MEDIUM_MAZE_EVAL",
    "eval-large": "LARGE_MAZE_EVAL",
}
_DYNAMICS = ("qpos", "body_", "jnt_", "dof_", "geom_", "pair_", "exclude_", "eq_", "tendon_", "actuator_")
_LOOKS = ("_rgba", "_matid", "_group", "_user")
# Fields that model files set, with names known to all versions of MuJoCo: those of the golden numbers.
# fmt: off
GOLDEN_FIELDS = (
    "opt.timestep", "opt.gravity", "opt.integrator", "opt.iterations",
    "qpos0",
    "body_mass", "body_inertia", "body_pos", "body_quat", "body_ipos", "body_parentid",
    "jnt_type", "jnt_bodyid", "jnt_pos", "jnt_axis", "jnt_limited", "jnt_range", "jnt_margin", "jnt_stiffness",
    "jnt_solref", "jnt_solimp",
    "dof_armature", "dof_damping", "dof_frictionloss", "dof_invweight0",
    "geom_type", "geom_bodyid", "geom_contype", "geom_conaffinity", "geom_condim", "geom_pos", "geom_quat",
    "geom_size", "geom_friction", "geom_solref", "geom_solimp", "geom_solmix", "geom_margin", "geom_gap",
    "geom_priority",
    "actuator_trnid", "actuator_trntype", "actuator_gear", "actuator_gainprm", "actuator_biasprm",
    "actuator_ctrllimited", "actuator_ctrlrange", "actuator_forcelimited",
)
# fmt: on


class Case(NamedTuple):
    """One layout: D4RL's model file and the model of the recorded physics, our environment, and where both start."""

    name: str
    xml: str
    theirs: mujoco.MjModel
    env: AntMaze | Maze2D
    start: Array


def definitions(file: Path, **known: Any) -> dict[str, Any]:
    """Names defined by the top-level assignments and functions of a source file, without imports and classes."""
    statements = ast.parse(file.read_text()).body
    kept: list[ast.stmt] = [node for node in statements if isinstance(node, ast.Assign | ast.FunctionDef)]
    exec(compile(ast.Module(kept, []), str(file), "exec"), known)
    return known


def their_antmaze_xml(folder: Path, layout: str) -> str:
    """D4RL's ant with a box for each wall: 4 m wide and 2 m high, the start cell at the origin, x along the columns."""
    grid = definitions(folder / "locomotion" / "maze_env.py")[ANTMAZE_NAMES[layout]]
    tree = ET.parse(folder / "locomotion" / "assets" / "ant.xml")
    world = tree.find(".//worldbody")
    assert world is not None
    cells = {(i, j): cell for i, row in enumerate(grid) for j, cell in enumerate(row)}
    start = next(at for at, cell in cells.items() if cell == "r")
    for (i, j), cell in cells.items():
        if cell == 1:
            position = f"{(j - start[1]) * 4.0:f} {(i - start[0]) * 4.0:f} 1.0"
            box = {"type": "box", "pos": position, "size": "2.0 2.0 1.0", "contype": "1", "conaffinity": "1"}
            ET.SubElement(world, "geom", box)
    return ET.tostring(tree.getroot(), encoding="unicode")


def their_maze2d_xml(folder: Path, layout: str) -> str:
    """XML from D4RL's own builder of Maze2D models."""
    spec = importlib.util.spec_from_file_location("dynamic_mjc", folder / "pointmaze" / "dynamic_mjc.py")
    assert spec is not None
    assert spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    source = definitions(folder / "pointmaze" / "maze_model.py", np=np, MJCModel=builder.MJCModel)
    with source["point_maze"](source[MAZE2D_NAMES[layout]]).asfile() as file:
        return str(file.read())


def recorded_model(xml: str) -> mujoco.MjModel:
    """Compile a model of D4RL with the physics of the MuJoCo that recorded its data."""
    model = compile_with_cylindrical_capsules(mujoco.MjSpec.from_string(xml))
    if margins_add():
        model.geom_margin /= 2
        model.body_margin /= 2
    if model.nq == 2:
        model.body_invweight0[1, 0] = 2 / 3 / model.body_mass[1]
    return model


def cases(folder: Path) -> Iterator[Case]:
    """All layouts. The ant starts with two feet at the walls of its first cell, the ball in the goal cell."""
    for layout in ANTMAZE_LAYOUTS:
        ant = AntMaze(layout)
        start = np.concatenate([ant.init_qpos, ant.init_qvel])
        start[:2] = ant.layout.xy(ant.layout.cells("S")[0]) - 1.1
        xml = their_antmaze_xml(folder, layout)
        yield Case(f"antmaze-{layout}", xml, recorded_model(xml), ant, start)
    for layout in MAZE2D_LAYOUTS:
        ball = Maze2D(layout)
        xml = their_maze2d_xml(folder, layout)
        yield Case(f"maze2d-{layout}", xml, recorded_model(xml), ball, np.append(ball.goal, [0.0, 0.0]))


def field(model: mujoco.MjModel, name: str) -> Array:
    """A compiled field as flat numbers; `opt.` names one of the options."""
    owner, _, attribute = name.rpartition(".")
    return np.asarray(getattr(getattr(model, owner) if owner else model, attribute), dtype=np.float64).reshape(-1)


def driving_fields(model: mujoco.MjModel) -> list[str]:
    """Options and fields that can affect the dynamics: bodies, joints, geoms and actuators, but not their looks."""
    options = [f"opt.{name}" for name in dir(model.opt) if not name.startswith("_")]
    arrays = [name for name in dir(model) if name.startswith(_DYNAMICS) and not name.endswith(_LOOKS)]
    return options + arrays


def field_differences(theirs: mujoco.MjModel, ours: mujoco.MjModel) -> dict[str, float]:
    """Largest absolute difference of each driving field; infinite if the sizes differ."""
    found = {}
    for name in driving_fields(theirs):
        left, right = field(theirs, name), field(ours, name)
        found[name] = float(np.abs(left - right).max(initial=0.0)) if left.shape == right.shape else float("inf")
    return found


def actions_of(name: str, size: int) -> NDArray[np.float32]:
    """Actions (1000, size) of a layout: each held for 1 to 20 steps, some beyond ±1."""
    generator = np.random.default_rng([ord(letter) for letter in name])
    held = np.repeat(generator.uniform(-1.2, 1.2, (STEPS, size)), generator.integers(1, 21, STEPS), axis=0)
    return held[:STEPS].astype(np.float32)


def their_step(model: mujoco.MjModel, data: mujoco.MjData, action: NDArray[np.float32]) -> None:
    """One step by the rules of D4RL's environment for this model."""
    if model.nu == 8:
        # Scaled to torques in this order of operations: other roundings grow to 1 in 1,000 steps.
        data.ctrl[:] = np.clip((action + 1) * 0.5 * 60 - 30, -30, 30)
        for _ in range(5):
            mujoco.mj_step(model, data)
    else:
        data.qvel[:] = np.clip(data.qvel, -5.0, 5.0)
        mujoco.mj_forward(model, data)
        data.ctrl[:] = np.clip(action, -1, 1)
        mujoco.mj_step(model, data)


def their_trajectory(case: Case, actions: NDArray[np.float32]) -> tuple[Array, int]:
    """States (1001, nq + nv), and the number of steps that end in contact with a wall."""
    model, data = case.theirs, mujoco.MjData(case.theirs)
    data.qpos[:], data.qvel[:] = np.split(case.start, [model.nq])
    mujoco.mj_forward(model, data)
    states, touching = [case.start], 0
    for action in actions:
        their_step(model, data, action)
        states.append(np.concatenate([data.qpos, data.qvel]))
        geoms = data.contact.geom.reshape(-1)
        # The world's first geom is the floor, its others are walls.
        touching += bool(((model.geom_bodyid[geoms] == 0) & (geoms > 0)).any())
    return np.array(states), touching


def our_trajectory(case: Case, actions: NDArray[np.float32]) -> Array:
    """States (1001, nq + nv) from the environment's `step`."""
    env = case.env
    env.reset(seed=0)
    mujoco.mj_resetData(env.model, env.data)  # the solver warm-starts: forget the reset's result
    env.set_state(*np.split(case.start, [env.model.nq]))
    states = [case.start]
    for action in actions:
        env.step(action)
        states.append(np.concatenate([env.data.qpos, env.data.qvel]))
    return np.array(states)


def one_step(model: mujoco.MjModel, state: Array, action: NDArray[np.float32]) -> Array:
    """The state after one step from `state`, (nq + nv,)."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = np.split(state, [model.nq])
    mujoco.mj_forward(model, data)
    their_step(model, data, action)
    return np.concatenate([data.qpos, data.qvel])


def effect_of_versions(case: Case, states: Array, actions: NDArray[np.float32]) -> Array:
    """Largest deviation (T,) of one step from each of `states` if current MuJoCo takes D4RL's file unchanged."""
    today = mujoco.MjModel.from_xml_string(case.xml)
    return np.array(
        [
            np.abs(one_step(today, state, action) - one_step(case.theirs, state, action)).max()
            for state, action in zip(states, actions, strict=True)
        ]
    )


def compare(case: Case) -> dict[str, Any]:
    """All comparisons for one layout."""
    differences = field_differences(case.theirs, case.env.model)
    actions = actions_of(case.name, case.env.model.nu)
    theirs, touching = their_trajectory(case, actions)
    ours = our_trajectory(case, actions)
    effect = effect_of_versions(case, theirs[:-1:5], actions[::5])
    return {
        "fields": len(differences),
        "unequal_fields": {name: value for name, value in differences.items() if value},
        "trajectory_difference": float(np.abs(theirs - ours).max()),
        "way": float(np.linalg.norm(np.diff(theirs[:, :2], axis=0), axis=1).sum()),
        "steps_at_walls": touching,
        "effect_of_versions": {"median": float(np.median(effect)), "max": float(effect.max())},
    }


def write_golden(folder: Path, compared: list[Case]) -> None:
    """Fields and every 100th state of D4RL's own models, one file per family."""
    for family in ("antmaze", "maze2d"):
        numbers: dict[str, Any] = {"fields": np.array(GOLDEN_FIELDS), "mujoco": np.array(mujoco.__version__)}
        for case in compared:
            if case.name.startswith(family):
                states, _ = their_trajectory(case, actions_of(case.name, case.theirs.nu))
                fields = [field(case.theirs, name) for name in GOLDEN_FIELDS]
                numbers[f"{case.name}/sizes"] = np.array([len(values) for values in fields])
                numbers[f"{case.name}/values"] = np.concatenate(fields)
                numbers[f"{case.name}/states"] = states[::100]
        np.savez_compressed(folder / f"{family}.npz", **numbers)


def write_models(folder: Path, compared: list[Case]) -> None:
    """Write per layout D4RL's file, with its bodies' recorded inertias, and the start and actions."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in compared:
        root = ET.fromstring(case.xml)
        for attribute in ("inertiafromgeom", "coordinate"):
            root.find("compiler").attrib.pop(attribute, None)  # type: ignore[union-attr]
        # Bodies are numbered in the order of the file, from 1 on.
        for i, body in enumerate(root.iter("body"), start=1):
            numbers = {"mass": case.theirs.body_mass[i : i + 1], "pos": case.theirs.body_ipos[i]}
            numbers |= {"quat": case.theirs.body_iquat[i], "diaginertia": case.theirs.body_inertia[i]}
            inertial = ET.Element("inertial", {name: " ".join(map(repr, map(float, v))) for name, v in numbers.items()})
            body.insert(0, inertial)
        (folder / f"{case.name}.xml").write_text(ET.tostring(root, encoding="unicode"))
        np.savez(folder / f"{case.name}.npz", start=case.start, actions=actions_of(case.name, case.theirs.nu))


def main(arguments: list[str] | None = None) -> None:
    """Compare all layouts, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d4rl", type=Path, required=True, help="D4RL 1.1's package: holds locomotion/, pointmaze/")
    parser.add_argument("--output", type=Path, default=Path("report/maze-physics.json"))
    parser.add_argument("--golden", type=Path, help="folder for the numbers that the tests use")
    parser.add_argument("--models", type=Path, help="folder for the models that maze_recorder.py steps")
    args = parser.parse_args(arguments)
    if not (args.d4rl / "locomotion" / "assets" / "ant.xml").exists():
        parser.error(f"{args.d4rl} holds no locomotion/assets/ant.xml: expected the folder of D4RL's package")
    compared = list(cases(args.d4rl))
    found = {}
    head = f"max difference over {STEPS} steps"
    print(f"{'layout':20} fields unequal  {head}  path  steps at walls  versions: median, max")
    for case in compared:
        found[case.name] = row = compare(case)
        print(f"{case.name:20} {row['fields']:6} {len(row['unequal_fields']):7} {row['trajectory_difference']:32.1e} "
              f"{row['way']:5.0f} {row['steps_at_walls']:15}  {row['effect_of_versions']['median']:13.1e} "
              f"{row['effect_of_versions']['max']:.1e}", flush=True)  # fmt: skip
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"mujoco": mujoco.__version__, "steps": STEPS, "layouts": found}, indent=1))
    if args.models:
        write_models(args.models, compared)
    if args.golden:
        write_golden(args.golden, compared)


if __name__ == "__main__":
    main()
