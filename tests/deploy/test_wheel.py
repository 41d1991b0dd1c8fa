"""The wheel, in a virtual environment and a folder of its own: first with the core alone, then with the extra `serve`.

The packages are those installed here, linked: what pip would fetch, and whether ranges hold, `make test-lowest` says.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from qttdm.common.extras import EXTRAS

ROOT = Path(__file__).parents[2]
HERE = Path(sysconfig.get_path("purelib"))
FILES = (  # one of each kind that a command or a page names
    "configs/laptop.yaml",
    "monitoring/compose.yml",
    "monitoring/prometheus/alerts.yml",
    "monitoring/grafana/dashboards/training.json",
    "monitoring/grafana/provisioning/datasources/prometheus.yaml",
    "platforms/slurm/train.sbatch",
    "platforms/kubernetes/rayjob.yaml",
    "platforms/docker/Dockerfile",
)
ASK = """
import sys
from qttdm.planner_service.serving.client import Client
with Client(port=int(sys.argv[1])) as client:
    print(client.call("info")["task"], client.episode(seed=0).act([1.0, 0.0, 0.0])["action"])
"""


def needed(requirements, extra=""):
    """Distributions that the package's requirements bring, with one of its extras or with none."""
    found = {}
    todo = [(Requirement(text), extra) for text in requirements]
    while todo:
        wanted, extra = todo.pop()
        if wanted.name in found or not (wanted.marker is None or wanted.marker.evaluate({"extra": extra})):
            continue
        if wanted.name == "qttdm":  # an extra of an extra
            todo += [(Requirement(text), inner) for inner in wanted.extras for text in requirements]
        else:
            found[wanted.name] = distribution(wanted.name)
            todo += [(Requirement(text), "") for text in found[wanted.name].requires or ()]
    return found.values()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("qttdm", *(path.name for path in (ROOT / "qttdm").iterdir() if path.is_symlink())):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    (path,) = folder.glob("qttdm-*.whl")
    return path


class Installed:
    """The wheel in a virtual environment, used from an empty folder."""

    def __init__(self, wheel, folder):
        self.environment, self.folder = folder / "venv", folder / "there"
        self.folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.environment)], check=True)
        site = self.environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        pip = [sys.executable, "-m", "pip", "--python", str(self.environment / "bin" / "python")]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], env=plain(), check=True)
        self.site = site

    def link(self, distributions):
        """Install these, as links."""
        for one in distributions:
            for top in {path.parts[0] for path in one.files or ()} - {"..", "__pycache__"}:
                if not (self.site / top).exists():
                    (self.site / top).symlink_to(HERE / top)

    def command(self, *arguments):
        return [str(self.environment / "bin" / "python"), "-m", "qttdm", *arguments]

    def run(self, *arguments):
        """Exit status and everything said."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=plain(), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


def plain():
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "QTTDM_TOKEN")}


def test_the_wheel_holds_what_the_commands_use(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [file for file in FILES if f"qttdm/deploy/{file}" not in names] == []
    assert {name.split("/")[0].split("-")[0] for name in names} == {"qttdm"}


def test_it_trains_and_evaluates_with_the_core_alone_names_extras_and_serves_with_them(wheel, tmp_path):
    there = Installed(wheel, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    asked = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    there.link(needed(asked))
    for package in {package for packages in EXTRAS.values() for package in packages}:
        assert not (there.site / package).exists()
    assert there.run("train", "--preset", "debug") == (
        2,
        "qttdm: dmc/cartpole-swingup needs dm_control: pip install 'qttdm[dmc]'\n",
    )
    assert there.run("cluster", "status") == (2, "qttdm: a cluster needs ray: pip install 'qttdm[cluster]'\n")
    assert list(there.folder.iterdir()) == []
    pendulum = ("--task", "gym/Pendulum-v1", "--env-steps", "700", "--run-dir", "run")
    status, said = there.run("train", "--preset", "debug", *pendulum)
    assert (status, "curve: run/curve.png" in said) == (0, True), said
    status, said = there.run("eval", "run", "--episodes", "1")
    assert (status, "mean return" in said) == (0, True), said
    assert there.run("serve", "run") == (2, "qttdm: qttdm serve needs aiohttp: pip install 'qttdm[serve]'\n")

    there.link(needed(asked, "serve"))
    assert not (there.site / "ray").exists()
    server = subprocess.Popen(
        there.command("serve", "run", "--port", "0"), cwd=there.folder, env=plain(), stdout=subprocess.PIPE, text=True
    )
    try:
        port = server.stdout.readline().split()[-1]
        client = [str(there.environment / "bin" / "python"), "-c", ASK, port]
        done = subprocess.run(client, cwd=there.folder, env=plain(), capture_output=True, text=True, check=False)
        assert done.stdout.startswith("gym/Pendulum-v1 ["), done.stderr
    finally:
        server.terminate()
        server.wait(30)
        server.stdout.close()
