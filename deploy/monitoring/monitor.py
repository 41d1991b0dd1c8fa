"""`make monitor`: Prometheus and Grafana, with the dashboards open to look at, until Ctrl-C.

    processes --> exporter --/metrics--> Prometheus --> Grafana --> a browser     (all on loopback)

With docker compose where Docker runs (deploy/monitoring/compose.yml), else with the programs found on PATH; what is
missing is said. With Prometheus alone, that is started: its own page draws any query, and `qttdm top` needs neither.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from qttdm.common.config import ConfigError

HERE = Path(__file__).resolve().parent
COMPOSE = HERE / "compose.yml"
DASHBOARDS = HERE / "grafana" / "dashboards"
GRAFANA_HOMES = (Path("/usr/share/grafana"), Path("/usr/local/share/grafana"))
START_SECONDS = 60.0  # for a server to answer
STOP_SECONDS = 30.0  # for it to end when told to


@dataclass(frozen=True)
class Place:
    """Where everything is."""

    data: Path
    """what is measured, logs and Prometheus's files"""
    target: str
    """host:port of the exporter"""
    ray: Path
    """Ray's temporary directory, which holds the list of its own metrics' addresses"""
    prometheus_port: int
    grafana_port: int

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus_port}"

    @property
    def grafana_url(self) -> str:
        return f"http://127.0.0.1:{self.grafana_port}"

    @property
    def config(self) -> Path:
        """Folder of Prometheus's configuration."""
        return self.data / "config"

    def environment(self, dashboards: Path) -> dict[str, str]:
        """Of the servers: what deploy/monitoring/compose.yml and Grafana's provisioning take from there."""
        return os.environ | {
            "QTTDM_PROMETHEUS_CONFIG": str(self.config),
            "QTTDM_PROMETHEUS_PORT": str(self.prometheus_port),
            "QTTDM_PROMETHEUS_URL": self.prometheus_url,
            "QTTDM_GRAFANA_PORT": str(self.grafana_port),
            "QTTDM_RAY_DIR": str(self.ray),
            "QTTDM_DASHBOARDS": str(dashboards),
        }


@dataclass(frozen=True)
class Server:
    """A program to start, and where it answers when it is ready."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ready: tuple[str, ...]
    log: Path | None = None
    """None: to the terminal"""


def write_config(place: Place) -> None:
    """deploy/monitoring/prometheus, with this place's target and Ray's directory."""
    place.config.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["qttdm"]["static_configs"][0]["targets"] = [place.target]
    jobs["ray"]["file_sd_configs"][0]["files"] = [str(place.ray / "prom_metrics_service_discovery.json")]
    (place.config / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.copy(HERE / "prometheus" / "alerts.yml", place.config)


def docker_runs() -> bool:
    """Is there docker compose, and a daemon that answers it?"""
    if not shutil.which("docker"):
        return False
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, timeout=30, check=True)
    except subprocess.SubprocessError:
        return False
    return True


def prometheus(place: Place, program: str) -> Server:
    """Started from PATH."""
    command = [
        program,
        f"--config.file={place.config / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{place.prometheus_port}",
        f"--storage.tsdb.path={place.data / 'prometheus'}",
        "--storage.tsdb.retention.time=15d",
    ]
    ready = (f"{place.prometheus_url}/-/ready",)
    return Server("prometheus", command, dict(os.environ), ready, place.data / "prometheus.log")


def grafana(place: Place, program: str) -> Server:
    """Started from PATH."""
    beside = Path(program).resolve().parents[1]
    home = next((home for home in (beside, *GRAFANA_HOMES) if (home / "conf" / "defaults.ini").exists()), beside)
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["environment"]
    environment = place.environment(DASHBOARDS) | {
        name: value for name, value in compose.items() if name.startswith("GF_") and "$" not in value
    }
    environment |= {
        "GF_SERVER_HTTP_PORT": str(place.grafana_port),
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(DASHBOARDS / "training.json"),
        "GF_PATHS_DATA": str(place.data / "grafana"),
        "GF_PATHS_LOGS": str(place.data / "grafana"),
        "GF_PATHS_PLUGINS": str(place.data / "grafana" / "plugins"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana" / "provisioning"),
    }
    ready = (f"{place.grafana_url}/api/health",)
    return Server("grafana-server", [program, f"--homepath={home}"], environment, ready, place.data / "grafana.log")


def containers(place: Place) -> Server:
    """Both, by docker compose, which ends them when it is told to end."""
    place.ray.mkdir(parents=True, exist_ok=True)  # which is mounted; Docker would make it root's
    command = ["docker", "compose", "--file", str(COMPOSE), "up"]
    ready = (f"{place.prometheus_url}/-/ready", f"{place.grafana_url}/api/health")
    return Server("docker compose", command, place.environment(Path("/dashboards")), ready)


def choose(place: Place) -> tuple[list[Server], list[str]]:
    """What to start on this machine, and what there is to say about it. ConfigError if there is nothing to start."""
    if docker_runs():
        return [containers(place)], []
    found = {name: shutil.which(name) for name in ("prometheus", "grafana-server")}
    if found["prometheus"] is None:
        raise ConfigError(
            "monitor: no Docker that runs, and no `prometheus` on PATH; install one of them (Debian, Ubuntu: "
            "apt install prometheus); `qttdm top` needs neither"
        )
    servers = [prometheus(place, found["prometheus"])]
    if found["grafana-server"] is None:
        return servers, [
            "no Docker that runs, and no `grafana-server` on PATH: no dashboards, Prometheus alone (to have them, "
            "install Docker or Grafana, https://grafana.com/docs/grafana/latest/setup-grafana/installation)"
        ]
    return [*servers, grafana(place, found["grafana-server"])], []


def check_port(port: int, option: str) -> None:
    """ConfigError, one line, if somebody has it."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            reason = f"{error.strerror}; choose another with {option}"
            raise ConfigError(f"monitor: cannot listen at 127.0.0.1:{port} ({reason})") from None


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Started in this order, ended in the other."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for server in servers:
            out: Any = server.log.open("ab") if server.log else None
            processes.append(  # a session of its own: Ctrl-C is ours to pass on
                subprocess.Popen(server.command, env=server.environment, stdout=out, stderr=out, start_new_session=True)
            )
        yield processes
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT if process.args[0] == "docker" else signal.SIGTERM)  # type: ignore[index]
        for process in reversed(processes):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check_alive(servers: Sequence[Server], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """ConfigError, with its last words, if one has ended."""
    for server, process in zip(servers, processes, strict=True):
        if process.poll() is not None:
            words = server.log.read_text(errors="replace").strip().splitlines()[-1:] if server.log else []
            raise ConfigError(
                f"monitor: {server.name} ended with status {process.returncode} {' '.join(words)}".strip()
            )


def answers(url: str) -> bool:
    """Is somebody there, and ready?"""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Stop(Exception):  # noqa: N818 - not an error: Ctrl-C or SIGTERM
    """Asked to end."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


def monitor(place: Place) -> None:
    """Until Ctrl-C or SIGTERM. ConfigError if it cannot begin, or one of the servers ends."""
    servers, notes = choose(place)
    check_port(place.prometheus_port, "--prometheus-port")
    if len(servers) > 1 or servers[0].log is None:
        check_port(place.grafana_port, "--grafana-port")
    try:
        write_config(place)
    except OSError as error:
        raise ConfigError(f"monitor: {place.data}: {error.strerror}") from None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with running(servers) as processes:
            deadline = time.monotonic() + START_SECONDS
            for url in [url for server in servers for url in server.ready]:
                while not answers(url):
                    check_alive(servers, processes)
                    # Images may have to be fetched first, for however long.
                    if servers[0].log is not None and time.monotonic() > deadline:
                        raise ConfigError(
                            f"monitor: nothing answers at {url} after {START_SECONDS:g} s; see {place.data}"
                        )
                    time.sleep(0.2)
            for note in notes:
                print(note)
            where = [f"Prometheus: {place.prometheus_url}"]
            where += [] if notes else [f"Grafana: {place.grafana_url}"]
            print(f"{', '.join(where)}, of {place.target}; data in {place.data}; Ctrl-C ends it", flush=True)
            while True:
                check_alive(servers, processes)
                time.sleep(1)
    except Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m qttdm.deploy.monitoring.monitor", description="Prometheus and Grafana, on loopback"
    )
    p.add_argument("--target", metavar="HOST:PORT", default="127.0.0.1:9108", help="the exporter: cluster.metrics_port")
    p.add_argument("--data", metavar="DIR", type=Path, default=Path("runs/.monitor"), help="default: runs/.monitor")
    p.add_argument("--ray", metavar="DIR", type=Path, default=Path("/tmp/ray"), help="Ray's --temp-dir")
    p.add_argument("--prometheus-port", metavar="P", type=int, default=9090)
    p.add_argument("--grafana-port", metavar="P", type=int, default=3000)
    o = p.parse_args(arguments)
    try:
        monitor(Place(o.data.absolute(), o.target, o.ray.absolute(), o.prometheus_port, o.grafana_port))
    except ConfigError as error:
        print(f"qttdm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
