"""Shortest paths through a maze, and controllers that follow them.

Recipe and gains: D4RL 1.1, `pointmaze/waypoint_controller.py` and `locomotion/maze_env.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cepdiff.envs.layouts import Cell, Layout
from cepdiff.errors import SimulationError

Point = NDArray[np.float64]

_REACHED = 0.1  # distance, in cells, at which a Maze2D waypoint is reached
_PROPORTIONAL, _DERIVATIVE = 10.0, -1.0
_WAYPOINT_NOISE = 0.2
# D4RL's walking policies were trained on goals at about this distance, in metres.
_ANT_REACH = 10.0


def route(layout: Layout, start: Cell, goal: Cell) -> list[Cell]:
    """Shortest path from `start` (excluded) to `goal` (included) over free cells, without diagonal steps.

    Ties go to the first of up, down, left, right. From a cell to itself, the path is that cell. Raises
    `SimulationError` if there is no path.
    """
    if start == goal:
        return [goal]
    steps_left = {goal: 0}  # breadth-first search from the goal
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for beside in _beside(cell):
            if layout.is_free(beside) and beside not in steps_left:
                steps_left[beside] = steps_left[cell] + 1
                queue.append(beside)
    if start not in steps_left:
        raise SimulationError(f"the maze has no path from cell {start} to cell {goal}")
    cells, here = [], start
    while here != goal:
        here = min((cell for cell in _beside(here) if cell in steps_left), key=steps_left.__getitem__)
        cells.append(here)
    return cells


def _beside(cell: Cell) -> list[Cell]:
    row, column = cell
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


class PointController:
    """D4RL's controller of the ball: PD control from waypoint to waypoint, the cells of the route plus noise.

    D4RL plans by 50 sweeps of value iteration over the grid, which finds paths of at most 50 cells; `route` finds all.

    Args:
        layout: the maze.
        numbers: random numbers for the noise on waypoints.
    """

    def __init__(self, layout: Layout, numbers: np.random.Generator) -> None:
        self._layout, self._numbers = layout, numbers
        self._waypoints: list[Point] = []
        self._before: Point = np.zeros(2)

    def head_for(self, position: Point, goal: Point) -> None:
        """Plan the path to the centre of the goal's cell."""
        cells = route(self._layout, self._layout.cell(position), self._layout.cell(goal))
        noise = _WAYPOINT_NOISE * self._numbers.random((len(cells), 2))
        noise[-1] = 0.0
        self._waypoints = [self._layout.xy(cell) - shift for cell, shift in zip(cells, noise, strict=True)]
        self._before = self._layout.xy(self._layout.cell(position))

    def act(self, position: Point, velocity: Point) -> tuple[Point, bool]:
        """Return (force (2,) in [-1, 1], True if the goal is reached: within 0.1 and moving less than 0.1 per step)."""
        slow = _distance(position, self._before) < _REACHED
        arrived = slow and _distance(position, self._waypoints[-1]) < _REACHED
        waypoint = self._waypoints[-1 if arrived else 0]
        force = _PROPORTIONAL * (waypoint - position) + _DERIVATIVE * velocity
        if slow and len(self._waypoints) > 1 and _distance(position, waypoint) < _REACHED:
            self._waypoints.pop(0)
        self._before = position
        return np.clip(force, -1.0, 1.0), arrived


class WaypointPolicy:
    """Walks the ant to a goal, and stays around it, using a policy that walks in a given direction.

    `walk` maps 31 inputs to an action (8,): the 29 observations and a direction (2,) of length 10, as in the training
    of D4RL's policies. Like in D4RL, each step draws a new waypoint in the next cell of the route. The ant is in the
    cell whose centre is nearest; D4RL rounds down instead.

    Args:
        layout: the maze.
        walk: the policy.
        numbers: random numbers for waypoints.
    """

    def __init__(
        self, layout: Layout, walk: Callable[[NDArray[np.float64]], NDArray[np.floating]], numbers: np.random.Generator
    ) -> None:
        self._layout, self._walk, self._numbers = layout, walk, numbers

    def act(self, observation: NDArray[np.float64], goal: Point) -> NDArray[np.floating]:
        """Return the action (8,) for an observation (29,) on the way to a goal (2,)."""
        position = np.asarray(observation[:2], np.float64)
        goal_cell = self._nearest_free(goal)
        ahead = route(self._layout, self._nearest_free(position), goal_cell)[0]
        way = (goal if ahead == goal_cell else self._within(ahead)) - position
        length = float(np.linalg.norm(way))
        return self._walk(np.concatenate([observation, way * (_ANT_REACH / max(length, 1e-6))]))

    def _within(self, cell: Cell) -> Point:
        return self._layout.xy(cell) + self._numbers.uniform(0.0, self._layout.cell_size / 4, 2)

    def _nearest_free(self, position: Point) -> Cell:
        """The ant's cell, or the nearest free one: close to a wall, its torso can be over the wall's cell."""
        cell = self._layout.cell(position)
        if self._layout.is_free(cell):
            return cell
        return min(self._layout.cells(".GS"), key=lambda free: _distance(self._layout.xy(free), position))


def _distance(a: Point, b: Point) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))
