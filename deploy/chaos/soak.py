"""Run a cluster, its service and its clients for long, and say what grows: `python -m qttdm.deploy.chaos.soak`.

Nothing is attacked. The model is tiny and planned with nothing, so that an hour holds what otherwise takes days:
decisions, publications of weights, connections.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from cyclopts import App

from qttdm.deploy.chaos.__main__ import RAY, TITLES, TOKEN, Attack, GaveUpError, free_ports, newest
from qttdm.deploy.chaos.audit import audit, left_behind, processes
from qttdm.planner_service.serving.client import Client, DisconnectedError, RefusedError

PUBLISH_EVERY = 5
SETTINGS = (
    "agent=qt training.env_steps=1e9 training.eval_every=1e5 training.checkpoint_every=2e4 training.log_every=500 "
    "training.update_ratio=0.05 env.action_repeat=1 replay.capacity=20000 cluster.actors=2 cluster.shards=2 "
    f"cluster.publish_every={PUBLISH_EVERY} sinks.tensorboard=false"
)
EVERY = 10.0
"""seconds between two looks"""
SETTLED = 1 / 3
"""share of the looks that are left out: what fills caches and buffers first is no leak"""
MEANS = 20
"""averages that a slope is fitted to: neighbouring looks depend on each other"""
ROLES = {
    **TITLES,
    "raylet": "raylet/raylet ",
    "gcs": "gcs_server ",
    "driver": "deploy.cli.main cluster",
    "service": "deploy.cli.main serve",
}
"""of each kind of process, what its command line has"""
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
LEAST_MINUTES = 10.0


class Visitors(threading.Thread):
    """Connects, asks once, and hangs up, over and over."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.over, self.connections, self.refused = port, threading.Event(), 0, 0

    def run(self) -> None:
        """Visit until `over`."""
        while not self.over.is_set():
            try:
                with Client(port=self.port, token=TOKEN) as client:
                    client.call("health")
                self.connections += 1
            except (DisconnectedError, RefusedError):
                self.refused += 1
                time.sleep(1.0)


def look(run: Attack, metrics_port: int) -> dict[tuple[str, str], float]:
    """Measure every kind of process, the object store and the metrics served, by whose and what."""
    seen: defaultdict[tuple[str, str], float] = defaultdict(float)
    for pid, title in processes(run.folder).items():
        for role in (role for role, part in ROLES.items() if part in title):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            except OSError:  # it has just ended
                continue
            for what, name, unit in (("MiB", "VmRSS", 1024), ("threads", "Threads", 1)):
                found = re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE)
                seen[role, what] += int(found[1]) / unit if found else 0
            seen[role, "descriptors"] += descriptors
    asked = subprocess.run([*RAY, "status"], env=run.env, capture_output=True, text=True, check=False).stdout
    if used := re.search(r"([\d.]+)(\w+)/\S+ object_store_memory", asked):
        seen["object store", "MiB"] = float(used[1]) * UNITS[used[2]] / 2**20
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as answer:
        seen["metrics", "series"] = sum(not line.startswith(b"#") for line in answer)
    return seen


def slope(seconds: list[float], values: list[float]) -> tuple[float, float]:
    """Fit a line to the means of the settled part; returns its slope an hour and the half of its 95% interval."""
    settled = int(len(values) * SETTLED)
    t, y = (np.array([part.mean() for part in np.array_split(x[settled:], MEANS)]) for x in (seconds, values))
    (by_second, _), covariance = np.polyfit(t, y, 1, cov=True)
    return float(3600 * by_second), float(3600 * 1.96 * np.sqrt(covariance[0, 0]))


def soak(*, minutes: float = 60.0) -> None:
    """Run for so long, and print what was done, what each kind of process holds, and how that grows.

    Args:
        minutes: from the first answers on
    """
    if minutes < LEAST_MINUTES:
        sys.exit(f"soak: --minutes {minutes:g}: want at least {LEAST_MINUTES:g}, for slopes to mean anything")
    metrics_port = free_ports(1)[0]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    run, visitors = Attack(folder, "gym/Pendulum-v1", f"{SETTINGS} cluster.metrics_port={metrics_port}"), None
    seconds, looks, found = [], [], []
    try:
        run.begin()
        visitors = Visitors(run.port)
        visitors.start()
        while (now := time.monotonic() - run.began) < 60 * minutes:
            seconds.append(now)
            looks.append(look(run, metrics_port))
            run.wait(partial(is_over, run.began + now + EVERY), "the next look")
        visitors.over.set()
        visitors.join()
        found += run.end()
    except (GaveUpError, OSError) as error:
        found.append(f"{type(error).__name__}: {error}")
    finally:
        found += left_behind(folder, [run.ray_port, run.port], run.temporary)
        run.close()
    print(*(found := [*found, *audit(run.run_dir)]), sep="\n")
    meta = newest(run.run_dir).get("meta", {"counters": {"decisions": 0}, "pace": {"updates": 0}})
    decisions, published = meta["counters"]["decisions"], meta["pace"]["updates"] // PUBLISH_EVERY
    visits = visitors.connections if visitors else 0
    print(f"{minutes:g} minutes: {decisions:,} decisions, {published:,} publications, {visits:,} connections")
    if len(looks) > 2 * MEANS:
        print("| of | at the end | an hour, 95% interval |\n|---|---|---|")
        for role, what in looks[-1]:
            rate, half = slope(seconds, [seen.get((role, what), 0.0) for seen in looks])
            last = looks[-1][role, what]
            print(f"| {role}: {what} | {last:.1f} | {rate:+.2f} ({rate - half:+.2f} to {rate + half:+.2f}) |")
    if found:
        sys.exit(f"all files: {folder}")
    shutil.rmtree(folder)
    print("the auditor found nothing")


def is_over(deadline: float) -> bool:
    """Has that time come?"""
    return time.monotonic() >= deadline


if __name__ == "__main__":
    App(default_command=soak)()
