"""Walkers without end, universe/v1: a body for each family and seed. No simulator is needed to build one.

    (family, seed) --body--> Link, Link, ..  one hinge each --mjcf--> MuJoCo's XML

A body is a sphere and limbs of one or two links in a row, each link a capsule. Limbs point along the axes of the torso
as it stands. The families differ in where the next limb goes:

    line    at the end of the last, straight on
    chain   at the end of the last, in any direction but the one back into it
    bush    one to three at the end of each limb, all limbs of a generation before those of the next
    tree    wherever a direction is free, at the torso or the end of any limb

The observation does not show how the body is built; that must be found out by acting. The families and the reward are
those of Schubert et al., 2023 (A Generalist Dynamics Model for Control); all numbers are ours. A change to any of them
makes other bodies of the same names: then VERSION changes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

VERSION = "universe/v1"
FAMILIES = ("line", "chain", "bush", "tree")
EPISODE_STEPS = 800
"""20 s"""
CONTROL_SECONDS, PHYSICS_SECONDS = 0.025, 0.005
SUBSTEPS = round(CONTROL_SECONDS / PHYSICS_SECONDS)
FEWEST, MOST = 4, 20
"""joints of a body"""
TORSO, RADIUS, LENGTH = 0.14, 0.08, 0.3
"""m: radius of the sphere, radius and length of a link"""
HEIGHT, CLEARANCE = 1.0, 0.05
"""m: of the torso before it is dropped, or higher, so that nothing begins in the ground"""
DROP_SECONDS = 0.5
SPREAD = 0.1
"""rad: how far each joint may be from straight at the start of an episode, either way"""
SPEED = 1.0
"""m/s"""
AXES = np.concatenate([np.eye(3), -np.eye(3)])
"""the directions of limbs, [6, 3]"""
TORSO_PARENT = -1


@dataclass(frozen=True)
class Link:
    """A capsule that turns about one hinge at its base."""

    parent: int
    """number of the link that it sits at the end of; TORSO_PARENT: at the torso"""
    direction: int
    """row of AXES"""
    axis: tuple[float, float, float]
    """of the hinge, of length 1"""


def body(family: str, seed: int) -> list[Link]:
    """Build a body: a function of its arguments alone; each link's parent comes before it."""
    rng = np.random.default_rng([FAMILIES.index(family), seed])
    joints = int(rng.integers(FEWEST, MOST + 1))
    links: list[Link] = []

    def add_limb(parent: int, direction: int) -> int:
        """Add one or two links in a row; returns the number of the last."""
        for _ in range(min(int(rng.integers(1, 3)), joints - len(links))):
            axis = rng.normal(size=3)
            x, y, z = axis / np.linalg.norm(axis)
            links.append(Link(parent, direction, (float(x), float(y), float(z))))
            parent = len(links) - 1
        return parent

    def free(parent: int) -> list[int]:
        """List the directions in which nothing leaves the end of a link, or the torso."""
        taken = {link.direction for link in links if link.parent == parent}
        if parent != TORSO_PARENT:
            taken.add(_opposite(links[parent].direction))
        return [direction for direction in range(len(AXES)) if direction not in taken]

    tips = [TORSO_PARENT]  # where a limb may go: the torso and the end of each limb
    while len(links) < joints:
        if family == "line":
            tips.append(add_limb(tips[-1], _opposite(0)))  # trails behind the torso
        elif family == "chain":
            tips.append(add_limb(tips[-1], int(rng.choice(free(tips[-1])))))
        elif family == "bush":
            tip = tips.pop(0)
            directions = rng.permutation(free(tip))[: rng.integers(1, 4)]
            tips += [add_limb(tip, int(direction)) for direction in directions if len(links) < joints]
        else:
            places = [(tip, direction) for tip in tips for direction in free(tip)]
            tips.append(add_limb(*places[rng.integers(len(places))]))
    return links


def mjcf(family: str, seed: int) -> str:
    """Write the body as MuJoCo's XML."""
    links = body(family, seed)
    root = ElementTree.Element("mujoco", model=f"{VERSION}/{family}-{seed}")
    _add(root, "option", timestep=PHYSICS_SECONDS)
    defaults = _add(root, "default")
    # Only the ground is touched: limbs that share an end would push each other apart.
    _add(defaults, "geom", density=1000, contype=1, conaffinity=0, rgba="0.35 0.5 0.7 1")
    _add(defaults, "joint", type="hinge", limited="true", range="-1 1", damping=1, armature=0.01)
    _add(defaults, "motor", gear=20, ctrllimited="true", ctrlrange="-1 1")
    _add(root, "compiler", angle="radian")
    asset = _add(root, "asset")
    colours = {"rgb1": "0.9 0.9 0.9", "rgb2": "0.8 0.8 0.8"}
    _add(asset, "texture", name="grid", type="2d", builtin="checker", width=100, height=100, **colours)
    _add(asset, "material", name="grid", texture="grid", texrepeat="1 1", texuniform="true")
    world = _add(root, "worldbody")
    _add(world, "light", pos="0 0 4", dir="0 0 -1", directional="true")
    _add(
        world,
        "geom",
        name="floor",
        type="plane",
        size="100 100 1",
        contype=0,
        conaffinity=1,
        material="grid",
        rgba="1 1 1 1",
    )
    torso = _add(world, "body", name="torso", pos=f"0 0 {start_height(links):.6g}")
    _add(torso, "camera", name="side", mode="trackcom", pos="0 -4 1.5", xyaxes="1 0 0 0 0.3 1")
    _add(torso, "freejoint", name="root")
    _add(torso, "geom", name="torso", type="sphere", size=TORSO, rgba="0.9 0.5 0.2 1")
    bodies = {TORSO_PARENT: torso}
    for number, link in enumerate(links):
        base, way = TORSO if link.parent == TORSO_PARENT else LENGTH, AXES[link.direction]
        start = way if link.parent == TORSO_PARENT else AXES[links[link.parent].direction]
        bodies[number] = this = _add(bodies[link.parent], "body", name=f"link{number}", pos=_text(base * start))
        _add(this, "joint", name=f"joint{number}", axis=_text(link.axis))
        _add(this, "geom", name=f"link{number}", type="capsule", size=RADIUS, fromto=f"0 0 0 {_text(LENGTH * way)}")
    actuators = _add(root, "actuator")
    for number in range(len(links)):
        _add(actuators, "motor", name=f"motor{number}", joint=f"joint{number}")
    _add(_add(root, "sensor"), "subtreelinvel", name="velocity", body="torso")
    return ElementTree.tostring(root, encoding="unicode")


def ends(links: list[Link]) -> NDArray[np.float64]:
    """Return where each link ends as all are straight, seen from the torso's middle: [links, 3]."""
    places: list[NDArray[np.float64]] = []
    for link in links:
        base = TORSO * AXES[link.direction] if link.parent == TORSO_PARENT else places[link.parent]
        places.append(base + LENGTH * AXES[link.direction])
    return np.array(places)


def start_height(links: list[Link]) -> float:
    """Return how high above the ground the torso begins, m."""
    return max(HEIGHT, float(-ends(links)[:, 2].min()) + RADIUS + CLEARANCE)


def observe(qpos: NDArray[np.float64], qvel: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Turn positions [.., 7 + N] and velocities [.., 6 + N] into what is shown, by name, 2 N + 10 numbers."""
    rotation = _rotations(qpos[..., 3:7])  # of the torso, [.., 3, 3]
    return {
        "joint_angles": qpos[..., 7:],
        "joint_velocities": qvel[..., 6:],
        "height": qpos[..., 2:3],
        "up": rotation[..., 2, :],  # the world's, seen from the torso
        "velocity": np.einsum("...ij,...i->...j", rotation, qvel[..., :3]),
        "angular_velocity": qvel[..., 3:6],  # MuJoCo has that one in the body's own frame
    }


def reward_of(speed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reward a velocity along x, m/s: 1 at SPEED, falling in a line to 0 at 0 and at twice that."""
    return np.maximum(0.0, 1.0 - np.abs(speed - SPEED) / SPEED)


def _rotations(quaternions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn quaternions [.., 4] of length 1, as MuJoCo has them, into matrices [.., 3, 3]."""
    w, x, y, z = np.moveaxis(quaternions, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _opposite(direction: int) -> int:
    return (direction + 3) % len(AXES)


def _add(parent: ElementTree.Element, tag: str, **attributes: object) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})


def _text(numbers: Any) -> str:
    return " ".join(f"{float(number):.6g}" for number in numbers)
