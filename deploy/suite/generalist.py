"""`make generalist-suite`: what one dynamics model of many bodies must show, one experiment a function.

    planner      cartpole: noise, its scale, N and K of random shooting, searched in the true simulator
    specialist   cartpole: planning in the model beside the true simulator; error at 25 steps beside an MLP of changes
    three-uses   cartpole: one network says what is earned, acts as the data does, and proposes to a search
    tokens       cartpole: a token for each number beside a token for each state, equal time to learn and to decide

Each takes under ten minutes on two cores, by one seed, when the data sets, the planner and the runs that several share
are there; nothing that is there is made again. All plan as `planner` chose. Tables go to runs/generalist-suite/NAME.md;
intervals are 95% percentile-bootstrap. After Schubert et al., 2023.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial

from qttdm.deploy.suite.experiments import Experiment, run_suite
from qttdm.deploy.suite.specialist import RUNS, Cart, planner, specialist, three_uses, tokens


def experiments(cart: Cart) -> Mapping[str, Experiment]:
    """Name them, so large."""
    return {
        "planner": partial(planner, cart),
        "specialist": partial(specialist, cart),
        "three-uses": partial(three_uses, cart),
        "tokens": partial(tokens, cart),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiments named, or all; returns the exit status."""
    seeds = "default: 1; planner uses none"
    return run_suite(RUNS, __doc__.splitlines()[0], experiments(Cart()), arguments, ([1], seeds))


if __name__ == "__main__":
    sys.exit(main())
