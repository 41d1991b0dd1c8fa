import multiprocessing
import os
import re
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from qttdm.common.config import ConfigError
from qttdm.common.run_dir import RunDir


def test_create_makes_it_once(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "deep" / "run")
    assert run.path.is_dir()
    with pytest.raises(ConfigError, match=r"exists; choose another --run-dir$"):  # nothing in it to go on with
        RunDir.create(run.path)
    run.config_path.touch()
    with pytest.raises(ConfigError, match="exists; choose another --run-dir, or --resume it"):
        RunDir.create(run.path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="exists"):
        RunDir.create(tmp_path / "file")


def test_create_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot make the run directory .Not a directory"):
        RunDir.create(tmp_path / "file" / "deep" / "run")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # a real read-only folder would not stop root
    with pytest.raises(ConfigError, match="Permission denied"):
        RunDir.create(tmp_path / "run")
    with pytest.raises(ConfigError, match="Permission denied"):
        RunDir.create_for("dmc/walker-walk", tmp_path)


def test_default_names_are_unique_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.strptime("2026-01-31 23:59:58", "%Y-%m-%d %H:%M:%S")
    stamp = time.strftime("%Y%m%d-%H%M%S", now)
    monkeypatch.setattr(time, "strftime", lambda form: stamp if form == "%Y%m%d-%H%M%S" else pytest.fail(form))
    names = [RunDir.create_for("dmc/walker-walk", tmp_path / "runs").path.name for _ in range(3)]
    base = "dmc-walker-walk-20260131-235958"
    assert names == [base, f"{base}-2", f"{base}-3"]


def test_default_root_is_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"runs/a-b-\d{8}-\d{6}", str(RunDir.create_for("a/b").path))


def test_open_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        RunDir.open(tmp_path / "none")
    run = RunDir.create(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunDir.open(run.path)
    run.config_path.write_text("task: a\n")
    assert RunDir.open(run.path).path == run.path


def test_every_file_is_inside_and_has_its_own_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [run.config_path, run.metrics_path, run.checkpoints_dir, run.curve_path, run.video_path]
    assert len(set(paths)) == 5
    assert all(path.parent == tmp_path for path in paths)


def hold(path: Path, pipe: Connection) -> None:
    with RunDir(path).lock():
        pipe.send("locked")
        pipe.recv()


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(30)
    with pytest.raises(ConfigError, match=f"process {process.pid} is training here") as caught, RunDir(tmp_path).lock():
        pass
    assert str(tmp_path / "lock") in str(caught.value)
    process.kill()
    process.join()
    with RunDir(tmp_path).lock():
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunDir(tmp_path).lock():
        raise KeyError
    with RunDir(tmp_path).lock():
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"lock: cannot lock the run directory .it is no lock of ours; remove it"):
        RunDir(tmp_path).lock().__enter__()
    assert (tmp_path / "other").read_text() == "precious"


def test_no_lock_without_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot lock"), RunDir(tmp_path / "none").lock():
        pass


def test_the_seeds_of_a_clusters_run_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "walk" / "seed-0").mkdir(parents=True)
    (tmp_path / "walk" / "seed-0" / "events.log").touch()
    (tmp_path / "alone" / "seed-0").mkdir(parents=True)
    assert RunDir(tmp_path / "walk" / "seed-0").name == "walk"
    assert RunDir(tmp_path / "alone" / "seed-0").name == "seed-0"
    assert RunDir(tmp_path / "walk").name == "walk"
    monkeypatch.chdir(tmp_path / "walk" / "seed-0")
    assert RunDir(Path()).name == "walk"


def test_no_name_has_a_colon_or_a_slash(tmp_path: Path) -> None:
    run = RunDir.create_for("gym/my_module:Wind-v0", tmp_path)
    assert run.path.parent == tmp_path
    assert run.path.name.startswith("gym-my_module-Wind-v0-2")
