"""Three rooms in a row, on a grid: a task whose later stages are reached late.

+---+---+---+      The agent begins anywhere in the first room. To enter the second and the third for the first
|   D   |  G|      time pays 1 each; so does the goal, which ends the episode. Random moves return 0.7; 9% of their
| A |   |   |      episodes come to the third room.
|   |   D   |
+---+---+---+
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.bool_]

HEIGHT, ROOM = 3, 3
"""cells of a room, down and across"""
WIDTH = 3 * ROOM + 2
DOORS = ((0, ROOM), (HEIGHT - 1, 2 * ROOM + 1))
"""row and column of each, in walls of one cell"""
GOAL = (0, WIDTH - 1)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
DECISIONS = 80
"""until an episode is cut; the longest way takes 16"""


class ThreeRooms(gymnasium.Env[Any, Any]):
    """Observes where the agent, walls and goal are, bool [HEIGHT, WIDTH, 3]; acts by one of four moves."""

    observation_space = gymnasium.spaces.Box(0, 1, (HEIGHT, WIDTH, 3), np.bool_)
    action_space = gymnasium.spaces.Discrete(len(MOVES))

    def __init__(self) -> None:
        self.walls = np.zeros((HEIGHT, WIDTH), np.bool_)
        for door in DOORS:
            self.walls[:, door[1]] = True
            self.walls[door] = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Grid, dict[str, Any]]:
        """Begin in the first room."""
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(HEIGHT)), int(self.np_random.integers(ROOM))
        self.room, self.decisions = 0, 0
        return self._shown(), {}

    def step(self, action: int) -> tuple[Grid, float, bool, bool, dict[str, Any]]:
        """Go one cell, unless a wall is there."""
        row, column = self.at[0] + MOVES[action][0], self.at[1] + MOVES[action][1]
        if 0 <= row < HEIGHT and 0 <= column < WIDTH and not self.walls[row, column]:
            self.at = row, column
        self.decisions += 1
        there, room = self.at == GOAL, self.at[1] // (ROOM + 1)
        entered = room > self.room and self.at not in DOORS
        self.room += entered
        return self._shown(), float(entered + there), there, self.decisions == DECISIONS, {}

    def _shown(self) -> Grid:
        shown = np.zeros((HEIGHT, WIDTH, 3), np.bool_)
        shown[self.at][0] = shown[GOAL][2] = True
        shown[..., 1] = self.walls
        return shown
