"""`qttdm monitor`: a real Prometheus scrapes a real exporter; stand-ins for Docker and Grafana."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import jsonschema
import pytest
import yaml

from qttdm.common.metrics.telemetry import Telemetry
from qttdm.deploy.monitoring.exporter import Exporter, serve
from qttdm.deploy.monitoring.monitor import COMPOSE, DASHBOARDS, HERE, start

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus: apt install prometheus")
PATIENCE = 300.0  # seconds

STAND_INS = {
    # Listens where Grafana would, and writes down how it was started.
    "grafana-server": """
        import json, os, socket, sys, threading
        server = socket.create_server(("127.0.0.1", int(os.environ["GF_SERVER_HTTP_PORT"])))
        json.dump({"arguments": sys.argv[1:], **os.environ}, open("grafana.json", "w"))
        threading.Event().wait()
        """,
    # A docker whose daemon runs; `up` goes on until it is interrupted.
    "docker": """
        import json, os, sys, threading
        if sys.argv[1:] in (["compose", "version"], ["info"]):
            sys.exit(0)
        try:
            json.dump({"arguments": sys.argv[1:], **os.environ}, open("docker.json", "w"))
            threading.Event().wait()
        except KeyboardInterrupt:
            open("stopped", "w").close()
        """,
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def is_free(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return answer


class Monitor:
    """`qttdm monitor` in a folder of its own, with a PATH on which only the programs named are."""

    def __init__(self, folder, programs):
        self.folder, self.ports = folder, (free_port(), free_port())
        self.path = folder / "bin"
        self.path.mkdir()
        for name in programs:
            if name in STAND_INS:
                (self.path / name).write_text(f"#!{sys.executable}\n{textwrap.dedent(STAND_INS[name])}")
                (self.path / name).chmod(0o755)
            else:
                (self.path / name).symlink_to(shutil.which(name))
        self.process = None

    def start(self, *arguments):
        ports = ["--prometheus-port", str(self.ports[0]), "--grafana-port", str(self.ports[1])]
        data = ["--data", str(self.folder / "data"), "--ray", str(self.folder / "ray")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qttdm", "monitor", *ports, *data, *arguments],
            cwd=self.folder,
            env=os.environ | {"PATH": str(self.path), "PYTHONPATH": str(HERE.parents[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def said(self):
        """What it says once the servers are started."""
        said = ""
        while "Ctrl-C ends it" not in said:
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            said += line
        return said

    def ask(self, query):
        """Prometheus's answer; nothing while it starts."""
        text = urllib.parse.quote(query)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[0]}/api/v1/query?query={text}") as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    def given(self, program):
        """Arguments and environment that a stand-in was started with."""
        path = self.folder / f"{program}.json"

        def read():
            try:
                return json.loads(path.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                return None

        return until(read, f"{program} is started")

    def stop(self, number=signal.SIGINT):
        """Its exit status, and what it said on stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


@pytest.fixture
def monitor(tmp_path):
    made = []

    def make(*programs):
        made.append(Monitor(tmp_path, programs))
        return made[-1]

    yield make
    for m in made:
        if m.process is not None and m.process.poll() is None:
            m.process.terminate()
            m.process.wait(timeout=PATIENCE)


@pytest.fixture
def target():
    """Address of an exporter."""
    exporter = Exporter()
    exporter.report(Telemetry.silent("actor").report(print).packed())
    server, thread = serve(exporter, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_prometheus
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_prometheus_alone_scrapes_the_exporter_knows_the_alerts_and_ends_when_told(monitor, target, number):
    m = monitor("prometheus")
    m.start("--target", target)
    said = m.said()
    assert "no `grafana-server` on PATH: no dashboards, Prometheus alone" in said
    assert f"Prometheus: http://127.0.0.1:{m.ports[0]}, of {target}; data and logs in {m.folder / 'data'}" in said
    (up,) = until(lambda: m.ask('up{job="qttdm"}'), "it scrapes")
    assert up["metric"]["instance"] == target
    until(lambda: m.ask("qttdm_process_up == 1"), "it has what the exporter says")
    with urllib.request.urlopen(f"http://127.0.0.1:{m.ports[0]}/api/v1/rules") as answer:
        (group,) = json.load(answer)["data"]["groups"]
    assert len(group["rules"]) == 12
    assert m.stop(number) == (0, "")
    assert is_free(m.ports[0])


@needs_prometheus
def test_rays_own_metrics_are_found_by_the_file_that_ray_writes(monitor, target):
    m = monitor("prometheus")
    (m.folder / "ray").mkdir()
    node = [{"labels": {"job": "ray"}, "targets": [target]}]
    (m.folder / "ray" / "prom_metrics_service_discovery.json").write_text(json.dumps(node))
    m.start("--target", target)
    m.said()
    until(lambda: m.ask('up{job="ray"} == 1'), "it scrapes what the file names")
    assert m.stop()[0] == 0


@needs_prometheus
def test_what_was_measured_is_still_there_the_next_time(monitor, target):
    m = monitor("prometheus")
    m.start("--target", target)
    m.said()
    until(lambda: m.ask("qttdm_process_up"), "it scrapes")
    m.stop()
    m.start("--target", f"127.0.0.1:{free_port()}")
    m.said()
    until(lambda: m.ask("max_over_time(qttdm_process_up[10m])"), "it is there")
    assert m.stop()[0] == 0


def test_programs_are_gone_after_ctrl_c_also_those_that_take_a_while(tmp_path):
    slow = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(3))); "
    slow += "open('ready', 'w').close(); time.sleep(600)"
    log = tmp_path / "log"
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        process = start(stack, [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {slow}"], log, {})
        until((tmp_path / "ready").exists, "it is started")
        raise KeyboardInterrupt
    assert process.returncode == 3


@needs_prometheus
def test_grafana_is_given_the_dashboards_and_the_data_source_and_ends_too(monitor, target):
    m = monitor("prometheus", "grafana-server")
    m.start("--target", target)
    assert f"Grafana: http://127.0.0.1:{m.ports[1]}" in m.said()
    given = m.given("grafana")
    assert given["QTTDM_PROMETHEUS_URL"] == f"http://127.0.0.1:{m.ports[0]}"
    assert given["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert json.loads(Path(given["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).read_text())["uid"] == "qttdm-training"
    provisioning = Path(given["GF_PATHS_PROVISIONING"])
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "qttdm.yaml").read_text())["providers"]
    assert (source["type"], source["url"]) == ("prometheus", "$QTTDM_PROMETHEUS_URL")
    assert provider["options"]["path"] == "$QTTDM_DASHBOARDS"
    assert sorted(Path(given["QTTDM_DASHBOARDS"]).glob("*.json")) == sorted(DASHBOARDS.glob("*.json"))
    assert m.stop() == (0, "")
    assert [is_free(port) for port in m.ports] == [True, True]


def test_docker_compose_is_taken_where_it_runs_and_interrupted_at_the_end(monitor):
    m = monitor("docker", "grafana-server")
    m.start("--target", "127.0.0.1:9200")
    m.said()
    given = m.given("docker")
    assert given["arguments"] == ["compose", "--file", str(COMPOSE), "up"]
    config = yaml.safe_load((Path(given["QTTDM_PROMETHEUS_CONFIG"]) / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:9200"]}]
    assert Path(given["QTTDM_RAY_DIR"]).is_dir()
    assert m.stop() == (0, "")
    assert (m.folder / "stopped").exists()
    assert not (m.folder / "grafana.json").exists()


def test_nothing_to_start_is_one_line(monitor):
    m = monitor("grafana-server")
    m.start()
    status, err = m.ended()
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("qttdm: monitor: no Docker that runs, and no `prometheus` on PATH; install one of them")


@needs_prometheus
@pytest.mark.parametrize(("which", "option"), [(0, "--prometheus-port"), (1, "--grafana-port")])
def test_a_port_in_use_is_one_line(monitor, which, option):
    m = monitor("prometheus", "grafana-server")
    with socket.create_server(("127.0.0.1", m.ports[which])):
        m.start()
        status, err = m.ended()
    address = f"127.0.0.1:{m.ports[which]}"
    assert (status, err) == (
        2,
        f"qttdm: monitor: cannot listen at {address} (Address already in use; choose another with {option})\n",
    )


@needs_prometheus
def test_a_server_that_ends_ends_the_other_and_is_one_line(monitor, target):
    m = monitor("prometheus", "grafana-server")
    m.start("--target", target)
    m.said()
    children = Path(f"/proc/{m.process.pid}/task/{m.process.pid}/children").read_text().split()
    of_prometheus = next(p for p in children if "prometheus" in Path(f"/proc/{p}/cmdline").read_text().split("\0")[0])
    os.kill(int(of_prometheus), signal.SIGKILL)
    status, err = m.ended()
    assert status == 2
    assert err.startswith("qttdm: monitor: prometheus ended with status -9")
    assert err.count("\n") == 1
    assert [is_free(port) for port in m.ports] == [True, True]


# --- the compose file, which needs Docker to run


def check_compose(content):
    schema = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
    jsonschema.Draft201909Validator(schema).validate(content)


def test_compose_knows_every_field():
    content = yaml.safe_load(COMPOSE.read_text())
    check_compose(content)
    content["services"]["grafana"]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        check_compose(content)


def test_compose_pins_versions_mounts_what_is_there_and_listens_on_loopback_only():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for service in services.values():
        assert service["image"].partition(":")[2].lstrip("v").count(".") == 2
        assert (
            service["network_mode"] == "host"
        )  # so `ports` would be ignored: the servers themselves must listen there
    assert any(word.startswith("--web.listen-address=127.0.0.1:") for word in services["prometheus"]["command"])
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    sources = [v.partition(":")[0] for v in services["grafana"]["volumes"]] + ["./prometheus"]
    assert [s for s in sources if s.startswith(".") and not (COMPOSE.parent / s).is_dir()] == []
    assert "${QTTDM_PROMETHEUS_CONFIG:-./prometheus}:/etc/prometheus:ro" in services["prometheus"]["volumes"]


def test_prometheus_and_grafana_agree_on_how_often_is_scraped():
    scrape = yaml.safe_load((HERE / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    source = HERE / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    assert yaml.safe_load(source.read_text())["datasources"][0]["jsonData"]["timeInterval"] == scrape
