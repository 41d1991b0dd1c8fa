import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qttdm.common import checkpoint
from qttdm.common.checkpoint import FORMAT_VERSION, Checkpoint, CheckpointError, CheckpointStore, load_checkpoint


def contents(step: int) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, bytes]]:
    generator = torch.Generator().manual_seed(step)
    tensors = {"model.weight": torch.randn(3, 4, generator=generator), "step": torch.tensor(step)}
    return tensors, {"lr": 0.1 * step, "names": ["a", None], "deep": {"on": True}}, {"replay": bytes([step] * 100)}


def save(store: CheckpointStore, step: int) -> None:
    store.save(step, *contents(step))


def check(loaded: Checkpoint | None, step: int) -> None:
    """Exactly what `save(store, step)` put in."""
    assert loaded is not None
    assert loaded.step == step
    tensors, meta, blobs = contents(step)
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())
    assert (loaded.meta, loaded.blobs) == (meta, blobs)


def newest(store: CheckpointStore) -> Path:
    return sorted(store.directory.glob("0*"))[-1]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


def test_nothing_saved_loads_none(store: CheckpointStore) -> None:
    assert store.load_latest() is None
    store.directory.mkdir()
    assert store.load_latest() is None


def test_round_trip_and_pruning(store: CheckpointStore) -> None:
    for step in range(1, 6):
        save(store, step)
        check(store.load_latest(), step)
        assert len(os.listdir(store.directory)) == min(step, 3)
    assert store.load_latest().skipped == []


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.zeros(0, 4),
        torch.randn(4).to(torch.bfloat16),
        torch.randn(2, 3).t(),
        torch.randn(10)[2:5],
        torch.randn(1, 3).expand(4, 3),
        torch.randn(3, requires_grad=True),
        torch.Generator().get_state(),
    ],
)
def test_awkward_tensors(store: CheckpointStore, tensor: Tensor) -> None:
    store.save(1, {"x": tensor}, {}, {})
    loaded = store.load_latest().tensors["x"]
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded, tensor)
    loaded.fill_(1)  # belongs to whoever loads it


def test_tensors_that_share_memory(store: CheckpointStore) -> None:
    base = torch.arange(6.0)
    shared = {"a": base, "same": base, "row": base.view(2, 3)[1], "strided": base[::2]}
    store.save(1, shared, {}, {})
    loaded = store.load_latest().tensors
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shared.items())
    loaded["a"].zero_()
    assert torch.equal(loaded["same"], base)


def test_no_tensors_and_no_blobs(store: CheckpointStore) -> None:
    store.save(1, {}, {}, {"empty": b""})
    assert store.load_latest() == Checkpoint(newest(store), 1, {}, {}, {"empty": b""}, [])


def test_blobs_are_read_only_when_asked_for(store: CheckpointStore) -> None:
    save(store, 1)
    (newest(store) / "blobs" / "replay").write_bytes(b"damaged")
    for loaded in (store.load_latest(blobs=False), load_checkpoint(newest(store), blobs=False)):
        assert (loaded.step, loaded.blobs) == (1, {})
    with pytest.raises(CheckpointError, match="cannot load the checkpoint"):
        load_checkpoint(newest(store))


FILES = ["tensors.safetensors", "checkpoint.json", "blobs/replay", "SHA256SUMS"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, empty, Path.unlink])
def test_a_damaged_newest_falls_back_and_says_so(store: CheckpointStore, file: str, damage) -> None:
    save(store, 1)
    save(store, 2)
    damage(newest(store) / file)
    loaded = store.load_latest()
    check(loaded, 1)
    assert len(loaded.skipped) == 1
    assert "step-2" in loaded.skipped[0]
    assert "\n" not in loaded.skipped[0]


def test_all_damaged_is_one_line_and_an_error(store: CheckpointStore) -> None:
    save(store, 1)
    save(store, 2)
    for folder in store.directory.iterdir():
        flip(folder / "tensors.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be loaded.*step-2.*checksum.*step-1") as caught:
        store.load_latest()
    assert "\n" not in str(caught.value)


def forge(folder: Path) -> None:
    """Make the checksums hold for what is in the folder now."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))


HEAD = {"format": FORMAT_VERSION, "step": 2, "meta": {}, "blobs": ["replay"]}
HEADS = [
    *({}, [], 3, None, "x", HEAD | {"format": None}, HEAD | {"meta": []}, HEAD | {"blobs": None}),
    *(HEAD | {"blobs": ["../checkpoint.json"]}, HEAD | {"blobs": [1]}, HEAD | {"step": "2"}),
    *({key: value for key, value in HEAD.items() if key != left_out} for left_out in HEAD),
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_head_of_another_kind_is_skipped_though_its_checksum_holds(store: CheckpointStore, head: Any) -> None:
    save(store, 1)
    save(store, 2)
    (newest(store) / "checkpoint.json").write_text(json.dumps(head))
    forge(newest(store))
    loaded = store.load_latest()
    check(loaded, 1)
    assert re.fullmatch(
        r"skipped checkpoint 00000002-step-2: checkpoint\.json: got .*, want format, .*", *loaded.skipped
    )
    (store.directory / "00000001-step-1" / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be loaded; skipped .* skipped") as caught:
        store.load_latest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 100])
def test_half_the_tensors_are_skipped_though_their_checksum_holds(store: CheckpointStore, length: int) -> None:
    save(store, 1)
    save(store, 2)
    tensors = newest(store) / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:length])
    forge(newest(store))
    loaded = store.load_latest()
    check(loaded, 1)
    assert "step-2: tensors.safetensors: " in loaded.skipped[0]


def test_a_meta_that_is_of_no_use_is_skipped(store: CheckpointStore) -> None:
    save(store, 1)
    store.save(2, {}, {}, {})

    def want_rate(checkpoint: Checkpoint) -> None:
        if "lr" not in checkpoint.meta:
            raise ValueError("no rate")

    loaded = store.load_latest(check=want_rate)
    check(loaded, 1)
    assert loaded.skipped == ["skipped checkpoint 00000002-step-2: no rate"]


def test_of_two_that_save_in_one_place_one_ends(store: CheckpointStore) -> None:
    """Locks of a network file system may let two in; what the first has saved is not touched by the second."""
    save(store, 1)
    other = CheckpointStore(store.directory, keep=1)
    other.load_latest()
    save(store, 2)
    with pytest.raises(CheckpointError, match=r"00000002-step-2: saved by another process; two train in one run"):
        save(other, 3)
    save(store, 4)
    check(store.load_latest(), 4)


def test_saves_after_a_fallback_outrank_the_damaged_later_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 200)
    shutil.copytree(newest(store), tmp_path / "00000009-step-300")
    flip(tmp_path / "00000009-step-300" / "checkpoint.json")
    check(store.load_latest(), 200)
    save(store, 210)  # lower than 300, and still the newest
    loaded = store.load_latest()
    check(loaded, 210)
    assert loaded.skipped == []


def test_saving_one_step_twice_keeps_the_later(store: CheckpointStore) -> None:
    store.save(5, {}, {"try": 1}, {})
    store.save(5, {}, {"try": 2}, {})
    assert store.load_latest().meta == {"try": 2}


@pytest.mark.parametrize(("newer", "advice"), [(1, "use a newer qttdm"), (-1, "use the qttdm that saved it")])
def test_another_format_is_refused_not_skipped(store: CheckpointStore, monkeypatch, newer: int, advice: str) -> None:
    save(store, 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", FORMAT_VERSION + newer)
    save(store, 2)
    check(store.load_latest(), 2)
    monkeypatch.undo()
    want = f"has format {FORMAT_VERSION + newer}, this version reads {FORMAT_VERSION}; {advice}"
    with pytest.raises(CheckpointError, match=want) as caught:
        store.load_latest()
    assert "\n" not in str(caught.value)


class Kill(BaseException):
    """Stands for SIGKILL: nothing in save catches it, and no clean-up runs that a kill would not run."""


def count_or_kill(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Number every step that save takes on the disk; die in place of step `kill_at`, a write or removal half done."""
    steps: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: Any, **keywords: Any) -> Any:
            steps.append(name)
            if len(steps) - 1 == kill_at:
                if name == "write_file":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                if name == "rmtree":
                    (Path(arguments[0]) / "SHA256SUMS").unlink(missing_ok=True)
                raise Kill
            return original(*arguments, **keywords)

        monkeypatch.setattr(owner, name, step)

    for owner, name in ((checkpoint, "write_file"), (os, "fsync"), (os, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        wrap(owner, name)
    return steps


def test_a_kill_at_any_point_of_save_leaves_something_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str) -> CheckpointStore:
        store = CheckpointStore(tmp_path / name, keep=2)
        save(store, 1)
        save(store, 2)
        (store.directory / ".tmp-leftover").mkdir()
        return store

    store = prepare("whole")
    with monkeypatch.context() as patch:
        steps = count_or_kill(patch, None)
        save(store, 3)
    assert {"write_file", "fsync", "rename", "mkdir", "rmtree"} <= set(steps)
    outcomes = set()
    for kill_at in range(len(steps)):
        store = prepare(f"killed-{kill_at}")
        with monkeypatch.context() as patch:
            count_or_kill(patch, kill_at)
            with pytest.raises(Kill):
                save(store, 3)
        loaded = store.load_latest()
        assert loaded is not None
        check(loaded, loaded.step)
        assert loaded.skipped == []
        outcomes.add(loaded.step)
        assert all((folder / "SHA256SUMS").exists() for folder in store.directory.glob("0*")), "half-removed"
        save(store, 3)  # again, as the run does once it gets back there
        check(store.load_latest(), 3)
        assert not list(store.directory.glob(".tmp-*")), "leftovers go with the next save"
        assert len(os.listdir(store.directory)) == 2
    assert outcomes == {2, 3}


def test_every_file_is_synced_before_the_rename_and_the_folder_after(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = count_or_kill(monkeypatch, None)
    save(store, 1)
    rename = steps.index("rename")
    assert steps[:rename].count("fsync") == len(FILES) + 2  # each file, and both folders
    assert steps[rename + 1 :] == ["fsync"]


def test_a_full_disk_is_one_clear_error(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot save the checkpoint of step 2 .*No space left"):
            save(store, 2)
    check(store.load_latest(), 1)
    assert len(os.listdir(store.directory)) == 1  # what was half written takes no room


def test_the_files_are_what_the_docstring_says(store: CheckpointStore) -> None:
    save(store, 7)
    folder = store.directory / "00000001-step-7"
    head = json.loads((folder / "checkpoint.json").read_text())
    assert head == {"format": FORMAT_VERSION, "step": 7, "meta": contents(7)[1], "blobs": ["replay"]}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_blob_name_cannot_leave_the_folder(store: CheckpointStore, name: str) -> None:
    with pytest.raises(AssertionError):
        store.save(1, {}, {}, {name: b""})
