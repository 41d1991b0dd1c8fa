"""The layout is the architecture: which folder may import which, and where Ray may be known."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "common": set(),
    "replay": {"common"},
    "planner_service": {"common"},
    "learner": {"common", "replay"},
    "actors": {"common", "replay", "planner_service"},
    "deploy": {"common", "replay", "planner_service", "learner", "actors"},
}
FLOORS = (
    "common",
    "common/environments common/metrics",
    "common/models planner_service/policies replay",
    "learner/parts planner_service/planners planner_service/serving actors",
    "learner planner_service",
    "deploy/agents",
    "deploy/configs",
    "deploy/monitoring deploy/screens",
    "deploy/monitoring/grafana deploy/bodies deploy/runs",
    "deploy deploy/bench deploy/cluster",
    "deploy/suite deploy/chaos",
    "deploy/cli",
)
FILES = sorted(path.relative_to(ROOT) for folder in ARROWS for path in (ROOT / folder).rglob("*.py"))


def imported(source: str) -> list[str]:
    """Every module that a source imports, at any depth of nesting, as dotted names."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


def violations(path: Path, source: str) -> list[str]:
    """What is wrong with the imports of a file at `path`, relative to the root."""
    folder, wrong = path.parts[0], []
    for name in imported(source):
        package = name.partition(".")[0]
        if package == "qttdm":
            other = name.split(".")[1]
            if other != folder and other not in ARROWS[folder]:
                wrong.append(f"{path}: {folder} may not import {name}")
        if package == "tests" or package in ARROWS or not package:
            wrong.append(f"{path}: imports {name}")
        if package == "ray" and folder != "deploy" and path.name != "remote.py":
            wrong.append(f"{path}: only remote.py and deploy/ may import ray")
    return wrong


def arrows(files: list[Path]) -> dict[str, set[str]]:
    """Which folder imports which, one level at a time: `deploy/cli` and `deploy/screens` are two."""
    graph: dict[str, set[str]] = {}
    for path in files:
        others = graph.setdefault(str(path.parent), set())
        for name in imported((ROOT / path).read_text()):
            if name.startswith("qttdm."):
                target = Path(*name.split(".")[1:])
                folder = target if (ROOT / target).is_dir() else target.parent
                others |= {str(folder)} - {str(path.parent)}
    return graph


def test_folders_import_those_of_lower_floors_only():
    floor = {folder: number for number, folders in enumerate(FLOORS) for folder in folders.split()}
    up = [(one, other) for one, others in arrows(FILES).items() for other in others if floor[other] >= floor[one]]
    assert up == []


def test_tests_import_no_folder_by_its_bare_name():
    """The root is on their path, so that a module could load twice."""
    files = (ROOT / "tests").rglob("*.py")
    assert [
        path for path in files if ARROWS.keys() & {name.partition(".")[0] for name in imported(path.read_text())}
    ] == []


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_arrows(path):
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/models/tdm.py", "from qttdm.planner_service.planners.mppi import MPPI"),
        ("common/models/tdm.py", "import qttdm.replay.buffer as b"),
        ("replay/buffer.py", "import qttdm.learner"),
        ("learner/update.py", "def f():\n    from qttdm.planner_service import planner"),
        ("learner/update.py", "if TYPE_CHECKING:\n    from qttdm.actors.episodes import Stopped"),
        ("actors/episodes.py", "from qttdm.deploy.runs.local import LocalRun"),
        ("planner_service/planners/mppi.py", "from . import policy"),
        ("replay/buffer.py", "import ray"),
        ("learner/update.py", "def f():\n    from ray.util import queue"),
        ("deploy/runs/local.py", "from tests.fakes import Point"),
    ],
)
def test_the_checker_finds_what_is_wrong(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("deploy/runs/local.py", "import ray\nfrom qttdm.learner.update import Learner"),
        ("replay/remote.py", "import ray"),
        (
            "actors/episodes.py",
            "from qttdm.planner_service.policy import Policy\nimport qttdm.common.shapes",
        ),
        ("learner/update.py", "from qttdm.learner.parts.losses import q_loss\nimport rayon\nimport commonplace"),
    ],
)
def test_the_checker_lets_pass_what_is_right(path, source):
    assert violations(Path(path), source) == []


def test_private_ray_is_in_one_file():
    private = re.compile(r"ray\._|_raylet|ray import _|_actor_id|ray\.rpc")
    assert [str(path) for path in FILES if private.search((ROOT / path).read_text())] == [
        "deploy/cluster/ray_private.py"
    ]


def test_every_folder_is_there():
    assert {path.parts[0] for path in FILES} == set(ARROWS)


def test_every_init_is_empty():
    assert [str(path) for path in FILES if path.name == "__init__.py" and (ROOT / path).read_text().strip()] == []


def test_no_module_is_named_after_the_standard_library():
    names = {part for path in FILES for part in path.with_suffix("").parts if part != "__init__"}
    assert names & set(sys.stdlib_module_names) == set()


def test_an_error_across_two_folders_is_found_from_the_root(tmp_path):
    """mypy follows the links in qttdm/: a value of one folder's type is no other's."""
    for name in ("pyproject.toml", "qttdm", ".mypy_cache", *ARROWS):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, tmp_path / name)
    planted = "from qttdm.common.seeding import derive_seed\n\nseed: str = derive_seed(0, 'x')\n"
    (tmp_path / "learner" / "planted.py").write_text(planted)
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "planted.py:3: error: Incompatible types in assignment" in done.stdout
    assert "Found 1 error" in done.stdout
