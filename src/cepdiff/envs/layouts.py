"""D4RL's maze layouts as text grids, and the positions of their cells in observed coordinates.

`#` wall, `.` free, `G` goal, `S` start. Cells are (row, column), counted from the top left corner. Grids and placement
rules are from D4RL 1.1, `locomotion/maze_env.py` and `pointmaze/maze_model.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cepdiff.errors import ConfigError, nearest

Cell = tuple[int, int]

# AntMaze: side of a cell, in metres. D4RL registers all its mazes with this scaling.
_ANTMAZE_CELL = 4.0
# Maze2D: D4RL counts positions from world (1.2, 1.2) but centres the wall of cell (i, j) at world (i + 1, j + 1).
_POINT_WALL_SHIFT = -0.2


@dataclass(frozen=True)
class Layout:
    """A maze: its grid and how cells map to observed positions xy.

    Raises ConfigError for rows of unequal length, an unknown letter, or no cell to start in.

    Args:
        rows: equally long strings of the letters `#.GS`.
        cell_size: side of a cell, in units of xy.
        origin: the cell whose location is xy = (0, 0).
        row_axis: the coordinate that grows with the row: 0 (x, as in Maze2D) or 1 (y, as in AntMaze).
        wall_shift: offset of the centre of a wall's box from its cell's location, in both coordinates.
    """

    rows: tuple[str, ...]
    cell_size: float = 1.0
    origin: Cell = (0, 0)
    row_axis: int = 0
    wall_shift: float = 0.0

    def __post_init__(self) -> None:
        if len({len(row) for row in self.rows}) != 1:
            raise ConfigError(f"A maze needs rows of equal length; found {[len(row) for row in self.rows]}")
        if unknown := set("".join(self.rows)) - set("#.GS"):
            raise ConfigError(f"A maze is drawn with the letters #.GS; found {''.join(sorted(unknown))!r}")
        if not self.cells(".GS"):
            raise ConfigError("A maze needs a free cell; all of them are walls")

    def cells(self, letters: str) -> list[Cell]:
        """The cells with one of these letters, row by row."""
        return [(i, j) for i, row in enumerate(self.rows) for j, letter in enumerate(row) if letter in letters]

    def xy(self, cell: Cell) -> NDArray[np.float64]:
        """Location of a cell, (2,): where D4RL starts episodes, sets goals and plans paths."""
        row, column = ((at - zero) * self.cell_size for at, zero in zip(cell, self.origin, strict=True))
        return np.array([row, column] if self.row_axis == 0 else [column, row])

    def cell(self, xy: NDArray[np.floating]) -> Cell:
        """Cell whose location is nearest to a position (2,); it may be outside the grid."""
        x, y = (round(float(value) / self.cell_size) for value in xy)
        row, column = (x, y) if self.row_axis == 0 else (y, x)
        return row + self.origin[0], column + self.origin[1]

    def is_free(self, cell: Cell) -> bool:
        """True if a cell is in the grid and not a wall."""
        row, column = cell
        return 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] != "#"

    def wall_centers(self) -> NDArray[np.float64]:
        """Centres of the walls' boxes, (W, 2), in observed coordinates; their sides are `cell_size` long."""
        return np.array([self.xy(cell) for cell in self.cells("#")]).reshape(-1, 2) + self.wall_shift

    def bounds(self) -> NDArray[np.float64]:
        """Lower left and upper right corner of the whole grid, (2, 2), in observed coordinates."""
        corners = np.array([self.xy((0, 0)), self.xy((len(self.rows) - 1, len(self.rows[0]) - 1))])
        return corners + self.wall_shift + np.array([[-0.5], [0.5]]) * self.cell_size


def antmaze_layout(grid: str) -> Layout:
    """AntMaze layout from lines of text: the single start cell is the origin, x runs along the columns."""
    rows = tuple(grid.split())
    starts = [(i, row.index("S")) for i, row in enumerate(rows) if "S" in row]
    if "".join(rows).count("S") != 1:
        raise ConfigError(f"A maze for the ant needs exactly one start cell 'S'; found {''.join(rows).count('S')}")
    return Layout(rows, cell_size=_ANTMAZE_CELL, origin=starts[0], row_axis=1)


def maze2d_layout(grid: str) -> Layout:
    """Maze2D layout from lines of text, at most one goal: cell (i, j) is at xy = (i, j), so x runs down the rows."""
    layout = Layout(tuple(grid.split()), wall_shift=_POINT_WALL_SHIFT)
    if len(goals := layout.cells("G")) > 1:
        raise ConfigError(f"A maze for the point has at most one goal cell 'G'; found {len(goals)}")
    return layout


ANTMAZE_LAYOUTS: dict[str, Layout] = {
    "umaze": antmaze_layout("""
        #####
        #S..#
        ###.#
        #G..#
        #####
    """),
    "medium": antmaze_layout("""
        ########
        #S.##..#
        #..#...#
        ##...###
        #..#...#
        #.#..#.#
        #...#.G#
        ########
    """),
    "large": antmaze_layout("""
        ############
        #S...#.....#
        #.##.#.#.#.#
        #......#...#
        #.####.###.#
        #..#.#.....#
        ##.#.#.#.###
        #..#...#.G.#
        ############
    """),
    "eval-umaze": antmaze_layout("""
        #####
        #..S#
        #.###
        #..G#
        #####
    """),
    "eval-medium": antmaze_layout("""
        ########
        #S....G#
        #.#.##.#
        #....#.#
        ###..###
        #......#
        #..##..#
        ########
    """),
    "eval-large": antmaze_layout("""
        ############
        #S.#...#.G.#
        ##.###.#.#.#
        #..#.#.....#
        #.##.#..##.#
        #......#...#
        #.##.#.#.###
        #....#.....#
        ############
    """),
}


def _without_start(name: str) -> str:
    """AntMaze's grid of that name with a free cell for its start: D4RL uses it in Maze2D too."""
    return "\n".join(ANTMAZE_LAYOUTS[name].rows).replace("S", ".")


MAZE2D_LAYOUTS: dict[str, Layout] = {
    "open": maze2d_layout("""
        #######
        #.....#
        #..G..#
        #.....#
        #######
    """),
    "umaze": maze2d_layout("""
        #####
        #G..#
        ###.#
        #...#
        #####
    """),
    "medium": maze2d_layout(_without_start("medium")),
    "large": maze2d_layout(_without_start("large")),
    "eval-umaze": maze2d_layout("""
        #####
        #..G#
        #.###
        #...#
        #####
    """),
    "eval-medium": maze2d_layout(_without_start("eval-medium")),
    "eval-large": maze2d_layout(_without_start("eval-large")),
}


def find_layout(layout: str | Layout, known: dict[str, Layout]) -> Layout:
    """Return `layout` itself, or the known layout of that name; raises ConfigError if the name is unknown."""
    if isinstance(layout, Layout):
        return layout
    if layout not in known:
        raise ConfigError(f"No maze is called '{layout}'; known: {', '.join(known)}.{nearest(layout, known)}")
    return known[layout]
