"""`qttdm serve`: a trained agent for every program that has WebSockets; `--watch` follows its run's newest weights.

RUN --TrainedAgent--> PlannerService <--Server-- clients, and Prometheus at /metrics
     --newer_weights, every watch_every_s-->
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from qttdm.common.checkpoint import CheckpointError
from qttdm.common.config import Config, ConfigError, merge, parse_overrides, validate
from qttdm.deploy.monitoring.local_exporter import LocalExporter
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.planner_service.serving.server import Server, ServerConfig
from qttdm.planner_service.serving.service import PlannerService, ServiceConfig

TOKEN_VARIABLE = "QTTDM_TOKEN"  # noqa: S105 - its name


class ServeConfig(Config):
    """Everything about serving that is not the run's own."""

    server: ServerConfig = ServerConfig()
    service: ServiceConfig = ServiceConfig()
    watch_every_s: float = Field(default=2.0, gt=0)
    """between two looks for a newer checkpoint"""


def split_settings(settings: Sequence[str], host: str | None, port: int | None) -> tuple[ServeConfig, list[str]]:
    """Split `--set` items: those of ServeConfig, with host and port, as one; the others are the run's. ConfigError."""
    own = [item for item in settings if item.partition("=")[0].split(".")[0] in ServeConfig.model_fields]
    address = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    raw = merge({"server": address}, parse_overrides(own))
    return validate(ServeConfig, raw, "command line", raw), [item for item in settings if item not in own]


def read_token(file: Path | None) -> str | None:
    """Read what clients have to show: the file's content, or else the environment's. ConfigError if it is no use."""
    if file is None:
        token, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    else:
        source = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot read the token ({getattr(error, 'strerror', error)})") from None
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_.~+-]+", token):  # so that it can be in a subprotocol
        raise ConfigError(f"{source}: want a token of one or more letters, digits and _ . ~ + - only")
    return token


def make_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Make what the server proves itself with. ConfigError unless the two belong together."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert and --tls-key belong together; give both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{certificate}, {key}: cannot be used for TLS ({error.strerror or error})") from None
    return context


def describe(agent: TrainedAgent) -> dict[str, Any]:
    """Say what `info` says of the agent and its task, beside data and weights."""
    spec = agent.spec
    low, high = spec.action_bounds or ([-1.0] * spec.action_dim, [1.0] * spec.action_dim)
    bounds = None if agent.data.choices is not None else {"low": list(low), "high": list(high)}
    return {
        "task": agent.config.task,
        "agent": agent.config.agent,
        "action_bounds": bounds,
        "observation_parts": [{"name": part.name, "size": part.size} for part in spec.observation_parts],
        "action_repeat": spec.action_repeat,
        "episode_steps": spec.episode_steps,
        "decision_seconds": spec.decision_seconds,
        "discount": agent.data.discount,
    }


async def serve(
    agent: TrainedAgent,
    config: ServeConfig,
    token: str | None,
    tls: ssl.SSLContext | None,
    watch: bool,
) -> bool:
    """Serve until SIGTERM or Ctrl-C. True if every call that had arrived by then was answered."""
    c = agent.config
    metrics = LocalExporter()
    telemetry = metrics.of_run(agent.run_dir.name, c.seed, c.task)("planner", 0)
    service = PlannerService(config.service, agent.policy, agent.data, telemetry)
    server = Server(config.server, service, describe(agent), token, tls, metrics.text, agent.spec.in_units)
    agent.policy.warm_up(config.service.max_batch)  # the slow first decisions are nobody's
    gc.freeze()  # a message of many lists would have all that is there so far looked through: 0.2 s
    port = await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    version = agent.policy.weights_version
    print(f"{c.agent} on {c.task}, weights {version}: {config.server.host} port {port}", flush=True)
    watcher = asyncio.create_task(follow(agent, service, config.watch_every_s)) if watch else None
    await stop.wait()
    if watcher:
        watcher.cancel()
    return await server.stop()


async def follow(agent: TrainedAgent, service: PlannerService, every_s: float) -> None:
    """Take each new checkpoint of the run, for ever; one that cannot be used is reported and passed over."""
    while True:
        await asyncio.sleep(every_s)
        try:
            weights = await asyncio.to_thread(agent.newer_weights)
            if weights is not None:
                await service.load(weights)
                print(f"weights {service.policy.weights_version}", flush=True)
        except (CheckpointError, OSError, ValueError) as error:
            print(f"kept the weights in use: {error}", file=sys.stderr, flush=True)


def run(
    path: Path,
    settings: Sequence[str],
    host: str | None,
    port: int | None,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    watch: bool,
    planner: str | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. ConfigError if it cannot begin."""
    config, run_settings = split_settings(settings, host, port)
    token, tls = read_token(token_file), make_tls(certificate, key)
    agent = TrainedAgent(path, run_settings, planner)
    if watch and agent.run_dir.path != path:
        raise ConfigError(f"{path}: --watch follows a run, and this is one of its checkpoints")
    if not asyncio.run(serve(agent, config, token, tls, watch)):
        print(f"gave up on unanswered calls after {config.server.stop_timeout_s:g} s", file=sys.stderr, flush=True)
        os._exit(1)  # planning goes on in its thread, and leaving in the usual way would wait for it
