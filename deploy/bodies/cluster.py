"""Gather many bodies on a Ray cluster, one body a task; what they gave comes back here, and is written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray

from qttdm.deploy.bodies.collect import Bodies, Gathered, gather

TRIES = 3
"""of a body whose node dies"""


def gather_on_cluster(tasks: Sequence[str], bodies: Bodies) -> Iterator[Gathered]:
    """Gather all bodies, in the order in which they are done; the cluster queues what it has no CPU for.

    What is under way when the caller stops asking is cancelled.
    """
    one = ray.remote(gather).options(num_cpus=1, max_retries=TRIES - 1)
    running = [one.remote(task, bodies, 1) for task in tasks]
    try:
        while running:
            (done, *_), running = ray.wait(running)
            yield ray.get(done)
    finally:
        for reference in running:
            ray.cancel(reference)
