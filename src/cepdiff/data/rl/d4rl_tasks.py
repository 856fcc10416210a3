"""D4RL's tasks (Fu et al. 2020, arXiv 2004.07219): one function per family, newest version of a task first.

File names, reference returns, horizons and deprecations are those of D4RL 1.1 (`d4rl/infos.py` and the families'
registrations). K and the guidance scales of locomotion and AntMaze are those of Lu et al. 2023; for families not in
that paper, each function explains its choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cepdiff.data.rl.task import Task

D4RL_URL = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
# Importing it registers the environments `cepdiff/...`.
ENV_MODULE = "cepdiff.envs"

LOCOMOTION_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0)
ANTMAZE_SCALES = (0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
# Adroit and Kitchen: narrow human and expert data, which large scales soon leave.
MANIPULATION_SCALES = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
# Family: reward rule, K, guidance scales, and episodes per scale.
_SETTINGS = {
    "locomotion": ("return_range", 16, LOCOMOTION_SCALES, 10),
    "antmaze": ("minus_one", 32, ANTMAZE_SCALES, 100),
    "maze2d": ("none", 16, LOCOMOTION_SCALES, 100),
    "adroit": ("return_range", 16, MANIPULATION_SCALES, 100),
    "kitchen": ("none", 16, MANIPULATION_SCALES, 20),
}
# First word of a task's name -> observation and action sizes of D4RL's environment.
_SIZES = {
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "ant": (111, 8),
    "antmaze": (29, 8),
    "maze2d": (4, 2),
    "pen": (45, 24),
    "door": (39, 28),
    "hammer": (46, 26),
    "relocate": (39, 30),
    "kitchen": (60, 9),
}


def _task(
    family: str, name: str, file: str, references: tuple[float, float], horizon: int, *, env_id: str = "", **others: Any
) -> Task:
    """A task with D4RL's `file` (no suffix) in the environment `cepdiff/...` called `env_id`, else like the task."""
    reward_rule, num_support_actions, scales, episodes = _SETTINGS[family]
    observation_size, action_size = _SIZES[name.partition("-")[0]]
    return Task(
        name=name,
        family=family,
        url=f"{D4RL_URL}/{file}.hdf5",
        env_id=f"cepdiff/{env_id or name}",
        env_module=ENV_MODULE,
        observation_size=observation_size,
        action_size=action_size,
        horizon=horizon,
        reference_min=references[0],
        reference_max=references[1],
        reward_rule=reward_rule,
        num_support_actions=num_support_actions,
        evaluation_scales=scales,
        evaluation_episodes=episodes,
        **others,
    )


def locomotion_tasks() -> Iterator[Task]:
    """Gymnasium's `-v4` environments have the same model files and rewards, but with current MuJoCo versions their
    masses and contacts differ from those of D4RL's data; `cepdiff.envs.locomotion` restores them."""
    robots = {  # robot: (environment, its references)
        "halfcheetah": ("HalfCheetah-v2", (-280.178953, 12135.0)),
        "hopper": ("Hopper-v2", (-20.272305, 3234.3)),
        "walker2d": ("Walker2d-v2", (1.629008, 4592.3)),
        "ant": ("Ant-v2", (-325.6, 3879.7)),
    }
    kinds = ("random", "medium", "expert", "medium-replay", "medium-expert")
    for robot, (env_id, references) in robots.items():
        for version in ("v2", "v1", "v0"):
            last = "full-replay" if version != "v0" else "random-expert" if robot == "ant" else None
            for kind in filter(None, (*kinds, last)):
                stem = f"{robot}_{kind.replace('-', '_')}"
                if version == "v0" and kind == "medium-replay":  # called "mixed"; walker2d's is called "walker"
                    stem = f"{'walker' if robot == 'walker2d' else robot}_mixed"
                file = f"gym_mujoco/{stem}" if version == "v0" else f"gym_mujoco_{version}/{stem}-{version}"
                notes = ["111 observations: the last 84 are contact forces, all 0"] if robot == "ant" else []
                if version != "v2":
                    notes.append(_deprecated(f"{robot}-{kind}-v2" if kind != "random-expert" else None))
                name, note = f"{robot}-{kind}-{version}", "; ".join(notes)
                yield _task("locomotion", name, file, references, 1000, env_id=env_id, note=note)


def antmaze_tasks() -> Iterator[Task]:
    """An ant in a maze, reward 1 at the goal: Lu et al. 2023 train on r - 1, K = 32, 100 episodes per scale."""
    titles = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}  # in v0 and v2 files
    mazes = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    for maze in mazes:
        size = maze.partition("-")[0]
        variant = f"noisy_multistart_{maze != 'umaze'}_multigoal_{maze.endswith('diverse')}_sparse"
        replaced = _deprecated(f"antmaze-{maze}-v2")
        yield _antmaze(f"{maze}-v2", f"ant_maze_v2/Ant_maze_{titles[size]}_{variant}_fixed")
        yield _antmaze(f"{maze}-v1", f"ant_maze_v1/Ant_maze_{size}_{variant}", replaced)
        late = "; its timeouts are not where the episodes end (D4RL issue 77)"
        yield _antmaze(f"{maze}-v0", f"ant_maze_new/Ant_maze_{titles[size]}_{variant}", replaced + late)
    # Mirrored mazes. For medium and large, D4RL swaps the files: "play" has many goals, "diverse" one.
    for maze in mazes:
        size = maze.partition("-")[0]
        goals = maze.endswith("diverse") if size == "umaze" else maze.endswith("play")
        file = f"ant_maze_new/Ant_maze_{size}_eval_noisy_multistart_True_multigoal_{goals}_sparse"
        swapped = "D4RL swaps the files of -play and -diverse here" if size != "umaze" else ""
        yield _antmaze(f"eval-{maze}-v0", file, swapped)


def _antmaze(maze: str, file: str, note: str = "") -> Task:
    horizon = 700 if "umaze" in maze else 1000
    move = 2.0  # half a cell of the maze; a step lasts 0.1 s
    return _task("antmaze", f"antmaze-{maze}", file, (0.0, 1.0), horizon, max_move=move, goal_radius=0.5, note=note)


def maze2d_tasks() -> Iterator[Task]:
    """A point in a maze, reward in [0, 1] per step; episodes do not end at the goal.

    Raw rewards ("none"): about 1 per step, like locomotion with "return_range", whereas ranges of returns mean little
    here because D4RL splits one long walk at every waypoint (D4RL issue 85). AntMaze's "minus_one" would only shift
    all values by a constant, because no episode terminates. 100 episodes, because start cells are random.
    """
    references = {  # name: (reference_min, reference_max, horizon)
        "open-v0": (0.01, 20.66, 150),
        "umaze-v1": (23.85, 161.86, 300),
        "medium-v1": (13.13, 277.39, 600),
        "large-v1": (6.7, 273.99, 800),
        "open-dense-v0": (11.17817, 27.166538620695782, 150),
        "umaze-dense-v1": (68.537689, 193.66285642381482, 300),
        "medium-dense-v1": (44.264742, 297.4552547777125, 600),
        "large-dense-v1": (30.569041, 303.4857382709002, 800),
        "eval-umaze-v1": (36.63, 141.4, 300),
        "eval-medium-v1": (13.07, 204.93, 600),
        "eval-large-v1": (16.4, 302.22, 800),
        "eval-umaze-dense-v1": (56.95455, 178.21373133248397, 300),
        "eval-medium-dense-v1": (42.28578, 235.5658957482388, 600),
        "eval-large-dense-v1": (56.95455, 326.09647655082637, 800),
        "umaze-v0": (0.94, 62.6, 150),
        "medium-v0": (5.77, 85.14, 250),
        "large-v0": (4.83, 191.99, 600),
        "umaze-dense-v0": (23.249793, 81.78995240126592, 150),
        "medium-dense-v0": (19.47762, 96.03474232952358, 250),
        "large-dense-v0": (27.38831, 215.09965671563742, 600),
    }
    goals = {  # row and column of the goal's cell, also its position
        "open": (2.0, 3.0),
        "umaze": (1.0, 1.0),
        "medium": (6.0, 6.0),
        "large": (7.0, 9.0),
        "eval-umaze": (1.0, 3.0),
        "eval-medium": (1.0, 6.0),
        "eval-large": (1.0, 9.0),
    }
    for name, (low, high, horizon) in references.items():
        maze, version = name.rsplit("-", 1)
        dense = maze.endswith("-dense")
        yield _task(
            "maze2d",
            f"maze2d-{name}",
            f"maze2d/maze2d-{maze}{'' if dense else '-sparse'}{'-v1' if version == 'v1' else ''}",
            (low, high),
            horizon,
            max_move=0.5,  # half a cell of the maze; a step lasts 0.01 s at a speed of at most 5
            goal_radius=None if dense else 0.5,
            goal=goals[maze.removesuffix("-dense")],
            note="timeouts mark the waypoints of one long walk (D4RL issue 85)",
        )


def adroit_tasks() -> Iterator[Task]:
    """A hand with 24 joints. 100 episodes, because targets and objects are placed at random.

    "return_range", as for locomotion: raw rewards reach 60 per step in hammer and 20 in relocate, and exp(beta Q)
    depends on their scale. Implicit Q-learning (Kostrikov et al. 2021) trains on raw rewards.
    """
    references = {  # hand: (reference_min, reference_max, horizon)
        "pen": (96.262799, 3076.8331017826877, 100),
        "door": (-56.512833, 2880.5693087298737, 200),
        "hammer": (-274.856578, 12794.134825156867, 200),
        "relocate": (-6.425911, 4233.877797728884, 200),
    }
    first_names = {"human": "v0_demos_clipped", "cloned": "demos-v0-bc-combined", "expert": "v0_expert_clipped"}
    for hand, (low, high, horizon) in references.items():
        for version in ("v1", "v0"):
            for kind, first_name in first_names.items():
                name = f"{hand}-{kind}-{version}"
                file = f"hand_dapg_v1/{name}" if version == "v1" else f"hand_dapg/{hand}-{first_name}"
                note = "" if version == "v1" else _deprecated(f"{hand}-{kind}-v1")
                yield _task("adroit", name, file, (low, high), horizon, env_id=f"{hand}-v0", note=note)


def kitchen_tasks() -> Iterator[Task]:
    """A Franka arm in a kitchen with four subtasks, each worth a reward of 1 and a score of 25.

    Raw rewards ("none"), as in Implicit Q-learning: they count up to 4. Only 20 episodes, because a step simulates
    80 ms and is slow.
    """
    files = {
        "complete": "mini_kitchen_microwave_kettle_light_slider",
        "partial": "kitchen_microwave_kettle_light_slider",
        "mixed": "kitchen_microwave_kettle_bottomburner_light",
    }
    for kind, file in files.items():
        yield _task("kitchen", f"kitchen-{kind}-v0", f"kitchen/{file}-v0", (0.0, 4.0), 280)


def _deprecated(replaced_by: str | None) -> str:
    return "deprecated by D4RL" + (f": use {replaced_by}" if replaced_by else "")
