"""`qttdm monitor`: run Prometheus and Grafana, with the dashboards ready to look at, until Ctrl-C.

    processes --> exporter --/metrics--> Prometheus --> Grafana --> a browser     (all on loopback)

With docker compose where Docker runs (deploy/monitoring/compose.yml), else with the programs found on PATH; what is
missing is said. Without Grafana, Prometheus runs alone: its own page draws any query, and `qttdm top` needs neither.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from qttdm.common.config import ConfigError

HERE = Path(__file__).resolve().parent
COMPOSE = HERE / "compose.yml"
DASHBOARDS = HERE / "grafana" / "dashboards"
GRAFANA_HOMES = (Path("/usr/share/grafana"), Path("/usr/local/share/grafana"))
STOP_SECONDS = 30.0  # for a program to end when told to


@dataclass(frozen=True)
class Options:
    """What is watched, and where; folders are absolute."""

    target: str
    """HOST:PORT of the exporter"""
    data: Path
    """for measurements, configuration and logs"""
    ray: Path
    """Ray's --temp-dir, where it writes which of its nodes to scrape"""
    prometheus_port: int
    grafana_port: int


def write_config(options: Options) -> Path:
    """Write deploy/monitoring/prometheus into the data folder, with this exporter and Ray's directory; return where."""
    folder = options.data / "config"
    config = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    jobs["qttdm"]["static_configs"][0]["targets"] = [options.target]
    jobs["ray"]["file_sd_configs"][0]["files"] = [str(options.ray / "prom_metrics_service_discovery.json")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        shutil.copy(HERE / "prometheus" / "alerts.yml", folder)
    except OSError as error:
        raise ConfigError(f"monitor: {options.data}: {error.strerror}") from None
    return folder


def docker_runs() -> bool:
    """Is there docker compose, and a daemon that answers it?"""
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def run_docker(options: Options) -> None:
    """Become docker compose, which ends at Ctrl-C or SIGTERM."""
    check_port(options.prometheus_port, "--prometheus-port")
    check_port(options.grafana_port, "--grafana-port")
    environment = {
        "QTTDM_PROMETHEUS_CONFIG": str(write_config(options)),
        "QTTDM_PROMETHEUS_PORT": str(options.prometheus_port),
        "QTTDM_GRAFANA_PORT": str(options.grafana_port),
        "QTTDM_RAY_DIR": str(options.ray),
    }
    options.ray.mkdir(parents=True, exist_ok=True)  # which is mounted; Docker would make it root's
    say_where(options, grafana=True)
    os.execvpe("docker", ["docker", "compose", "--file", str(COMPOSE), "up"], os.environ | environment)


def run_programs(options: Options) -> None:
    """Run Prometheus and, if it is there, Grafana from PATH. ConfigError if they cannot be run, or one of them ends."""
    prometheus, grafana = shutil.which("prometheus"), shutil.which("grafana-server")
    if prometheus is None:
        raise ConfigError(
            "monitor: no Docker that runs, and no `prometheus` on PATH; install one of them (Debian, Ubuntu: "
            "apt install prometheus); `qttdm top` needs neither"
        )
    check_port(options.prometheus_port, "--prometheus-port")
    if grafana:
        check_port(options.grafana_port, "--grafana-port")
    command = [
        prometheus,
        f"--config.file={write_config(options) / 'prometheus.yml'}",
        f"--web.listen-address=127.0.0.1:{options.prometheus_port}",
        f"--storage.tsdb.path={options.data / 'prometheus'}",
        "--storage.tsdb.retention.time=15d",
    ]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        processes = {"prometheus": start(stack, command, options.data / "prometheus.log", {})}
        if grafana:
            own = [grafana, f"--homepath={grafana_home(grafana)}"]
            environment = grafana_environment(options)
            processes["grafana-server"] = start(stack, own, options.data / "grafana-server.log", environment)
        else:
            print(
                "no Docker that runs, and no `grafana-server` on PATH: no dashboards, Prometheus alone (to have them, "
                "install Docker or Grafana, https://grafana.com/docs/grafana/latest/setup-grafana/installation)"
            )
        say_where(options, grafana is not None)
        while True:
            for name, process in processes.items():
                if process.poll() is not None:
                    words = (options.data / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
                    ending = " ".join([f"monitor: {name} ended with status {process.returncode}", *words])
                    raise ConfigError(ending)
            time.sleep(0.5)


def start(stack: ExitStack, command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program whose output goes to a log; when the stack is left it ends."""
    out = stack.enter_context(log.open("ab"))
    process = subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True)
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program, and return when it is gone. (Popen's own `with` does not wait after a Ctrl-C.)"""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def grafana_home(program: str) -> Path:
    """Find the folder of Grafana's own files."""
    beside = Path(program).resolve().parents[1]
    return next((home for home in (beside, *GRAFANA_HOMES) if (home / "conf" / "defaults.ini").exists()), beside)


def grafana_environment(options: Options) -> dict[str, str]:
    """Give Grafana the settings that it has in compose.yml, with this machine's folders."""
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["grafana"]["environment"]
    return {name: value for name, value in compose.items() if "$" not in value} | {
        "QTTDM_PROMETHEUS_URL": f"http://127.0.0.1:{options.prometheus_port}",
        "QTTDM_DASHBOARDS": str(DASHBOARDS),
        "GF_SERVER_HTTP_PORT": str(options.grafana_port),
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(DASHBOARDS / "training.json"),
        "GF_PATHS_DATA": str(options.data / "grafana"),
        "GF_PATHS_LOGS": str(options.data / "grafana"),
        "GF_PATHS_PLUGINS": str(options.data / "grafana" / "plugins"),
        "GF_PATHS_PROVISIONING": str(HERE / "grafana" / "provisioning"),
    }


def check_port(port: int, option: str) -> None:
    """Raise ConfigError, one line, if the port is taken."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}; choose another with {option}"
        raise ConfigError(f"monitor: cannot listen at 127.0.0.1:{port} ({reason})") from None


def say_where(options: Options, grafana: bool) -> None:
    """Print where to look: they are starting."""
    where = f"Prometheus: http://127.0.0.1:{options.prometheus_port}"
    if grafana:
        where += f", Grafana: http://127.0.0.1:{options.grafana_port}"
    print(f"starting {where}, of {options.target}; data and logs in {options.data}; Ctrl-C ends it", flush=True)


def run(options: Options) -> None:
    """Monitor until Ctrl-C. ConfigError if that cannot be, or if a server ends."""
    run_docker(options) if docker_runs() else run_programs(options)
