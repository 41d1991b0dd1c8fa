"""The planner service's part of `make bench`: many clients at once against planning for one after the other.

    this process: one thread and one connection for each client  --loopback-->  a server process, one planner

A client asks again as soon as it is answered, so that as many requests as there are clients are under way at any time.
One-at-a-time planning is the same policy in a plain loop, measured in the same run. Overhead is what an answer takes
beyond its batch's planning (queue, thread changes, msgpack, two trips over loopback), for a client that is alone;
`bare` is that of a WebSocket server which does nothing but call the policy in a thread of its own, raw numbers in and
out: what the machine and the libraries take. The difference is the service's.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from aiohttp import web
from websockets.sync.client import connect

from qttdm.common.config import load_config
from qttdm.common.contracts import DataSpec, Policy, TaskSpec
from qttdm.deploy.bench.arithmetic import cpu_threads
from qttdm.deploy.configs.run_config import RunConfig, preset_path
from qttdm.deploy.runs.build import choose_device, make_policy
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.serving.client import Client
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig


@dataclass(frozen=True)
class Case:
    """What is served, to how many clients, and for how long."""

    name: str
    preset: str
    obs_dim: int
    action_dim: int
    clients: tuple[int, ...]
    seconds: float
    """of measuring, for each number of clients"""

    @property
    def spec(self) -> TaskSpec:
        """A task of that shape."""
        return TaskSpec(self.obs_dim, self.action_dim, 1, 1000, terminates=False, has_success=False)

    @property
    def data(self) -> DataSpec:
        """What its agent asks for."""
        return load_config(RunConfig, preset_path(self.preset)).make_agent(self.spec).data


LAPTOP = Case("laptop cartpole N=1", "laptop", 5, 1, (1, 4, 16, 64), seconds=4.0)
PAPER_GPU = Case("paper walker N=6", "paper-dmc", 24, 6, (1, 4, 16, 64), seconds=4.0)
PAPER_CPU = Case("paper reacher N=2", "paper-dmc", 6, 2, (1, 4), seconds=10.0)


@dataclass(frozen=True)
class Measured:
    """Some clients' answers."""

    latency: np.ndarray
    """seconds, as clients see them, an answer each"""
    planning: np.ndarray
    """seconds of its batch, likewise"""
    batch: float
    """mean size"""
    seconds: float
    """in which they came"""

    @property
    def rate(self) -> float:
        """Decisions per second, all clients together."""
        return len(self.latency) / self.seconds


def fresh_policy(case: Case, overrides: list[str], threads: int) -> Policy:
    """A fresh agent's, in a process that is a server's."""
    torch.set_num_threads(threads)
    config = load_config(RunConfig, preset_path(case.preset), overrides=overrides)
    return make_policy(config, case.spec, choose_device(config.device))


def run_server(case: Case, overrides: list[str], threads: int, port: Connection) -> None:
    """In a process of its own: serve a fresh agent until the parent ends it."""
    policy = fresh_policy(case, overrides, threads)
    policy.warm_up(max(case.clients))

    async def serve() -> None:
        service = PlannerService(ServiceConfig(), policy, case.data)
        server = Server(ServerConfig(port=0, max_connections=1000), service, {})
        port.send(await server.start())
        await asyncio.Event().wait()

    asyncio.run(serve())


def run_bare_server(case: Case, overrides: list[str], threads: int, port: Connection) -> None:
    """Likewise, for one client, with nothing between the socket and the policy but its thread."""
    policy, planner = fresh_policy(case, overrides, threads), ThreadPoolExecutor(max_workers=1)
    policy.warm_up(1)
    episodes = Lockstep(policy, [0], 0.0)

    def decide(observation: bytes) -> bytes:
        began = time.perf_counter()
        action = episodes.act({"observations": np.frombuffer(observation, np.float32)[None].copy()})[0]
        return np.append(action, time.perf_counter() - began).astype(np.float32).tobytes()

    async def answer(request: web.BaseRequest) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for message in socket:
            action = await asyncio.get_running_loop().run_in_executor(planner, decide, message.data)
            await socket.send_bytes(action)
        return socket

    async def serve() -> None:
        listener = await asyncio.get_running_loop().create_server(web.Server(answer), "127.0.0.1", 0)
        port.send(listener.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(serve())


@contextmanager
def server(
    case: Case, overrides: list[str], threads: int, run: Callable[[Case, list[str], int, Connection], None] = run_server
) -> Iterator[int]:
    """Its port."""
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(case, overrides, threads, theirs))
    process.start()
    try:
        theirs.close()  # so that its end is noticed
        try:
            port = ours.recv()
        except EOFError:
            raise RuntimeError(f"the server of {case.name} ended before it began") from None
        yield port
    finally:
        process.kill()
        process.join()


def drive(port: int, case: Case, clients: int) -> Measured:
    """That many clients, each asking again when it is answered; their first decisions do not count."""
    measured: list[tuple[float, float]] = []
    ready, over = threading.Barrier(clients + 1), threading.Event()

    def act(seed: int) -> None:
        observations = np.random.default_rng(seed).standard_normal((1000, case.obs_dim), dtype=np.float32)
        with Client(port=port, timeout_s=600.0) as client:
            episode = client.episode(seed)
            episode.act(observations[0])
            ready.wait()
            while not over.is_set():
                began = time.perf_counter()
                answer = episode.act(observations[episode.step % 1000])
                measured.append((time.perf_counter() - began, 1e-3 * answer["plan_ms"]))

    threads = [threading.Thread(target=act, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    with Client(port=port) as watcher:
        ready.wait()
        before, began = watcher.call("health"), time.perf_counter()
        time.sleep(case.seconds)
        over.set()
        for thread in threads:
            thread.join()
        after, seconds = watcher.call("health"), time.perf_counter() - began
    batch = (after["answers"] - before["answers"]) / (after["batches"] - before["batches"])
    latency, planning = np.array(measured).T
    return Measured(latency, planning, batch, seconds)


def bare_overhead(case: Case, overrides: list[str], threads: int) -> float:
    """Seconds that an answer takes beyond its planning, the median, where nothing is done that need not be."""
    observations = np.random.default_rng(0).standard_normal((1000, case.obs_dim), dtype=np.float32)
    beyond: list[float] = []
    with ExitStack() as stack:
        port = stack.enter_context(server(case, overrides, threads, run_bare_server))
        socket = stack.enter_context(connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None))
        until = time.perf_counter() + case.seconds
        while len(beyond) < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            socket.send(observations[len(beyond) % 1000].tobytes())
            answer = socket.recv(decode=False)
            beyond.append(time.perf_counter() - began - float(np.frombuffer(answer, np.float32)[-1]))
    return float(np.median(beyond[1:]))


def one_at_a_time(policy: Policy, case: Case) -> float:
    """Decisions per second of the policy itself, for one environment."""
    episodes = Lockstep(policy, [0], 0.0)
    observations = np.random.default_rng(0).standard_normal((1000, 1, case.obs_dim), dtype=np.float32)
    episodes.act({"observations": observations[0]})
    began, decisions = time.perf_counter(), 0
    while decisions < 2 or time.perf_counter() < began + 0.5 * case.seconds:
        episodes.act({"observations": observations[decisions % 1000]})
        decisions += 1
    return decisions / (time.perf_counter() - began)


def print_case(case: Case, overrides: list[str], threads: int | None) -> None:
    """A row for each number of clients. threads: of the preset, or else torch's, if None."""
    config = load_config(RunConfig, preset_path(case.preset), overrides=overrides)
    threads = threads or config.threads or torch.get_num_threads()
    bare = 1e3 * bare_overhead(case, overrides, threads)
    with cpu_threads(threads), server(case, overrides, threads) as port:
        policy = make_policy(config, case.spec, choose_device(config.device))
        policy.warm_up(1)
        for clients in case.clients:
            alone, m = one_at_a_time(policy, case), drive(port, case, clients)
            p50, p95, p99 = 1e3 * np.percentile(m.latency, (50, 95, 99))
            overhead, planning = 1e3 * np.median(m.latency - m.planning), 1e3 * np.median(m.planning)
            alone_here = f"{overhead:10.2f}{bare:7.2f}{overhead / planning:8.1%}"
            own = alone_here if clients == 1 else f"{'-':>10}{'-':>7}{'-':>8}"
            print(
                f"{case.name:24}{clients:8}{m.batch:7.1f}{m.rate:13.1f}{m.rate / alone:8.2f}"
                f"{p50:9.1f}{p95:9.1f}{p99:9.1f}{own}",
                flush=True,
            )


def print_service(device: str, threads: int | None, overrides: list[str]) -> None:
    """All cases that this machine can do in minutes."""
    on_gpu = choose_device(device).type == "cuda"
    settings = [f"device={device}", *(["qt-tdm.planner.compile=true"] if on_gpu else []), *overrides]
    paper = PAPER_GPU if on_gpu else PAPER_CPU
    print(
        "\nplanner service: decisions per second against one-at-a-time planning; latency and own overhead (p50) in ms"
    )
    latency = f"{'p50':>9}{'p95':>9}{'p99':>9}"
    own = f"{'overhead':>10}{'bare':>7}{'of plan':>8}"
    print(f"{'':24}{'clients':>8}{'batch':>7}{'decisions/s':>13}{'ratio':>8}{latency}{own}")
    for case in (LAPTOP, paper):
        print_case(case, settings, threads)


if __name__ == "__main__":
    print_service("auto", None, [])
