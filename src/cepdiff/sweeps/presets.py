"""Named lists of values, for an axis of a sweep: the tasks of published benchmarks."""

from __future__ import annotations

PRESETS: dict[str, list[str]] = {
    # The tasks of Lu et al. 2023, Table 2.
    "d4rl-locomotion": [
        f"{robot}-{kind}-v2"
        for kind in ("medium-expert", "medium", "medium-replay")
        for robot in ("halfcheetah", "hopper", "walker2d")
    ],
    "d4rl-antmaze": [
        f"antmaze-{maze}-v2"
        for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    ],
    "d4rl-maze2d": [f"maze2d-{maze}-v1" for maze in ("umaze", "medium", "large")],
    "d4rl-kitchen": [f"kitchen-{kind}-v0" for kind in ("complete", "partial", "mixed")],
    "d4rl-adroit": [
        f"{task}-{kind}-v1" for task in ("pen", "hammer", "door", "relocate") for kind in ("human", "cloned", "expert")
    ],
}
