"""What everything around an agent knows of it: the data it needs, how it learns, how it acts. Nothing else.

    Agent --data--> replay, codec, wire         (built from DataSpec)
          --learner()--> Learner                (trained by the loop)
          --policy()--> Policy                  (acts in actors, evaluation and the planner service)

    TaskSpec --> Agent                          (built for one task)

    planning policy = Planner over a DynamicsModel and, where there is one, a ValueFunction

Trees map names to arrays or tensors whose first dimension is the environment or the batch, so that joining, splitting
and padding are generic (common/trees.py). Over 400 lines, nearly all of them docstrings: each contract is whole here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from qttdm.common.batch import Batch
from qttdm.common.config import Config

if TYPE_CHECKING:  # replay's shards read what data an agent needs, and hold no tensors: they do without torch
    import torch
    from torch import Tensor, nn

    from qttdm.common.trees import TensorTree
    from qttdm.common.weights import Weights

ArrayTree = Mapping[str, np.ndarray]
RandomActions = Literal["independent", "held"]
"""how actions are drawn before there is a policy"""


class ObservationPart(NamedTuple):
    """A named part of what a task shows."""

    name: str
    """OUTER/INNER where Dicts are nested"""
    size: int
    """numbers that it has in the observation"""
    shape: tuple[int, ...] | None = None
    """as the task shows it; None: not known"""
    choices: tuple[tuple[int, int], ...] = ()
    """where it is Discrete, of each choice the first value and the number of values, which are one-hot"""


@dataclass(frozen=True)
class TaskSpec:
    """What an agent needs to know about a task before its first step."""

    obs_dim: int
    """M, length of an observation"""
    action_dim: int
    """N, length of an action"""
    action_repeat: int
    """simulator steps of one decision"""
    episode_steps: int
    """time limit in simulator steps"""
    terminates: bool
    """whether `terminated` can ever be true"""
    name: str = ""
    """FAMILY/NAME"""
    simulator_state: int = 0
    """length of the observation `simulator_state`, the whole state of the simulator; 0: the suite cannot give it"""
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """lowest and highest of each number of an action, in the task's own units, N each; None: -1 and 1"""
    action_shape: tuple[int, ...] | None = None
    """of an action as the task takes it, N numbers; None: (N,)"""
    observation_parts: tuple[ObservationPart, ...] = ()
    """of what the observation is made, in its order; (): not known"""
    step_seconds: float | None = None
    """of one simulator step, in the task's time; None: not known"""
    choices: int | None = None
    """of a discrete action, inside 0 to choices - 1, action_dim is then 1; None: actions are N numbers"""
    first_choice: int = 0
    """of a discrete action in the task's own units: Gymnasium's Discrete(.., start)"""
    image_shape: tuple[int, int, int] | None = None
    """height, width and channels of an observation that is an image, uint8, M numbers; None: a vector"""

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of an observation."""
        return (self.obs_dim,) if self.image_shape is None else self.image_shape

    def describe_mismatch(self, observation: np.ndarray) -> tuple[str, str]:
        """Say what an observation of another shape is, and what it should be."""
        if self.image_shape is None:
            return f"{observation.size} numbers", str(self.obs_dim)
        return f"shape {observation.shape}", str(self.image_shape)

    @property
    def decision_seconds(self) -> float | None:
        """Time from one decision to the next; None: not known."""
        return None if self.step_seconds is None else self.action_repeat * self.step_seconds

    def in_units(self, actions: np.ndarray) -> np.ndarray:
        """Bring actions in [-1, 1], float32 [.., N], or choices, int64 [..], to the task's own units.

        Shape and dtype stay.
        """
        if self.choices is not None:
            return actions + self.first_choice
        if self.action_bounds is None:
            return actions
        low, high = np.asarray(self.action_bounds)  # [N], float64: -1 and 1 change nothing
        return np.clip(low + (high - low) * (actions.astype(np.float64) + 1.0) / 2.0, low, high).astype(actions.dtype)

    @property
    def episode_decisions(self) -> int:
        """Most decisions in an episode; the last one may be cut short by the time limit."""
        return -(-self.episode_steps // self.action_repeat)


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one step's array."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class DataSpec:
    """What an agent wants of each step; replay, the episode codec, batches and the wire are built from it."""

    observations: Mapping[str, ArraySpec]
    """by name, T+1 rows an episode: `observations` is what the task shows; others are such as `simulator_state`"""
    actions: ArraySpec
    """T rows: float32 in [-1, 1], or int64 in [0, choices)"""
    window: int
    """L, consecutive decisions of a training window"""
    discount: float | None
    """of the returns-to-go; None: none are computed"""
    choices: int | None = None
    """of a discrete action; None: actions are continuous"""
    ends: bool = field(default=False, repr=False)  # changes batches alone, not what is stored
    """batches also say how the episode of each window ends (common/batch.py)"""
    many_tasks: bool = field(default=False, repr=False)
    """windows come from a group of data sets, whatever the lengths of their observations and actions"""
    stack: int = field(default=1, repr=False)
    """images of which each observation in a batch is made, along the last axis, the newest last; stored and sent is one
    image a step, and an episode's first stands for those before it"""


def vector_data(obs_dim: int, action_dim: int, window: int, discount: float | None, ends: bool = False) -> DataSpec:
    """Describe the data of a task with one vector observed and a continuous action."""
    return DataSpec({"observations": ArraySpec((obs_dim,))}, ArraySpec((action_dim,)), window, discount, ends=ends)


def task_data(task: TaskSpec, window: int, discount: float | None, stack: int = 1) -> DataSpec:
    """Describe the data of any task: a vector or an image observed, a continuous or a discrete action."""
    observed = ArraySpec(task.obs_shape, "float32" if task.image_shape is None else "uint8")
    acted = ArraySpec((task.action_dim,)) if task.choices is None else ArraySpec((), "int64")
    stack = 1 if task.image_shape is None else stack
    return DataSpec({"observations": observed}, acted, window, discount, task.choices, stack=stack)


def resized(data: DataSpec, obs_dim: int, action_dim: int) -> DataSpec:
    """Describe the same data of a task with other lengths, of what `vector_data` describes."""
    return replace(data, observations={"observations": ArraySpec((obs_dim,))}, actions=ArraySpec((action_dim,)))


class Prediction(Protocol):
    """What a dynamics model says of one step of B imagined sequences."""

    @property
    def rewards(self) -> Tensor:
        """[B]"""

    @property
    def continuation_logits(self) -> Tensor | None:
        """Log-odds that the episode goes on after it, [B]; None for tasks that cannot terminate."""


class DynamicsModel(Protocol):
    """Imagines. A rollout is the model's own: where B sequences stand. Shapes: actions [B, N] as DataSpec.actions."""

    @property
    def window(self) -> int | None:
        """Return how many steps a sequence may have, those before its root included; None: any number."""

    def start(self, context: TensorTree) -> Any:
        """Begin at the newest observations of E environments, by name [E, ..]: the roots."""

    def select(self, rollout: Any, index: Tensor, room: int, out: Any = None) -> Any:
        """Copy sequences by number, index int64 [B] (fan-out repeats, a beam reorders), with room for further steps.

        `rollout` stays as it is. out: a rollout of the same size that is no longer needed; its memory is used again.
        """

    def step(self, rollout: Any, actions: Tensor) -> Prediction:
        """Take actions; `rollout` moves on."""

    def state(self, rollout: Any) -> TensorTree:
        """Return where the sequences stand, [B, ..] by name: what values and proposals read, as `observations`."""

    def quantise(self, actions: Tensor) -> Tensor:
        """Bring real-valued actions, any shape, to the nearest that the model knows: a bin, or the edge of the box."""

    def uniform(self, chance: Tensor) -> Tensor:
        """Turn uniforms in [0, 1), any shape, into uniform actions: over the bins, or over the box."""


@runtime_checkable
class RememberingModel(DynamicsModel, Protocol):
    """A dynamics model that may be shown the steps of the episode so far, and that has a policy of its own.

    To `start` these are `history`, int64 [E, C K]: C steps as `remember` returned them, the newest at the end.
    """

    @property
    def slots(self) -> int:
        """Return K, of how many numbers a step is made."""

    def remember(self, root: Any, actions: Tensor) -> Tensor:
        """Make a root's newest step, int64 [E, K], given the actions [E, N] that were chosen."""

    def act(self, rollout: Any, actions: Tensor, noise: Tensor, proposed: Tensor) -> tuple[Tensor, Prediction]:
        """Take actions [B, N], or where `proposed`, bool [B], its own policy's plus noise [B, N]: a step as any other.

        Returns the actions taken, [B, N], and what is predicted.
        """


class ValueFunction(Protocol):
    """Values states and proposes actions in them. All random numbers are given."""

    def value(self, state: TensorTree) -> Tensor:
        """Return discounted return expected from states [B, ..] on: [B]."""

    def propose(
        self, state: TensorTree, chance: Tensor, which: Tensor, probability: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Propose best actions [B, N] in states [B, ..], and their values [B].

        Each dimension is replaced by a uniform one where chance < probability; chance and which are uniform in
        [0, 1), [B, N]; probability is a number, or [B].
        """


@dataclass(frozen=True)
class Plan:
    """The outcome of one decision for E environments."""

    actions: Tensor
    """[E, N], to execute now"""
    carry: TensorTree
    """[E, ..], for the next decision"""
    values: Tensor
    """[E], estimated return of the best sequence found"""
    figures: TensorTree
    """[E] each, by name: what there is to know about how it was found"""
    iterations: int
    """iterations run"""


class Planner(Protocol):
    """Searches in a dynamics model, for E environments at once; an environment's plan does not depend on the others."""

    dynamics: DynamicsModel
    value_function: ValueFunction | None

    @property
    def horizon(self) -> int:
        """H, decisions that it looks ahead."""

    def begin(self, environments: int, device: torch.device, goal: Any = None) -> TensorTree:
        """Make the carry [E, ..] of episodes at their start. ValueError if it can do nothing with such a goal."""

    def draw(self, generators: Sequence[torch.Generator]) -> TensorTree:
        """Draw all random numbers of one decision, [E, ..], each environment's from its own generator."""

    def plan(
        self,
        context: TensorTree,
        carry: TensorTree,
        noise: TensorTree,
        explore: bool | Tensor,
        more: Callable[[int], bool] | None = None,
    ) -> Plan:
        """Decide for each environment: context, the newest observations by name, [E, ..]. Called without gradients.

        explore: for all, or bool [E]. more: asked after each iteration, with their number so far, whether there is
        time for another.
        """


@dataclass(frozen=True)
class Decisions:
    """One decision for each of E episodes."""

    actions: np.ndarray
    """[E, N], as DataSpec.actions"""
    values: np.ndarray
    """float32 [E], the return expected from here on, discounted"""
    iterations: int = 0
    """the planner's; 0 where nothing is planned"""
    figures: ArrayTree = field(default_factory=dict)
    """float32 [E] each, by name: the planner's"""

    @property
    def finite(self) -> np.ndarray:
        """bool [E]: can one act on it? Networks overflow on observations far beyond all they have seen."""
        return np.isfinite(self.actions).all(axis=1) & np.isfinite(self.values)


class Policy(Protocol):
    """Chooses actions for whichever episodes are due. It keeps networks; an episode's state is its carry."""

    @property
    def networks(self) -> nn.Module:
        """Networks that act, in the learner's order; `load` fills them."""

    @property
    def device(self) -> torch.device:
        """Device on which it decides."""

    @property
    def weights_version(self) -> int:
        """Version of the networks that act."""

    def load(self, weights: Weights) -> None:
        """Take new network weights; used from the next decision on."""

    def start(self, seed: int, exploration: float, goal: Any = None) -> Any:
        """Make the carry of one episode; exploration in [0, 1], 0 when evaluating."""

    def decide(self, episodes: Sequence[Any], observations: ArrayTree, deadline: float | None = None) -> Decisions:
        """Decide once for each episode, whose carry moves on: observations by name, [E, ..].

        deadline: in time.monotonic()'s seconds; a planner makes as many iterations as fit, but one at least.
        """

    def warm_up(self, environments: int) -> None:
        """Decide for every size of batch up to that many, so that no episode waits for compilation later."""


class Learner(Protocol):
    """Trains on batches; keeps its metrics on the device until they are drained."""

    device: torch.device
    """where it computes"""
    updates: int
    """made so far"""
    generation: int
    """which start of the run's learner this is; weights of a later one have higher versions"""
    telemetry: Any
    """common.metrics.telemetry.Telemetry: where it reports its times"""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Fit what follows from the data's scale (bins, units) once, before the first update.

        batches: endless, drawn, and counted as drawn, as for updates. A learner that fits nothing takes none.
        """

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take the networks of another learner's `state`, and what was fitted for them; `prepare` is not called then.

        ValueError, one line, if they are others than this learner's.
        """

    def update(self, batch: Batch) -> None:
        """Make one update. It need not wait for the device."""

    def drain(self) -> dict[str, float]:
        """Return means of all metrics since the last call; {} without an update. Raises if a loss is not finite."""

    def weights(self) -> Weights:
        """Snapshot what policies need, as of now."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that a resumed run needs.

        `updates` and each parameter of the policy's networks, as NETWORK/network/PARAMETER: evaluation and serving read
        those from a checkpoint.
        """

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Undo `state`. ValueError, one line, if it is of other networks."""


class Agent(Protocol):
    """A composition for one task. `Settings` declares its section of the configuration, with all defaults.

    Its learner and its policy hold the same networks: `policy.load(learner.weights())`.
    """

    Settings: type[Config]
    data: DataSpec
    batch_size: int
    """B, windows of an update"""

    def __init__(self, settings: Any, task: TaskSpec) -> None:
        """settings: an instance of `Settings`. Makes nothing large."""

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError, one line with keys and values, if the settings do not fit the task."""

    def learner(self, device: torch.device, total_updates: int, bfloat16: bool) -> Learner:
        """Make fresh networks from torch's global generator, and their training, with schedules over total_updates."""

    def policy(self, device: torch.device, bfloat16: bool) -> Policy:
        """Make what acts: networks of its own, to be filled with `load`. bfloat16: plan under autocast."""

    def exploration(self, progress: float) -> float:
        """Say how much a collecting policy explores after that share of the training, in [0, 1]."""


@runtime_checkable
class DreamingAgent(Agent, Protocol):
    """An agent whose world model decodes what it imagines."""

    def world_model(self, device: torch.device) -> Any:
        """Make what trains a fresh one: learner/parts/world_model.py's, or another with the same networks."""
