"""What listens for whom: docs/reliability.md, "Who may come in"."""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing
from pathlib import Path

import pytest

from qttdm.deploy.cli.options import Metrics
from qttdm.deploy.configs.cluster_config import ClusterConfig
from qttdm.deploy.configs.run_config import load_saved_config
from qttdm.planner_service.serving.client import leads_here
from qttdm.planner_service.serving.server import ServerConfig
from tests.deploy.listening import listening

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_by_default_it_is_this_machine_alone():
    assert all(map(leads_here, (ServerConfig().host, ClusterConfig().metrics_host, Metrics().metrics_host)))
    before, metrics = listening(os.getpid()), Metrics(metrics_port=free_port())
    assert metrics.serve()
    assert listening(os.getpid()) - before == {("127.0.0.1", metrics.metrics_port)}


def test_an_open_door_would_be_seen():
    with closing(socket.create_server(("0.0.0.0", 0))) as door:
        assert ("0.0.0.0", door.getsockname()[1]) in listening(os.getpid())


def test_every_port_is_on_the_page():
    rows = re.findall(r"^\| ([0-9]+)[^|]* \|", PAGE.partition("## Who may come in")[2], re.MULTILINE)
    defaults = {ServerConfig().port, ClusterConfig().metrics_port, 9090, 3000, 6006}  # `monitor` and `board`
    assert defaults <= set(map(int, rows))


@pytest.mark.parametrize(
    ("page", "named"),
    [
        ("task: my_module:MyEnv\n", "my_module:MyEnv"),
        ("task: gym/my_module:My-v0\nagent: my_agent:Mine\n", "gym/my_module:My-v0, my_agent:Mine"),
        ("task: gym/Pendulum-v1\n", ""),
    ],
)
def test_a_runs_own_page_says_what_code_it_imports_before_it_does(tmp_path, capsys, page, named):
    (tmp_path / "config.yaml").write_text(page)
    try:
        load_saved_config(tmp_path / "config.yaml")
    except ValueError as error:  # there is no such module: it was tried after it was said
        assert "my_agent" in str(error)  # noqa: PT017
    said = f"{tmp_path}/config.yaml: imports the code that it names: {named}\n" if named else ""
    assert capsys.readouterr().err == said
