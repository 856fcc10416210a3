"""Adroit and Kitchen compared with D4RL's own model files: compiled fields and trajectories of 200 steps.

    pip download d4rl==1.1 --no-deps && unzip d4rl-1.1-py3-none-any.whl   # d4rl is not imported
    python benchmarks/robot_physics.py --d4rl d4rl --output report/robot-physics.json

Compares D4RL's files and gymnasium-robotics' files under these environments' control, both in current MuJoCo. An old
MuJoCo reads D4RL's files unchanged; its trajectories show what has changed since:

    python3.8 -m pip install mujoco==2.2.0 numpy
    python3.8 benchmarks/robot_physics.py --d4rl d4rl --record recorded.json    # without cepdiff
    python benchmarks/robot_physics.py --d4rl d4rl --recorded recorded.json

Actions are sines of different periods; positions start at the model's own. Current MuJoCo reads D4RL's files after two
changes, made in a copy: Adroit without the attribute `apirate` (of a removed API), Kitchen with the kettle's defaults
inside a top-level default, as current syntax requires.

    python benchmarks/robot_physics.py --random    # a minute; needs no file of D4RL's

Plays the 100 episodes of a random policy whose mean return is D4RL's score 0, as `generate_ref_min_score.py` in D4RL's
repository does: uniform actions and the environment's scenes, from gym's generators of seed 0. A second run changes
every action by 1e-4, to show how much a mean depends on small differences in physics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator  # noqa: UP035 - recording runs in old Pythons

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOMENTS = (1, 2, 5, 10, 20, 50, 100, 200)
ADROIT = ("pen", "door", "hammer", "relocate")
KITCHEN = "kitchen/adept_envs/franka/assets/franka_kitchen_jntpos_act_ab.xml"
# D4RL's start and controller limits of Kitchen, repeated because an old Python cannot import cepdiff.
# fmt: off
KITCHEN_START = [
    1.48388023e-01, -1.76848573e+00, 1.84390296e+00, -2.47685760e+00, 2.60252026e-01, 7.12533105e-01, 1.59515394e+00,
    4.79267505e-02, 3.71350919e-02, -2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06,
    -4.22629655e-05, 6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04, -4.65501369e-04, -6.44129196e-03,
    -1.77048263e-03, 1.08009684e-03, -2.69397440e-01, 3.50383255e-01, 1.61944683e+00, 1.00618764e+00, 4.06395120e-03,
    -6.62095997e-03, -2.68278933e-04,
]
# fmt: on
LOWEST = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
HIGHEST = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
_DYNAMICS = ("qpos", "body_", "jnt_", "dof_", "geom_", "pair_", "exclude_", "eq_", "tendon_", "wrap_", "actuator_")
_LOOKS = ("_rgba", "_matid", "_group", "_user", "adr", "id", "_sameframe", "_bvhnum", "_plugin")


def actions(step: int, size: int) -> Array:
    """Actions (size,) in [-0.9, 0.9] at a step."""
    joint = np.arange(size)
    return 0.9 * np.sin(0.11 * step * (1 + joint / size) + joint)


def trajectory(model: Any, task: str) -> Array:
    """qpos (len(MOMENTS), nq) under `actions`, controlled as D4RL's environments do, Kitchen without noise."""
    data = mujoco.MjData(model)
    kitchen = task == "kitchen"
    low, high = model.actuator_ctrlrange.T
    if kitchen:
        data.qpos[:] = KITCHEN_START
    mujoco.mj_forward(model, data)
    states = []
    for step in range(MOMENTS[-1]):
        action = actions(step, model.nu)
        if kitchen:
            data.ctrl[:] = np.clip(data.qpos[: model.nu] + 2.0 * action * 0.08, LOWEST, HIGHEST)
        else:
            data.ctrl[:] = (low + high) / 2 + action * (high - low) / 2
        for _ in range(40 if kitchen else 5):
            mujoco.mj_step(model, data)
        if step + 1 in MOMENTS:
            states.append(data.qpos.copy())
    return np.array(states)


def model_of(package: Path, task: str) -> Path:
    """D4RL's file of a task."""
    return package / KITCHEN if task == "kitchen" else package / f"hand_manipulation_suite/assets/DAPG_{task}.xml"


def soften(model: Any) -> Any:
    """Change the wrist and finger actuators as D4RL does."""
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nu)]
    for first, last, stiffness in (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0)):
        group = slice(names.index(first), names.index(last) + 1)
        model.actuator_gainprm[group, :3] = (stiffness, 0, 0)
        model.actuator_biasprm[group, :3] = (0, -stiffness, 0)
    return model


def plain(path: Path, task: str) -> Any:
    """Compile a file with this MuJoCo and D4RL's actuators."""
    model = mujoco.MjModel.from_xml_path(str(path))
    return model if task == "kitchen" else soften(model)


def readable_copy(package: Path, folder: Path) -> Path:
    """Copy D4RL's files, changed so that current MuJoCo reads them."""
    for part in ("hand_manipulation_suite", "kitchen"):
        shutil.copytree(package / part, folder / part)
    hand = folder / "hand_manipulation_suite/assets/DAPG_assets.xml"
    hand.write_text(hand.read_text().replace('apirate="200"', ""))
    kettle = folder / "kitchen/adept_models/kitchen/assets/kettle_asset.xml"
    before, inside = kettle.read_text().split('<default class="kettle">')
    inside, after = inside.rsplit("</default>", 1)
    kettle.write_text(f'{before}<default><default class="kettle">{inside}</default></default>{after}')
    return folder


def differences(ours: Any, theirs: Any) -> Iterator[dict[str, Any]]:
    """Fields that affect the dynamics and are not bitwise equal: name, largest difference, count."""
    names = [n for n in dir(theirs) if n.startswith(_DYNAMICS) and not n.endswith(_LOOKS)]
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in names]
    options = [n for n in dir(theirs.opt) if not n.startswith("_")]
    pairs += [(f"opt.{name}", getattr(ours.opt, name), getattr(theirs.opt, name)) for name in options]
    for name, one, other in pairs:
        if not isinstance(other, (np.ndarray, int, float)):
            continue
        one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
        if one.shape != other.shape:
            yield {"field": name, "shapes": [list(one.shape), list(other.shape)]}
        elif not np.array_equal(one, other):
            apart = np.abs(one - other)
            yield {"field": name, "largest": float(apart.max()), "count": int((apart > 0).sum())}


def without_tracker(path: Path) -> Any:
    """D4RL's kitchen without its mocap body, which touches nothing, so that bodies and geoms align."""
    spec = mujoco.MjSpec.from_file(str(path))
    for weld in spec.equalities:
        if "vive_controller" in (weld.name1, weld.name2):
            spec.delete(weld)
    spec.delete(spec.body("vive_controller"))
    spec.delete(spec.site("target"))
    return spec


def compare(package: Path, recorded: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One record per task: fields and trajectories of D4RL's and gymnasium-robotics' files."""
    from cepdiff.envs.adroit import adroit_model
    from cepdiff.envs.kitchen import kitchen_model
    from cepdiff.envs.robots import model_file

    for task in (*ADROIT, "kitchen"):
        kitchen = task == "kitchen"
        file = "kitchen_franka/kitchen_assets/kitchen_env_model.xml" if kitchen else f"adroit_hand/adroit_{task}.xml"
        asset = model_file(file)
        theirs = without_tracker(model_of(package, task)).compile() if kitchen else plain(model_of(package, task), task)
        packaged = plain(asset, task)
        restored = (kitchen_model if kitchen else adroit_model)(str(asset))
        path = trajectory(theirs, task)
        others = {"package, as it is": (path, trajectory(packaged, task))}
        if task in recorded:
            old = np.array(recorded[task])
            others["recorded, D4RL's file today"] = (old, path)
            others["recorded, cepdiff"] = (old, trajectory(restored, task))
        yield {
            "task": task,
            "fields": list(differences(packaged, theirs)),
            "trajectories": {name: deviation(*pair) for name, pair in others.items()},
        }


def deviation(one: Array, other: Array) -> dict[int, float]:
    """Largest deviation of any coordinate of qpos, by number of steps."""
    return dict(zip(MOMENTS, np.abs(one - other).max(axis=1).tolist()))  # noqa: B905 - `strict` needs Python 3.10


def gym_generator(seed: int) -> np.random.RandomState:
    """The generator of `gym.utils.seeding.np_random(seed)` up to gym 0.21: MT19937 seeded by a hash of `seed`."""
    hashed = hashlib.sha512(str(seed).encode()).digest()[:8]
    return np.random.RandomState(np.frombuffer(hashed, "<u4").astype(np.uint32))


def random_returns(task: str, episodes: int = 100, noise: float = 0.0) -> Array:
    """Returns (episodes,) of D4RL's random policy in our environment; each action changes by `noise` times a normal."""
    import gymnasium

    import cepdiff.envs  # noqa: F401 - registers them

    env = gymnasium.make(f"cepdiff/{task}-v0")
    generator, disturbance = gym_generator(0), np.random.default_rng(0)
    env.reset(seed=0)
    env.unwrapped.np_random = gym_generator(0)  # type: ignore[assignment]
    returns = np.zeros(episodes)
    for episode in range(episodes):
        env.reset()
        over = False
        while not over:
            action = generator.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
            changed = action + noise * disturbance.standard_normal(action.shape)
            _, reward, terminated, truncated, _ = env.step(changed)
            returns[episode] += float(reward)
            over = terminated or truncated
    env.close()
    return returns


def compare_random() -> Iterator[dict[str, Any]]:
    """One record per Adroit task: D4RL's score 0 and ours, its standard error, and the mean with changed actions."""
    from cepdiff.data.rl.tasks import TASKS

    for task in ADROIT:
        returns = random_returns(task)
        record = {
            "task": task,
            "D4RL": TASKS[f"{task}-human-v1"].reference_min,
            "here": float(returns.mean()),
            "standard error": float(returns.std(ddof=1) / len(returns) ** 0.5),
            "median": float(np.median(returns)),
            "actions changed by 1e-4": float(random_returns(task, noise=1e-4).mean()),
        }
        print("  ".join(f"{name} {value:.6f}" if name != "task" else f"{value:8}" for name, value in record.items()))
        yield record


def show(record: dict[str, Any]) -> None:
    """Print one task's part of the table."""
    print(f"\n{record['task']}: {len(record['fields'])} fields of gymnasium-robotics' model differ from D4RL's")
    for field in record["fields"]:
        print("   " + ", ".join(f"{key} {value}" for key, value in field.items()))
    print(f"   {'largest deviation of qpos after steps':40}" + "".join(f"{moment:>9}" for moment in MOMENTS))
    for name, values in record["trajectories"].items():
        print(f"   {name:40}" + "".join(f"{value:>9.1e}" for value in values.values()))


def main(arguments: Iterable[str] | None = None) -> None:
    """Record, or compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d4rl", type=Path, help="the folder d4rl of the unpacked package")
    parser.add_argument("--record", type=Path, help="only write the trajectories of D4RL's files in this MuJoCo")
    parser.add_argument("--recorded", type=Path, help="trajectories that --record wrote, to compare with")
    parser.add_argument("--output", type=Path, default=Path("report/robot-physics.json"))
    parser.add_argument("--random", action="store_true", help="only play the episodes of D4RL's random policy")
    args = parser.parse_args(None if arguments is None else list(arguments))
    if not (args.d4rl or args.random):
        parser.error("--d4rl or --random is required")
    print(f"MuJoCo {mujoco.__version__}")
    if args.record:
        tasks = (*ADROIT, "kitchen")
        states = {task: trajectory(plain(model_of(args.d4rl, task), task), task).tolist() for task in tasks}
        args.record.write_text(json.dumps({"mujoco": mujoco.__version__, **states}) + "\n")
        return
    recorded = json.loads(args.recorded.read_text()) if args.recorded else {}
    if args.random:
        records = list(compare_random())
    else:
        with tempfile.TemporaryDirectory() as folder:
            records = list(compare(readable_copy(args.d4rl, Path(folder)), recorded))
        for record in records:
            show(record)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"mujoco": mujoco.__version__, "recorded with": recorded.get("mujoco"), "tasks": records}
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
