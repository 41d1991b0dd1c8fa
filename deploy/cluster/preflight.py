"""Reach a cluster and the runs on it; check, before another starts, that it has room and one program on every node."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from grpc import StatusCode
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qttdm.common.config import ConfigError
from qttdm.common.own_modules import import_own, imported_here
from qttdm.deploy.cluster import ray_private
from qttdm.deploy.cluster.auth import WANT
from qttdm.deploy.configs.cluster_config import NAMESPACE

Resources = dict[str, float]

HOW_TO_START = (
    "start one with `ray start --head` (on a machine with GPUs it finds them; --num-cpus=N sets how many CPUs)"
)
WANT_ADDRESS = "want <host>:<port> of the cluster's head, as `ray start --head` prints it (the port is 6379 by default)"
ANSWER_SECONDS = 30.0  # for a run to say how it goes
LESS = {
    "CPU": "want fewer --actors or --shards, or smaller shares such as --set cluster.actor_cpus=0.25",
    "GPU": "want a smaller --gpus-per-seed",
}
NODE_SECONDS = 120.0  # for a node to answer: the first process there has to import torch


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or the one on this machine. ConfigError, one line, if that fails.

    What has been imported from the working directory goes to every process that is started from here on.
    deploy/cluster/auth.py has chosen the mode, before Ray was imported.
    """
    if ray.is_initialized():
        return
    given = os.environ.get("RAY_ADDRESS") or "auto"
    where, address = f"at RAY_ADDRESS={given}", given
    if given == "auto":
        where = "on this machine"
        try:
            address = ray_private.find_head()
        except ConnectionError:
            raise ConfigError(f"no Ray cluster on this machine; {HOW_TO_START}") from None
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(f"RAY_ADDRESS={given}: {WANT_ADDRESS}")
    status, reason = ray_private.ask_head(address)
    if status is StatusCode.UNAUTHENTICATED:
        raise ConfigError(
            f"the Ray cluster {where} refuses: its token is missing or wrong here "
            f"(RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')}); {WANT}"
        )
    if status in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
        raise ConfigError(f"no Ray cluster {where}: none answers ({reason[-200:]}); {WANT_ADDRESS}; {HOW_TO_START}")
    if status is not StatusCode.OK:
        raise ConfigError(f"no Ray cluster {where}: something else answers there ({reason[-200:]}); {WANT_ADDRESS}")
    modules = [str(path) for path in imported_here()]
    carried = {"py_modules": modules, "excludes": ["__pycache__/"]} if modules else None
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, runtime_env=carried)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the Ray cluster {where} refuses: {' '.join(str(error).split())[:300]}") from None


def check_resources(bundles: Sequence[Resources], seeds: int) -> str:
    """Say how many of the seeds have room now. ConfigError if not even one will ever fit into the cluster.

    bundles: what one seed reserves, each on one node.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    free = ray_private.free_resources()
    return check_capacity(
        bundles, [node["Resources"] for node in nodes], [free.get(node["NodeID"], {}) for node in nodes], seeds
    )


def check_capacity(
    bundles: Sequence[Resources], nodes: Sequence[Resources], free: Sequence[Resources], seeds: int
) -> str:
    """Do what `check_resources` does, for nodes with these resources, of which so much is free now."""
    for name in ("CPU", "GPU"):
        wanted = sum(bundle.get(name, 0) for bundle in bundles)
        there = sum(node.get(name, 0) for node in nodes)
        if wanted > there + 1e-9:
            raise ConfigError(
                f"a seed needs {wanted:g} {name}, the whole cluster has {there:g}; {LESS[name]}, "
                f"or start Ray with more (`ray start --num-{name.lower()}s=N`, more nodes)"
            )
    if count_fitting(bundles, nodes, 1) == 0:
        kinds = Counter(_text(node) for node in nodes)
        raise ConfigError(
            f"a seed's largest part needs {_text(max(bundles, key=_size))} on one node, and its parts together do not "
            f"fit on the cluster's nodes: {'; '.join(f'{count} x {kind}' for kind, count in kinds.items())}; ask for "
            f"less, or start larger nodes"
        )
    now = count_fitting(bundles, free, seeds)
    if now < seeds:
        return f"the cluster has room for {now} of {seeds} seeds now; the others are queued"
    return "the cluster has room for all seeds now"


def count_fitting(bundles: Sequence[Resources], nodes: Sequence[Resources], seeds: int) -> int:
    """Count the seeds that find a place at the same time on nodes with these resources."""
    left = [dict(node) for node in nodes]
    placed = 0
    while placed < seeds and all(_take(left, bundle) for bundle in sorted(bundles, key=_size, reverse=True)):
        placed += 1
    return placed


def _take(nodes: list[Resources], bundle: Resources) -> bool:
    """Place a bundle on the first node where it fits."""
    for node in nodes:
        if all(node.get(name, 0) >= amount - 1e-9 for name, amount in bundle.items()):
            for name, amount in bundle.items():
                node[name] -= amount
            return True
    return False


def _size(bundle: Resources) -> tuple[float, float]:
    return bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)


def _text(resources: Resources) -> str:
    shown = {name: amount for name, amount in resources.items() if name in ("CPU", "GPU") and amount > 0}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "neither CPU nor GPU"


def describe_capacity(bundles: Sequence[Resources]) -> str:
    """Say what a seed reserves, and what is free on the cluster's nodes now."""
    reserved, free = ("; ".join(map(_text, nodes)) for nodes in (bundles, ray_private.free_resources().values()))
    return f"a seed reserves {reserved}; the nodes have free {free}"


def check_nodes(directory: Path, modules: Sequence[str] = ()) -> None:
    """Raise ConfigError unless every node has this program, torch and Python, and sees the run's directory.

    modules: of the user's own, which every node must be able to import.
    """
    here = fingerprint()
    probe = ray.remote(num_cpus=0)(inspect_node)
    asked = [  # a host's name is not enough to tell nodes apart
        (
            node["NodeManagerHostname"],
            probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
            ).remote(str(directory), modules),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    for host, answer in asked:
        try:
            there, sees, missing = ray.get(answer, timeout=NODE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ConfigError(f"node {host} did not answer within {NODE_SECONDS:g} s; look at `ray status`") from None
        except RayError as error:
            reason = " ".join(str(error).split())[-200:]
            raise ConfigError(f"node {host} cannot run qttdm; install it there (pip install -e .): {reason}") from None
        for what in here:
            if there.get(what) != here[what]:
                raise ConfigError(
                    f"node {host} has {what} {there.get(what)}, this one {here[what]}; install the same on every node"
                )
        if missing:
            raise ConfigError(
                f"node {host} cannot import {missing[0]}; want what it needs in the working directory here, or "
                f"installed on every node"
            )
        if not sees:
            raise ConfigError(
                f"node {host} does not see {directory}; want --runs-dir on storage that all nodes share and may write"
            )


def inspect_node(directory: str, modules: Sequence[str]) -> tuple[dict[str, str], bool, list[str]]:
    """Say, on each node, what is installed there, if the directory may be written, what cannot be imported and why."""
    missing = []
    for name in modules:
        try:
            import_own(name)
        except Exception as error:  # it is anyone's code
            missing.append(f"{name} ({type(error).__name__}: {' '.join(str(error).split())})")
    return fingerprint(), os.access(directory, os.W_OK), missing


def fingerprint() -> dict[str, str]:
    """Collect the versions that must agree between nodes: what is sent between processes depends on them."""
    return {
        "qttdm": f"{importlib.metadata.version('qttdm')} (sources {source_digest()})",
        "torch": importlib.metadata.version("torch").partition("+")[0],  # CPU and CUDA builds go together
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def source_digest() -> str:
    """Hash this package's Python files, eight hexadecimal digits: an edited checkout keeps its version number."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder in ("common", "replay", "planner_service", "actors", "learner", "deploy"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def named_runs() -> list[str]:
    """List the runs that are on the cluster now. ConfigError if there is no cluster."""
    connect()
    actors: list[dict[str, Any]] = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
    return sorted(name.removesuffix("/control") for name in names if name.endswith("/control"))


def ask(name: str, method: str) -> Any:
    """Call a method of a run's RunControl. ConfigError if there is no such run on the cluster."""
    try:
        control = ray.get_actor(f"{name}/control", namespace=NAMESPACE)
        return ray.get(getattr(control, method).remote(), timeout=ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ConfigError(f"{name}: does not answer within {ANSWER_SECONDS:g} s; look at `ray status`") from None
    except (ValueError, RayError):
        there = ", ".join(named_runs()) or "none"
        raise ConfigError(f"{name}: no such run is on the cluster now; there: {there}") from None
