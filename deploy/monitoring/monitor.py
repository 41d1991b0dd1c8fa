"""`make monitor`: run Prometheus and Grafana, with the dashboards ready to look at, until Ctrl-C.

    processes --> exporter --/metrics--> Prometheus --> Grafana --> a browser     (all on loopback)

With docker compose where Docker runs (deploy/monitoring/compose.yml), else with the programs found on PATH; what is
missing is said. Without Grafana, Prometheus runs alone: its own page draws any query, and `qttdm top` needs neither.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
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
class Options:
    """The command line."""

    target: str
    """host:port of the exporter"""
    data: Path
    """folder for what is measured, logs and Prometheus's files"""
    ray: Path
    """Ray's temporary directory, which holds the list of its own metrics' addresses"""
    prometheus_port: int
    grafana_port: int

    @property
    def config(self) -> Path:
        """Folder of Prometheus's configuration."""
        return self.data / "config"

    def environment(self, dashboards: Path) -> dict[str, str]:
        """Environment variables that compose.yml and Grafana's provisioning read."""
        return os.environ | {
            "QTTDM_PROMETHEUS_CONFIG": str(self.config),
            "QTTDM_PROMETHEUS_PORT": str(self.prometheus_port),
            "QTTDM_PROMETHEUS_URL": f"http://127.0.0.1:{self.prometheus_port}",
            "QTTDM_GRAFANA_PORT": str(self.grafana_port),
            "QTTDM_RAY_DIR": str(self.ray),
            "QTTDM_DASHBOARDS": str(dashboards),
        }


@dataclass(frozen=True)
class Server:
    """A program to start."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path | None = None
    """where its output goes; None: to the terminal"""


def write_config(options: Options) -> None:
    """Write deploy/monitoring/prometheus into the data folder, with this exporter and Ray's directory."""
    options.config.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["qttdm"]["static_configs"][0]["targets"] = [options.target]
    jobs["ray"]["file_sd_configs"][0]["files"] = [str(options.ray / "prom_metrics_service_discovery.json")]
    (options.config / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.copy(HERE / "prometheus" / "alerts.yml", options.config)


def docker_runs() -> bool:
    """Is there docker compose, and a daemon that answers it?"""
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def servers_of(options: Options) -> list[Server]:
    """Choose what this machine can start: docker compose, else Prometheus and, if it is there, Grafana. ConfigError."""
    if docker_runs():
        options.ray.mkdir(parents=True, exist_ok=True)  # which is mounted; Docker would make it root's
        command = ["docker", "compose", "--file", str(COMPOSE), "up"]
        return [Server("docker compose", command, options.environment(Path("/dashboards")))]
    prometheus, grafana = shutil.which("prometheus"), shutil.which("grafana-server")
    if prometheus is None:
        raise ConfigError(
            "monitor: no Docker that runs, and no `prometheus` on PATH; install one of them (Debian, Ubuntu: "
            "apt install prometheus); `qttdm top` needs neither"
        )
    command = [
        prometheus,
        f"--config.file={options.config / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{options.prometheus_port}",
        f"--storage.tsdb.path={options.data / 'prometheus'}",
        "--storage.tsdb.retention.time=15d",
    ]
    servers = [Server("prometheus", command, dict(os.environ), options.data / "prometheus.log")]
    return [*servers, grafana_server(options, grafana)] if grafana else servers


def grafana_server(options: Options, program: str) -> Server:
    """Run Grafana from PATH with the settings that it has in compose.yml."""
    beside = Path(program).resolve().parents[1]
    home = next((home for home in (beside, *GRAFANA_HOMES) if (home / "conf" / "defaults.ini").exists()), beside)
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["environment"]
    environment = {name: value for name, value in compose.items() if name.startswith("GF_") and "$" not in value}
    environment |= options.environment(DASHBOARDS) | {
        "GF_SERVER_HTTP_PORT": str(options.grafana_port),
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(DASHBOARDS / "training.json"),
        "GF_PATHS_DATA": str(options.data / "grafana"),
        "GF_PATHS_LOGS": str(options.data / "grafana"),
        "GF_PATHS_PLUGINS": str(options.data / "grafana" / "plugins"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana" / "provisioning"),
    }
    return Server("grafana-server", [program, f"--homepath={home}"], environment, options.data / "grafana.log")


def check_port(port: int, option: str) -> None:
    """ConfigError, one line, if the port is taken."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}; choose another with {option}"
        raise ConfigError(f"monitor: cannot listen at 127.0.0.1:{port} ({reason})") from None


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the servers in this order, and end them in the other."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for server in servers:
            out: Any = server.log.open("ab") if server.log else None
            processes.append(  # a session of its own: Ctrl-C is ours to pass on
                subprocess.Popen(server.command, env=server.environment, stdout=out, stderr=out, start_new_session=True)
            )
        yield processes
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for server, process in reversed([*zip(servers, processes, strict=False)]):
            process.send_signal(signal.SIGTERM if server.log else signal.SIGINT)  # docker compose ends at an interrupt
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


def is_ready(url: str) -> bool:
    """Does a server answer there, and say that it is ready?"""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def monitor(options: Options) -> None:
    """Run the servers until Ctrl-C or SIGTERM. ConfigError if they cannot be started, or one of them ends."""
    servers = servers_of(options)
    urls = {"Prometheus": f"http://127.0.0.1:{options.prometheus_port}"}
    ready = [f"{urls['Prometheus']}/-/ready"]
    check_port(options.prometheus_port, "--prometheus-port")
    if servers[-1].name != "prometheus":
        urls["Grafana"] = f"http://127.0.0.1:{options.grafana_port}"
        ready.append(f"{urls['Grafana']}/api/health")
        check_port(options.grafana_port, "--grafana-port")
    try:
        write_config(options)
    except OSError as error:
        raise ConfigError(f"monitor: {options.data}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), running(servers) as processes:
        deadline = time.monotonic() + START_SECONDS
        for url in ready:
            while not is_ready(url):
                check_alive(servers, processes)
                if servers[0].log and time.monotonic() > deadline:  # docker may have to fetch images first
                    raise ConfigError(
                        f"monitor: nothing answers at {url} after {START_SECONDS:g} s; see {options.data}"
                    )
                time.sleep(0.2)
        if "Grafana" not in urls:
            print(
                "no Docker that runs, and no `grafana-server` on PATH: no dashboards, Prometheus alone (to have them, "
                "install Docker or Grafana, https://grafana.com/docs/grafana/latest/setup-grafana/installation)"
            )
        where = ", ".join(f"{name}: {url}" for name, url in urls.items())
        print(f"{where}, of {options.target}; data in {options.data}; Ctrl-C ends it", flush=True)
        while True:
            check_alive(servers, processes)
            time.sleep(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and monitor; returns the exit status."""
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
        monitor(Options(o.target, o.data.absolute(), o.ray.absolute(), o.prometheus_port, o.grafana_port))
    except ConfigError as error:
        print(f"qttdm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
