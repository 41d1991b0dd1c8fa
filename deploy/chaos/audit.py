"""Audit a run by its files alone: a line for each promise that they break, and exit status 1 if there is one.

    python -m qttdm.deploy.chaos.audit runs/NAME/seed-0

Imports nothing of the program that it audits: the formats are those that replay/log.py, codec.py and shard.py,
common/checkpoint.py and common/metrics/lines.py document. The run must have ended, without `--accept-losses`; actors'
numbers have gaps if it went on elsewhere than it began, one machine or a cluster.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import safetensors.numpy
import yaml

MAGIC = b"\xf5SEG"
HEAD = struct.Struct("<4sQII")  # magic, sequence number, length, CRC32 of both and the payload
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, safetensors.SafetensorError)
SUMS = ("episodes", "decisions", "env_steps")
COUNTERS = (*SUMS, "updates", "wall_seconds")
Line = Mapping[str, Any]
Place = tuple[int, int]
"""shard and sequence number of an episode"""


@dataclass(frozen=True)
class Stored:
    """What an episode's record says."""

    shard: int
    sequence: int
    checksum: int
    actor: int
    number: int
    decisions: int
    env_steps: int
    episode_return: float
    oldest_weights: int
    newest_weights: int


@dataclass
class Shard:
    """A folder replay/shard-N: what is whole, and what is wrong."""

    first: int = 0
    """sequence number of the oldest episode that is not deleted"""
    deleted: list[int] = field(default_factory=lambda: [0, 0, 0])
    """episodes, decisions and environment steps before it"""
    highest: list[Place] = field(default_factory=list)
    """each actor, and the highest number of its deleted episodes"""
    episodes: list[Stored] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def audit(run_dir: Path, witnessed: Mapping[Place, int] | None = None, broken: int = 0) -> list[str]:
    """Return a line for each violation.

    witnessed: checksums of episodes that were whole on disk while the run went on. broken: episodes that environments
    broke in, if those can be more than events.log tells of.
    """
    found = []
    try:
        for what in Auditor(run_dir, witnessed or {}, broken).violations():
            found.append(what)
    except UNREADABLE as error:
        found.append(f"cannot be audited to the end: something {in_one_line(error)}")
    return found


class Auditor:
    """One run's files, read once."""

    def __init__(self, run_dir: Path, witnessed: Mapping[Place, int], broken: int) -> None:
        config = yaml.safe_load((run_dir / "config.yaml").read_text())
        self.training, self.cluster = config["training"], config["cluster"]
        self.run_dir, self.witnessed = run_dir, witnessed
        self.events = read(run_dir / "events.log").decode()
        self.broken = max(broken, self.events.count("replaced its environments"))
        self.shards = [read_shard(run_dir / f"replay/shard-{i}", i) for i in range(self.cluster["shards"])]
        self.episodes = [episode for shard in self.shards for episode in shard.episodes]
        self.deleted = [sum(numbers) for numbers in zip(*(shard.deleted for shard in self.shards), strict=True)]
        self.metrics = read(run_dir / "metrics.jsonl")
        self.lines: list[Line] = []
        self.newest: Line = {}
        """meta of the newest checkpoint that loads"""

    def violations(self) -> Iterator[str]:
        """Yield a line for each."""
        yield from (f"replay/shard-{i}: {what}" for i, shard in enumerate(self.shards) for what in shard.wrong)
        yield from self._episodes()
        yield from self._checkpoints()
        yield from (f"metrics.jsonl: {what}" for what in [*self._read_lines(), *self._counters(), *self._pace()])
        if self.newest:
            yield from (f"metrics.jsonl: {what}" for what in self._lines_are_episodes())
            yield from self._end()
        left = [*self.run_dir.rglob("*.tmp"), *self.run_dir.rglob(".tmp-*"), *self.run_dir.glob(".failure-room")]
        yield from (f"{path.relative_to(self.run_dir)}: a temporary file is left" for path in left)

    def _episodes(self) -> Iterator[str]:
        """Each that was stored is there once, under its name; along an actor's, weights only grow."""
        names = Counter((e.actor, e.number) for e in self.episodes)
        yield from (f"episode {n} of actor {a} is stored {c} times" for (a, n), c in names.items() if c > 1)
        there = {(e.shard, e.sequence): e.checksum for e in self.episodes}
        for (shard, sequence), checksum in self.witnessed.items():
            if sequence >= self.shards[shard].first and there.get((shard, sequence)) != checksum:
                yield f"replay/shard-{shard}: number {sequence} was whole on disk, and is gone or another"
        last = dict(sorted([*names, *(pair for shard in self.shards for pair in shard.highest)]))  # of each actor
        gaps = sum(1 + number for number in last.values()) - len(names) - self.deleted[0]
        if gaps > self.broken:
            yield f"{gaps} episodes are missing between their actors' numbers; environments broke in {self.broken}"
        for old, new in pairwise(sorted(self.episodes, key=lambda e: (e.shard, e.actor, e.sequence))):
            if (old.shard, old.actor) == (new.shard, new.actor) and new.number <= old.number:
                yield f"replay/shard-{new.shard}: episode {new.number} of actor {new.actor} comes after {old.number}"
        for old, new in pairwise(sorted(self.episodes, key=lambda e: (e.actor, e.number))):
            if old.actor == new.actor and not old.newest_weights <= new.oldest_weights <= new.newest_weights:
                yield f"episode {new.number} of actor {new.actor} has older weights than the one before"

    def _read_lines(self) -> Iterator[str]:
        """Parse what has an end; the counters of all are numbers."""
        *whole, rest = self.metrics.split(b"\n")
        for number, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
                if line["kind"] not in ("train", "update", "eval") or not all(math.isfinite(line[c]) for c in COUNTERS):
                    raise ValueError
                self.lines.append(line)
            except UNREADABLE:
                yield f"line {number} is none"
        if rest:
            yield "its last line has no end"

    def _counters(self) -> Iterator[str]:
        """They never go back; those of an evaluation are of when it became due."""
        for name in COUNTERS:
            told = [line[name] for line in self.lines if name == "wall_seconds" or line["kind"] != "eval"]
            yield from (f"{name} goes back from {old} to {new}" for old, new in pairwise(told) if new < old)
        done = Counter((line["env_steps"], line["updates"]) for line in self.lines if line["kind"] == "eval")
        yield from (f"{count} evaluations at steps and updates {at}" for at, count in done.items() if count > 1)

    def _pace(self) -> Iterator[str]:
        """Updates are never ahead of decisions, nor further behind than allowed.

        A learner that began anew counts at once what was stored since its checkpoint, and then catches up.
        """
        c, longest = self.cluster, max((e.decisions for e in self.episodes), default=0)
        allowed = c["pace"]["max_backlog"] + self.training["update_ratio"] * c["actors"] * c["envs_per_actor"] * longest
        anew = [int(updates) for updates in re.findall(r"goes on from the checkpoint at (\d+) updates", self.events)]
        most = allowed
        for line in self.lines:
            behind = self._due(line) - line["updates"]
            if behind <= allowed:
                most = allowed
            elif any(0 <= line["updates"] - updates <= allowed for updates in anew):
                most = max(most, allowed + behind)
            if behind < 0 or (behind > most and line["kind"] != "eval"):  # its counts are of when it became due
                yield f"{line['updates']} updates at {line['decisions']} decisions, {self._due(line):g} are due"

    def _due(self, counts: Line) -> float:
        seed = self.newest["pace"]["seed_decisions"] if self.newest else self.training["seed_decisions"]
        return max(0.0, float(self.training["update_ratio"]) * (counts["decisions"] - seed))

    def _checkpoints(self) -> Iterator[str]:
        """Each loads and holds together with replay and metrics; they are in a row, and no more than are kept."""
        folders = sorted((self.run_dir / "checkpoints").glob("[0-9]*-step-*"))
        names = [[int(part) for part in folder.name.split("-step-")] for folder in folders]
        in_row = all(new[0] == old[0] + 1 and new[1] >= old[1] for old, new in pairwise(names))
        if not in_row or not 0 < len(folders) <= self.training["keep_checkpoints"]:
            yield f"checkpoints: got {[folder.name for folder in folders]}"
        for folder in folders:
            try:
                meta, blobs = read_checkpoint(folder)
                yield from (f"checkpoints/{folder.name}: {what}" for what in self._belongs(meta, blobs))
                self.newest = meta
            except UNREADABLE as error:
                yield f"checkpoints/{folder.name}: {in_one_line(error)}"

    def _belongs(self, meta: Line, blobs: Mapping[str, bytes]) -> Iterator[str]:
        counters, pace, cursors = meta["counters"], meta["pace"], meta["cursors"]
        if len(cursors) != len(self.shards) or any(meta["accepted_losses"]):
            yield f"has cursors {cursors} for {len(self.shards)} shards, accepted losses {meta['accepted_losses']}"
            return
        counted = [e for e in self.episodes if e.sequence < cursors[e.shard]]
        there = added(self.deleted, ((e.decisions, e.env_steps) for e in counted))
        if there != [counters[name] for name in SUMS] or counters["decisions"] != pace["decisions"]:
            yield f"counts {counters} and {pace}; in replay are {there} episodes, decisions and steps"
        for i, shard in enumerate(self.shards):
            if f"replay-{i}" in blobs:  # else the shard did not answer
                state = unseal(blobs[f"replay-{i}"])
                start, stop = state["sequences"]
                span = [(e.sequence, e.checksum) for e in shard.episodes if start <= e.sequence < stop]
                if state["digest"] != zlib.crc32(repr(span).encode()) or stop < cursors[i]:
                    yield f"names episodes {start} to {stop} of shard {i}, which are not there as they were"
        before, size = self.metrics[: meta["metrics_bytes"]], meta["metrics_bytes"]
        told = [json.loads(text) for text in before.splitlines() if b'"eval"' not in text]
        last = told[-1] if told else dict.fromkeys(COUNTERS, 0)
        is_of_it = [last[name] for name in SUMS] == [counters[name] for name in SUMS] and last["updates"] <= pace[
            "updates"
        ]
        if len(before) < size or before[-1:] not in (b"\n", b"") or not is_of_it:
            yield f"counts {counters} and {pace} at byte {size} of metrics.jsonl, where that has {last}"

    def _lines_are_episodes(self) -> Iterator[str]:
        """Every episode that the newest checkpoint counts has its line, and no other."""
        told, sums = Counter[tuple[Any, ...]](), [0, 0, 0]
        for line in (line for line in self.lines if line["kind"] == "train"):
            steps = line["env_steps"] - sums[2]
            told[line["actor"], line["episode_return"], line["episode_length"], steps] += 1
            sums = added(sums, [(line["episode_length"], steps)])
            if sums != [line[name] for name in SUMS]:
                yield f"episodes, decisions and steps are {[line[name] for name in SUMS]}, want {sums}"
                sums = [line[name] for name in SUMS]
        counted = [e for e in self.episodes if e.sequence < self.newest["cursors"][e.shard]]
        stored = Counter((e.actor, e.episode_return, e.decisions, e.env_steps) for e in counted)
        for missing in (stored - told).elements():
            yield f"no line of the episode with actor, return, decisions and steps {missing}"
        rest = added([0, 0, 0], (line[2:] for line in (told - stored).elements()))
        if rest != self.deleted:
            yield f"tells of {rest} episodes, decisions and steps that are not stored; deleted were {self.deleted}"

    def _end(self) -> Iterator[str]:
        """All steps, all updates, all lines."""
        counters, updates = self.newest["counters"], self.newest["pace"]["updates"]
        if not self.newest["finished"] or counters["env_steps"] < self.training["env_steps"]:
            yield f"it has not reached its end: {counters['env_steps']} of {self.training['env_steps']} steps"
        elif self._due(counters) - updates >= 1 or len(self.metrics) != self.newest["metrics_bytes"]:
            yield f"its last checkpoint is not of its end: {updates} updates, {len(self.metrics)} bytes of metrics"


def added(sums: Sequence[int], episodes: Any) -> list[int]:
    """Add the (decisions, steps) of some episodes to [episodes, decisions, steps]."""
    return [sum(column) for column in zip(sums, *((1, *episode) for episode in episodes), strict=True)]


def in_one_line(error: BaseException) -> str:
    """Say that something does not load, and why."""
    return f"does not load ({type(error).__name__}: {' '.join(str(error).split())[:150]})"


def read(path: Path) -> bytes:
    """Read a file, nothing if there is none."""
    return path.read_bytes() if path.exists() else b""


def read_shard(folder: Path, number: int) -> Shard:
    """Read a shard's index and log; what is wrong with them is in `wrong`."""
    shard = Shard()
    try:
        index = unseal((folder / "index").read_bytes())
        shard.first, shard.deleted = index["first"], index["before"]
        shard.highest = [(actor, highest) for actor, highest in index["highest"]]
        shard.wrong += [f"the index tells of a loss: {name}" for _, name in index["lost"]]
    except UNREADABLE as error:
        shard.wrong.append(f"index: {in_one_line(error)}")
    expected = shard.first
    for sequence, payload in read_log(folder, shard.wrong):
        if sequence < shard.first:  # its file was to be deleted
            continue
        if sequence != expected:
            shard.wrong.append(f"number {sequence} comes where {expected} was due")
        expected = sequence + 1
        try:
            shard.episodes.append(read_episode(number, sequence, payload))
        except UNREADABLE as error:
            shard.wrong.append(f"number {sequence}: {in_one_line(error)}")
    return shard


def read_log(folder: Path, wrong: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of each whole record; anything else but a record cut short by a kill is wrong."""
    for path in sorted(folder.glob("*.log")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            magic, sequence, length, checksum = HEAD.unpack(data[at : at + HEAD.size].ljust(HEAD.size, b"\0"))
            end = at + HEAD.size + length
            payload = data[at + HEAD.size : end]
            checked = zlib.crc32(payload, zlib.crc32(struct.pack("<QI", sequence, length)))
            if magic == MAGIC and end <= len(data) and checked == checksum:
                if at == 0 and sequence != int(path.stem):
                    wrong.append(f"{path.name}: begins with number {sequence}")
                yield sequence, payload
                at = end
                continue
            following = data.find(MAGIC, at + 1)
            is_torn = MAGIC.startswith(data[at : at + 4]) and (end > len(data) or len(data) - at < HEAD.size)
            if following >= 0 or not is_torn:
                wrong.append(f"{path.name}: no whole record at byte {at}")
            at = following if following >= 0 else len(data)


def read_episode(shard: int, sequence: int, record: bytes) -> Stored:
    """Read an episode's record. One of UNREADABLE if it is none."""
    content, arrays = unseal(record), {}
    for name, stored in content["arrays"].items():
        arrays[name] = np.frombuffer(stored["data"], stored["dtype"]).reshape(stored["shape"])
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite")
    steps = len(arrays["rewards"])
    if not len(arrays["observations"]) - 1 == len(arrays["actions"]) == steps > 0:
        raise ValueError("its arrays are of other lengths than each other")
    numbers = {key: int(content[key]) for key in ("actor", "number", "env_steps", "oldest_weights", "newest_weights")}
    total = float(arrays["rewards"].sum(dtype=np.float64))
    return Stored(shard, sequence, checksum_of(record), decisions=steps, episode_return=total, **numbers)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a checkpoint's meta and blobs. One of UNREADABLE if it is not as it was written."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sums = files.pop("SHA256SUMS").decode()
    if sorted(sums.splitlines()) != sorted(
        f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in files.items()
    ):
        raise ValueError("its files are not those of SHA256SUMS")
    head, tensors = json.loads(files["checkpoint.json"]), safetensors.numpy.load(files["tensors.safetensors"])
    if bad := [name for name, tensor in tensors.items() if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()]:
        raise ValueError(f"{bad[0]} is not finite")
    meta = head["meta"]
    named = int(folder.name.split("-step-")[1]), int(tensors["updates"])
    if named != (meta["counters"]["env_steps"], meta["pace"]["updates"]) or named[0] != head["step"]:
        raise ValueError(f"is of step and updates {named}, and counts {meta['counters']}, {meta['pace']}")
    return meta, {name: files[f"blobs/{name}"] for name in head["blobs"]}


def unseal(record: bytes) -> dict[str, Any]:
    """Read a map with its CRC32 in front. ValueError if it was changed."""
    if zlib.crc32(record[4:]) != checksum_of(record):
        raise ValueError("its checksum differs")
    content: dict[str, Any] = msgpack.unpackb(record[4:])
    return content


def checksum_of(record: bytes) -> int:
    """Return the CRC32 that it begins with."""
    return int.from_bytes(record[:4], "little")


def whole_episodes(run_dir: Path) -> dict[Place, int]:
    """Look at what a run has on disk while it goes on: checksums by place, to hold against what is left later."""
    found = {}
    for folder in (run_dir / "replay").glob("shard-*"):
        with suppress(FileNotFoundError):  # deleted just now
            for sequence, record in read_log(folder, []):
                found[int(folder.name.split("-")[1]), sequence] = checksum_of(record)
    return found


def processes(folder: Path) -> dict[int, str]:
    """Find all processes that have to do with a folder, but for this one: by number, their command lines.

    By their arguments, environment, working directory or open files: Ray's write over the first two.
    """
    found, wanted = {}, str(folder)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended just now, or is another user's
            title = (process / "cmdline").read_bytes()
            links = [process / "cwd", *(process / "fd").iterdir()]
            is_ours = wanted.encode() in title + (process / "environ").read_bytes()
            if title and (is_ours or any(os.readlink(link).startswith(wanted) for link in links)):
                found[int(process.name)] = re.sub(rb"[\0\s]+", b" ", title).decode(errors="replace").strip()
    found.pop(os.getpid(), None)
    return found


def left_behind(folder: Path, ports: Sequence[int], temporary: Path) -> list[str]:
    """Return a line for each process, listening port or temporary file that is left when all has ended."""
    lines = [f"process {pid} is left: {title[:100]}" for pid, title in processes(folder).items()]
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = row.split()
        if state == "0A" and (port := int(local.partition(":")[2], 16)) in ports:
            lines.append(f"port {port} is still listened on")
    return lines + [f"{path}: a temporary file is left" for path in temporary.iterdir()]


if __name__ == "__main__":
    found = [f"{path}: {what}" for path in sys.argv[1:] for what in audit(Path(path))]
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit(bool(found))
