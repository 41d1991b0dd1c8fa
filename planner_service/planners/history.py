"""The last steps of each episode, in its planner's carry; environments with as many are planned for together.

Why: in a batch all sequences are of one length, so that positions are right and nobody's plan depends on the others.

Letters beyond the usual: C steps remembered, K numbers of a step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qttdm.common.contracts import Plan
from qttdm.common.trees import TensorTree, join, take


def no_history(environments: int, context: int, slots: int, device: torch.device) -> dict[str, Tensor]:
    """Begin to carry the last C steps, int64 [E, C, K], the newest at the end, and how many there are, int64 [E]."""
    return {
        "history": torch.zeros(environments, context, slots, dtype=torch.int64, device=device),
        "steps": torch.zeros(environments, dtype=torch.int64, device=device),
    }


def recent(carry: TensorTree, steps: int) -> Tensor:
    """Return the last steps in a row: [E, steps K]."""
    history = carry["history"]
    return history[:, history.shape[1] - steps :].flatten(1)


def remember(carry: TensorTree, step: Tensor) -> dict[str, Tensor]:
    """Add a step [E, K] to a carry; of a full history the oldest leaves."""
    history = torch.cat([carry["history"], step[:, None]], dim=1)[:, 1:]
    return {**carry, "history": history, "steps": (carry["steps"] + 1).clamp(max=history.shape[1])}


def plan_alike(
    plan: Callable[[TensorTree, TensorTree, TensorTree, int], Plan],
    alike: Tensor,
    context: TensorTree,
    carry: TensorTree,
    noise: TensorTree,
) -> Plan:
    """Plan for one kind of environments after the other: alike int64 [E]; each kind's number is told to `plan`."""
    members = {kind: (alike == kind).nonzero().squeeze(1) for kind in alike.unique().tolist()}
    plans = [plan(take(context, of), take(carry, of), take(noise, of), kind) for kind, of in members.items()]
    back = torch.cat(list(members.values())).argsort()
    return Plan(
        torch.cat([made.actions for made in plans])[back],
        take(join([made.carry for made in plans]), back),
        torch.cat([made.values for made in plans])[back],
        {},
        iterations=1,
    )
