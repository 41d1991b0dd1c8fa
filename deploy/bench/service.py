"""The planner service's part of `make bench`: many clients at once, and what the service itself takes.

    this process: one thread and one connection for each client  --loopback-->  a server process, one planner

A client asks again as soon as it is answered, so that as many requests as there are clients are under way at any time.
One-at-a-time planning is the same policy in a plain loop, measured in the same run. The service's own time (queue,
thread changes, msgpack, checks) is measured with random actions, which cost nothing, in turns with a bare WebSocket
server that only calls that policy: what the machine and a library take.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import torch
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from qttdm.common.config import load_config
from qttdm.common.contracts import DataSpec, Policy, vector_data
from qttdm.deploy.bench.models import SHAPES, Shape
from qttdm.deploy.bench.timing import Compared, cpu_threads, in_turns, rate, timings
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import choose_device, make_policy
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.random_actions import RandomPolicy
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig

CLIENTS = (1, 4, 16, 64)
SECONDS = 4.0  # for each number of clients
DECISIONS = 100  # one at a time
CALLS, ROUNDS = 400, 5  # of the service's own time
OBS_DIM = 5
CPU = torch.device("cpu")


def planner(shape: Shape, overrides: list[str], threads: int) -> tuple[Policy, DataSpec]:
    """Make a fresh agent's policy on that many threads, and say what it is shown."""
    torch.set_num_threads(threads)
    config = load_config(RunConfig, preset_path(shape.preset), overrides=overrides)
    policy = make_policy(config, shape.spec, choose_device(config.device))
    policy.warm_up(max(CLIENTS))
    return policy, config.make_agent(shape.spec).data


def random_actions() -> tuple[Policy, DataSpec]:
    """Make a policy that costs nothing, and say what it is shown."""
    data = vector_data(OBS_DIM, 1, window=1, discount=1.0)
    return RandomPolicy(data), data


def run_service(make: Callable[[], tuple[Policy, DataSpec]], port: Connection) -> None:
    """Serve a policy, in a process of its own, until the parent ends it."""
    policy, data = make()

    async def run() -> None:
        server = Server(ServerConfig(port=0, max_connections=1000), PlannerService(ServiceConfig(), policy, data), {})
        port.send(await server.start())
        await asyncio.Event().wait()

    asyncio.run(run())


def run_bare_server(port: Connection) -> None:
    """Answer clients, in a process of its own, with nothing between the socket and the policy."""
    episodes = Lockstep(random_actions()[0], [0], 0.0)

    def answer(socket: ServerConnection) -> None:
        for message in socket:
            observation = np.frombuffer(cast(bytes, message), np.float32)
            socket.send(episodes.act({"observations": observation[None]}).tobytes())

    with serve(answer, "127.0.0.1", 0, compression=None) as server:
        port.send(server.socket.getsockname()[1])
        server.serve_forever()


@contextmanager
def running(run: Callable[[Connection], None]) -> Iterator[int]:
    """Run a server in a process of its own; yields its port."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(theirs,))
    process.start()
    try:
        theirs.close()  # so that its end is noticed
        try:
            port = ours.recv()
        except EOFError:
            raise RuntimeError("the server ended before it began") from None
        yield port
    finally:
        process.kill()
        process.join()


def drive(port: int, clients: int, seconds: float) -> tuple[float, float, np.ndarray]:
    """Let clients ask for so long; their first decisions do not count.

    Returns decisions per second of all together, the mean batch, and the seconds that each answer took.
    """
    latencies: list[float] = []
    ready, over = threading.Barrier(clients + 1), threading.Event()

    def act(seed: int) -> None:
        with Client(port=port, timeout_s=600.0) as client:
            shape = client.info["observations"]["observations"]["shape"]
            observation, episode = np.zeros(shape, np.float32), client.episode(seed)
            episode.act(observation)
            ready.wait()
            while not over.is_set():
                began = time.perf_counter()
                episode.act(observation)
                latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    with Client(port=port) as watcher:
        ready.wait()
        before, began = watcher.call("health"), time.perf_counter()
        time.sleep(seconds)
        over.set()
        for thread in threads:
            thread.join()
        after, passed = watcher.call("health"), time.perf_counter() - began
    batch = (after["answers"] - before["answers"]) / (after["batches"] - before["batches"])
    return len(latencies) / passed, batch, np.array(latencies)


def time_answer() -> Compared:
    """Measure the median seconds of an answer without planning: the service's, and a bare server's."""
    observation = np.zeros(OBS_DIM, np.float32)
    with (
        running(partial(run_service, random_actions)) as port,
        running(run_bare_server) as bare_port,
        Client(port=port) as client,
        connect(f"ws://127.0.0.1:{bare_port}", compression=None, proxy=None) as socket,
    ):
        episode = client.episode(seed=0)

        def ask_bare() -> None:
            socket.send(observation.tobytes())
            socket.recv(decode=False)

        return in_turns(
            lambda: float(np.median(timings(lambda: episode.act(observation), CPU, CALLS))),
            lambda: float(np.median(timings(ask_bare, CPU, CALLS))),
            ROUNDS,
        )


def print_service(device: str, threads: int | None, overrides: list[str]) -> None:
    """Print a row for each number of clients, and the service's own time. On a GPU at the paper's size.

    threads: of the preset, or else torch's, if None.
    """
    on_gpu = choose_device(device).type == "cuda"
    shape = SHAPES[-1] if on_gpu else SHAPES[0]
    settings = [f"device={device}", *(["qt-tdm.planner.compile=true"] if on_gpu else []), *overrides]
    threads = threads or load_config(RunConfig, preset_path(shape.preset), overrides=settings).threads
    make = partial(planner, shape, settings, threads or torch.get_num_threads())
    print(f"\nplanner service, {shape.name}: decisions per second against one-at-a-time planning; latency in ms")
    print(f"{'clients':>8}{'batch':>7}{'decisions/s':>13}{'ratio':>8}{'p50':>9}{'p99':>9}")
    with cpu_threads(torch.get_num_threads()), running(partial(run_service, make)) as port:
        alone = Lockstep(make()[0], [0], 0.0)
        observations = {"observations": np.zeros((1, shape.obs_dim), np.float32)}
        for clients in CLIENTS:
            one = rate(lambda: alone.act(observations), DECISIONS)
            decisions, batch, latencies = drive(port, clients, SECONDS)
            p50, p99 = 1e3 * np.percentile(latencies, (50, 99))
            print(f"{clients:8}{batch:7.1f}{decisions:13.1f}{decisions / one:8.2f}{p50:9.1f}{p99:9.1f}", flush=True)
    own = time_answer()
    ours, bare = 1e3 * own.ours, 1e3 * own.other
    print(
        f"an answer without planning {ours:.2f} ms, a bare server's {bare:.2f}: {ours - bare:.2f} ms are the service's"
    )


if __name__ == "__main__":
    print_service("auto", None, [])
