"""Checkpoints that survive a kill at any moment: a folder is complete, checked and renamed into place, or ignored.

    checkpoints/00000007-step-20000/     the 7th save, at step 20000
        tensors.safetensors              networks, optimisers, generators
        blobs/NAME                       states that are bytes (the replay's visits and random states)
        checkpoint.json                  format version, step, meta, names of the blobs
        SHA256SUMS                       written last; `sha256sum -c SHA256SUMS` checks the folder by hand

Saves are numbered, and the highest number is the newest. Ordering by step instead would let a damaged checkpoint
outrank, and with keep=1 even push out, the ones that a run resumed from further back saves after it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from qttdm.common.disk import sync_file, write_file, writing

FORMAT_VERSION = 2
"""Raised whenever what a run saves changes its meaning. 1: runs on one machine held their episodes in a blob."""
HEAD = {"format": int, "step": int, "meta": dict, "blobs": list}
"""what checkpoint.json holds"""
_TEMPORARY = ".tmp-"


class CheckpointError(RuntimeError):
    """No checkpoint could be saved or loaded; its one line says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, on the CPU, and the folder it is in.

    `skipped` says, a line each, which newer checkpoints were damaged and how.
    """

    folder: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    blobs: dict[str, bytes]
    skipped: list[str] = field(default_factory=list)


class CheckpointStore:
    """The newest `keep` checkpoints of one run, in one folder with one writer."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        assert keep >= 1, keep
        self.directory = directory
        self.keep = keep
        self._seen = self._newest_number()

    def save(
        self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], blobs: Mapping[str, bytes]
    ) -> None:
        """Write one checkpoint; until its rename nothing that was there before is touched.

        `meta` must survive JSON (tuples come back as lists); blob names are plain file names. Raises CheckpointError
        when the disk refuses, or when another process has saved here since this one saved or loaded.
        """
        bad_names = [name for name in blobs if not _is_plain(name)]
        assert not bad_names, bad_names
        head = {"format": FORMAT_VERSION, "step": step, "meta": dict(meta), "blobs": sorted(blobs)}
        files = {
            "tensors.safetensors": safetensors.torch.save(_separate(tensors)),
            **{f"blobs/{name}": data for name, data in blobs.items()},
            "checkpoint.json": json.dumps(head, indent=1).encode(),
        }
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        try:
            if self._newest_number() > self._seen:
                raise CheckpointError(
                    f"{self.newest()}: saved by another process; two train in one run directory, and this one ends"
                )
            self._clean()
            number = self._newest_number() + 1
            name = f"{number:08d}-step-{step}"
            temporary = self.directory / (_TEMPORARY + name)
            with writing(temporary):
                (temporary / "blobs").mkdir(parents=True)
            for file, data in {**files, "SHA256SUMS": sums.encode()}.items():
                write_file(temporary / file, data)
            sync_file(temporary / "blobs")
            sync_file(temporary)
            with writing(self.directory / name):
                os.rename(temporary, self.directory / name)
            self._seen = number
            sync_file(self.directory)
            self._prune()
        except OSError as error:
            with suppress(OSError):
                self._clean()  # a full disk needs its room
            raise CheckpointError(f"{self.directory}: cannot save the checkpoint of step {step} ({error})") from error

    def load_latest(
        self, blobs: bool = True, check: Callable[[Checkpoint], object] = lambda checkpoint: None
    ) -> Checkpoint | None:
        """Load the newest checkpoint whose checksums hold; None where none was ever saved.

        blobs=False leaves those unread: a replay is far larger than all else, and acting needs none. check: raises
        ValueError for one that is of no use.
        Raises CheckpointError when every one is damaged, or the newest sound one has another format.
        """
        skipped: list[str] = []
        self._seen = self._newest_number()
        for folder in reversed(self.folders()):
            try:
                checkpoint = _read(folder, skipped, blobs)
                check(checkpoint)
                return checkpoint
            except (OSError, ValueError) as error:
                skipped.append(f"skipped checkpoint {folder.name}: {error}")
        if skipped:
            raise CheckpointError(f"{self.directory}: no checkpoint can be loaded; " + "; ".join(skipped))
        return None

    def newest(self) -> Path | None:
        """Find the newest checkpoint, unverified; None if there is none."""
        folders = self.folders()
        return folders[-1] if folders else None

    @staticmethod
    def number(folder: Path) -> int:
        """Return the number of a save, counted from 1."""
        return int(folder.name.split("-")[0])

    def folders(self) -> list[Path]:
        """List finished checkpoints, oldest first."""
        numbered = [path for path in self.directory.glob("*-step-*") if path.name.split("-")[0].isdigit()]
        return sorted(numbered, key=self.number)

    def _newest_number(self) -> int:
        """Return the number of the newest, 0 if there is none."""
        newest = self.newest()
        return self.number(newest) if newest else 0

    def _prune(self) -> None:
        """Remove all but the newest; renamed first, so that a half-removed one never looks like a damaged one."""
        for folder in self.folders()[: -self.keep]:
            os.rename(folder, self.directory / (_TEMPORARY + folder.name))
        self._clean()

    def _clean(self) -> None:
        """Remove what a killed save or prune left behind."""
        for leftover in self.directory.glob(_TEMPORARY + "*"):
            shutil.rmtree(leftover)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU copies that safetensors accepts: contiguous, no shared memory (tied weights come back untied)."""
    separate = {}
    seen = set()
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().contiguous()
        if copy.untyped_storage().data_ptr() in seen:
            copy = copy.clone()
        seen.add(copy.untyped_storage().data_ptr())
        separate[name] = copy
    return separate


def load_checkpoint(folder: Path, blobs: bool = True) -> Checkpoint:
    """Load the checkpoint in that folder, blobs as in `load_latest`. Raises CheckpointError when it is damaged."""
    try:
        return _read(folder, [], blobs)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot load the checkpoint ({error})") from None


def _read(folder: Path, skipped: list[str], with_blobs: bool) -> Checkpoint:
    """Load one folder; OSError or ValueError when it is damaged, CheckpointError when it has another format."""
    read = _verified_reader(folder)
    head = json.loads(read("checkpoint.json"))
    kinds = {key: type(value) for key, value in head.items()} if isinstance(head, dict) else {}
    if kinds.get("format") is int and head["format"] != FORMAT_VERSION:
        use = "use a newer qttdm" if head["format"] > FORMAT_VERSION else "use the qttdm that saved it, or train anew"
        raise CheckpointError(f"{folder}: has format {head['format']}, this version reads {FORMAT_VERSION}; {use}")
    if kinds != HEAD or not all(isinstance(name, str) and _is_plain(name) for name in head["blobs"]):
        raise ValueError(f"checkpoint.json: got {head!s:.60}, want {', '.join(HEAD)}")
    try:
        tensors = safetensors.torch.load(read("tensors.safetensors"))
    except safetensors.SafetensorError as error:
        raise ValueError(f"tensors.safetensors: {error}") from None
    blobs = {name: read(f"blobs/{name}") for name in head["blobs"]} if with_blobs else {}
    return Checkpoint(folder, head["step"], tensors, head["meta"], blobs, skipped)


def _is_plain(name: str) -> bool:
    """Is it a file's name, in one folder?"""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _verified_reader(folder: Path) -> Callable[[str], bytes]:
    """Make a function that reads a file of this folder whole; ValueError unless it is what was written."""
    lines = [line.split("  ", 1) for line in (folder / "SHA256SUMS").read_text().splitlines()]
    digests = {parts[-1]: parts[0] for parts in lines}

    def read(name: str) -> bytes:
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digests.get(name):
            raise ValueError(f"{name} does not match its checksum")
        return data

    return read
