"""Four rooms: a point in a square, walls along both axes with a door in each half; and logs of walks through it.

+---------+---------+      A walk leads from one random point to another, by doors; whoever logs it wants nothing.
|         |         |      With a goal given while one acts it is a test of goals; with the environment's own goal,
|         D         |      where alone there is a reward, a test of stitching: few walks end there.
|         |         |
+----D----+----D----+
|         |         |
|         D         |
|         |         |
+---------+---------+
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from qttdm.common.episode import Episode

Point = NDArray[np.float32]

STEP = 0.15
"""longest way of one decision along an axis; the square reaches from -1 to 1"""
SPEED = 0.8
"""of walks, as a share of the fastest: few of their noisy actions are cut to 1, which would then be the likeliest"""
DOOR = 0.15
"""half of a door's width; its middle is at 0.5 or -0.5"""
REACHED = 0.15
"""so near to a goal is there"""
DECISIONS = 60
"""until an episode is cut; the longest way takes about 25"""


class FourRooms(gymnasium.Env[Point, Point]):
    """Observes the position [2], acts by a step [2] in [-1, 1]; a reward of 1 at the goal, which ends the episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    goal = np.array([0.75, 0.75], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Point, dict[str, Any]]:
        """Begin in the room diagonally opposite to the goal's."""
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.95, -0.05, 2).astype(np.float32)
        self.decisions = 0
        return self.position, {}

    def step(self, action: Point) -> tuple[Point, float, bool, bool, dict[str, Any]]:
        """Go."""
        self.position = moved(self.position, action)
        self.decisions += 1
        there = near(self.position, self.goal)
        return self.position, float(there), there, self.decisions == DECISIONS, {"success": float(there)}


def near(position: Point, goal: Point) -> bool:
    """Say whether that is there."""
    return float(np.linalg.norm(position - goal)) <= REACHED


def moved(position: Point, action: Point) -> Point:
    """Take a step; what would cross a wall slides along it."""
    wanted = np.clip(position + STEP * np.clip(action, -1, 1), -1, 1).astype(np.float32)
    after = wanted.copy()
    for axis in (0, 1):
        if position[axis] * wanted[axis] < 0:  # crosses the wall; where?
            share = position[axis] / (position[axis] - wanted[axis])
            other = position[1 - axis] + share * (wanted[1 - axis] - position[1 - axis])
            if abs(abs(other) - 0.5) > DOOR:
                after[axis] = position[axis]
    return after


def towards(position: Point, goal: Point, first: int) -> Point:
    """Choose the action of who knows the way; first: the axis whose wall is crossed first, if both are."""
    crossed = [axis for axis in (first, 1 - first) if position[axis] * goal[axis] < 0]
    target = goal
    if crossed:
        axis = crossed[0]
        target = np.empty(2, np.float32)
        target[axis] = 0.1 * np.sign(goal[axis])  # a little beyond the door
        target[1 - axis] = 0.5 * np.sign(position[1 - axis])
    way = (target - position) / STEP
    return SPEED * way / max(SPEED, float(np.linalg.norm(way)))


def random_point(rng: np.random.Generator) -> Point:
    """Draw a point that is not in a wall."""
    return (rng.uniform(0.05, 0.95, 2) * rng.choice([-1, 1], 2)).astype(np.float32)


def passed_through(point: Point) -> bool:
    """Say whether that is in the middle of a room, where no walk ends."""
    return float(np.linalg.norm(np.abs(point) - 0.5)) <= 0.25


def walk(rng: np.random.Generator, start: Point, goal: Point, number: int, rewarded: bool = False) -> Episode:
    """Log a noisy walk, until near its own goal; rewarded: by the environment's, which then ends it."""
    first, paid = int(rng.integers(2)), False
    positions, actions = [start], list[Point]()
    while len(actions) < DECISIONS and not paid:
        action = towards(positions[-1], goal, first) + rng.normal(0, 0.1, 2)
        if rng.random() < 0.1:  # so that logs also show the way from beside it
            action = rng.uniform(-1, 1, 2)
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        positions.append(moved(positions[-1], actions[-1]))
        paid = rewarded and near(positions[-1], FourRooms.goal)
        if np.linalg.norm(positions[-1] - goal) <= REACHED / 2:
            break
    rewards = np.zeros(len(actions), np.float32)
    rewards[-1] = paid
    return Episode(
        observations=np.stack(positions),
        actions=np.stack(actions),
        rewards=rewards,
        terminated=paid,
        truncated=not paid,
        env_steps=0,
        success=None,
        actor=0,
        number=number,
    )


def walks(count: int, seed: int, rewarded: bool = False) -> list[Episode]:
    """Log so many: between any two points, none ending in the middle of a room; rewarded: at most one door each."""
    rng, logged = np.random.default_rng(seed), list[Episode]()
    while len(logged) < count:
        start, goal = random_point(rng), random_point(rng)
        doors = int((start * goal < 0).sum())
        if (doors == 2) if rewarded else passed_through(goal):
            continue
        if rewarded and near(start, FourRooms.goal):
            continue
        logged.append(walk(rng, start, goal, len(logged), rewarded))
    return logged
