"""Audit a run by its files alone: a line for each promise that they break, and exit status 1 if there is one.

    python -m qttdm.deploy.chaos.audit runs/NAME/seed-0

It imports nothing of the program that it audits. The formats are those that replay/log.py, replay/codec.py,
replay/shard.py, common/checkpoint.py and common/metrics/lines.py document. The run must have ended, without
`--accept-losses`.
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
GENERATION = 10**9  # of a weights version: the learner's start times this, and its updates
COUNTERS = ("env_steps", "decisions", "updates", "episodes", "wall_seconds")
Place = tuple[int, int]
"""shard and sequence number of a stored episode"""


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

    @property
    def line(self) -> tuple[Any, ...]:
        """What its line in metrics.jsonl tells."""
        return self.actor, self.decisions, self.env_steps, self.episode_return


@dataclass
class Shard:
    """A folder replay/shard-N: what is whole, and what is wrong."""

    first: int = 0
    """sequence number of the oldest episode that is not deleted"""
    deleted: list[int] = field(default_factory=lambda: [0, 0, 0])
    """episodes, decisions and environment steps before it"""
    highest: dict[int, int] = field(default_factory=dict)
    """number of each actor's newest deleted episode"""
    episodes: list[Stored] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def audit(run_dir: Path, witnessed: Mapping[Place, int] | None = None, dropped: int = 0) -> list[str]:
    """Return a line for each violation.

    witnessed: checksums of episodes that were seen whole on disk while the run went on, which it may delete but not
    lose. dropped: episodes that environments broke in, at most, if events.log may not have told of all.
    """
    return [*Auditor(run_dir, witnessed or {}, dropped).violations()]


class Auditor:
    """One run's files, read once."""

    def __init__(self, run_dir: Path, witnessed: Mapping[Place, int], dropped: int) -> None:
        self.run_dir, self.witnessed = run_dir, witnessed
        self.config = yaml.safe_load((run_dir / "config.yaml").read_text())
        self.training, self.cluster = self.config["training"], self.config["cluster"]
        events = run_dir / "events.log"
        self.events = events.read_text() if events.exists() else ""
        self.dropped = max(dropped, self.events.count("replaced its environments"))
        folders = sorted((run_dir / "replay").glob("shard-*"), key=lambda path: int(path.name.split("-")[1]))
        self.shards = [read_shard(folder) for folder in folders]
        self.episodes = [episode for shard in self.shards for episode in shard.episodes]
        self.metrics = b""
        with suppress(FileNotFoundError):
            self.metrics = (run_dir / "metrics.jsonl").read_bytes()
        self.checkpoints = sorted((run_dir / "checkpoints").glob("*-step-*"))

    def violations(self) -> Iterator[str]:
        """Yield a line for each."""
        for number, shard in enumerate(self.shards):
            yield from (f"replay/shard-{number}: {what}" for what in shard.wrong)
        yield from self._each_once()
        lines: list[dict[str, Any]] = []
        yield from self._read_lines(lines)
        yield from self._forward(lines)
        yield from self._pace(lines)
        meta: dict[str, Any] = {}
        yield from self._checkpoints(meta)
        if meta:
            yield from self._lines_are_episodes([line for line in lines if line["kind"] == "train"], meta["cursors"])
            yield from self._ended(meta)
        leftovers = [*self.run_dir.rglob("*.tmp"), *self.run_dir.rglob(".tmp-*"), *self.run_dir.glob(".failure-room")]
        yield from (f"{path.relative_to(self.run_dir)}: a temporary file is left" for path in leftovers)

    def _each_once(self) -> Iterator[str]:
        """Every episode that was stored is there once, under its name, and weights only grow."""
        names = Counter((e.actor, e.number) for e in self.episodes)
        yield from (f"episode {n} of actor {a} is stored {c} times" for (a, n), c in names.items() if c > 1)
        kept = {(e.shard, e.sequence): e.checksum for e in self.episodes}
        for (shard, sequence), checksum in self.witnessed.items():
            if sequence >= self.shards[shard].first and kept.get((shard, sequence)) != checksum:
                yield f"replay/shard-{shard}: number {sequence} was whole on disk, and is gone or another"
        newest = Counter[int]()  # the highest number of each actor
        for actor, number in [*names, *(pair for shard in self.shards for pair in shard.highest.items())]:
            newest[actor] = max(newest[actor], number)
        gaps = sum(1 + number for number in newest.values()) - len(names) - sum(s.deleted[0] for s in self.shards)
        if gaps > self.dropped:
            yield f"{gaps} episodes are missing between their actors' numbers; environments broke in {self.dropped}"
        for actor in newest:
            own = [e for e in self.episodes if e.actor == actor]
            versions = [(e.oldest_weights, e.newest_weights) for e in sorted(own, key=lambda e: e.number)]
            if any(old[0] > old[1] or old[1] > new[0] for old, new in pairwise(versions)):
                yield f"actor {actor}: an episode was collected with older weights than the one before"
        generation = self.run_dir / "generation"
        starts = int(generation.read_text()) if generation.exists() else 0
        if any(e.newest_weights >= (starts + 1) * GENERATION for e in self.episodes):
            yield f"an episode was collected with weights of a later learner than number {starts}, the newest"

    def _read_lines(self, lines: list[dict[str, Any]]) -> Iterator[str]:
        """Parse metrics.jsonl into `lines`."""
        *whole, rest = self.metrics.split(b"\n")
        if rest:
            yield "metrics.jsonl: its last line has no end"
        for number, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
                if line["kind"] not in ("train", "update", "eval") or not all(math.isfinite(line[c]) for c in COUNTERS):
                    raise ValueError
                lines.append(line)
            except (ValueError, KeyError, TypeError):
                yield f"metrics.jsonl:{number}: no line of metrics"

    def _forward(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Counters never go back; an evaluation has those of when it became due."""
        for name in COUNTERS:
            told = [line for line in lines if name == "wall_seconds" or line["kind"] != "eval"]
            for before, after in pairwise(told):
                if after[name] < before[name]:
                    yield f"metrics.jsonl: {name} goes back from {before[name]} to {after[name]}"
        steps = Counter(line["env_steps"] for line in lines if line["kind"] == "eval")
        yield from (f"metrics.jsonl: evaluated {n} times at {s} steps" for s, n in steps.items() if n > 1)

    def _pace(self, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """Updates never run ahead of decisions; nor behind, while the learner lives."""
        c, longest = self.cluster, max([0, *(e.decisions for e in self.episodes)])
        behind = c["pace"]["max_backlog"] + self.training["update_ratio"] * c["actors"] * c["envs_per_actor"] * longest
        begun_anew = "goes on from the checkpoint" in self.events
        for line in lines:
            due = self._updates_due(line["decisions"])
            if line["updates"] > due or (line["updates"] < due - behind and not begun_anew and line["kind"] != "eval"):
                yield f"metrics.jsonl: {line['updates']} updates at {line['decisions']} decisions, {due:g} are due"

    def _updates_due(self, decisions: int) -> float:
        seed = self.training["seed_decisions"]
        return max(0.0, float(self.training["update_ratio"]) * (decisions - seed))

    def _checkpoints(self, newest: dict[str, Any]) -> Iterator[str]:
        """Each loads, and counts what the replay holds; `newest` becomes the newest one's meta."""
        if not 0 < len(self.checkpoints) <= self.training["keep_checkpoints"]:
            yield f"checkpoints: there are {len(self.checkpoints)}, to keep are {self.training['keep_checkpoints']}"
        numbers = [int(folder.name.split("-")[0]) for folder in self.checkpoints]
        if numbers != [*range(numbers[0], numbers[0] + len(numbers))] if numbers else False:
            yield f"checkpoints: numbers {numbers} are not in a row"
        steps = [int(folder.name.split("-")[2]) for folder in self.checkpoints]
        if steps != sorted(steps):
            yield f"checkpoints: steps go back, {steps}"
        for folder in self.checkpoints:
            try:
                meta, blobs = read_checkpoint(folder)
                yield from (f"checkpoints/{folder.name}: {what}" for what in self._belongs(meta, blobs))
                newest.clear()
                newest.update(meta)
            except (OSError, ValueError, KeyError, TypeError, IndexError, safetensors.SafetensorError) as error:
                yield f"checkpoints/{folder.name}: does not load ({' '.join(str(error).split())[:200]})"

    def _belongs(self, meta: Mapping[str, Any], blobs: Mapping[str, bytes]) -> Iterator[str]:
        """Does a checkpoint hold together with replay and metrics?"""
        counters, cursors = meta["counters"], meta["cursors"]
        if len(cursors) != len(self.shards) or len(cursors) != self.cluster["shards"]:
            yield f"is of {len(cursors)} shards, there are {len(self.shards)}"
            return
        sums = [sum(numbers) for numbers in zip(*(shard.deleted for shard in self.shards), strict=True)]
        for e in self.episodes:
            if e.sequence < cursors[e.shard]:
                sums = [sums[0] + 1, sums[1] + e.decisions, sums[2] + e.env_steps]
        told = [counters["episodes"], counters["decisions"], counters["env_steps"]]
        # What was deleted may have been stored after an older checkpoint, which then counts less than the sum.
        if told != sums and (told > sums or not any(s.first > c for s, c in zip(self.shards, cursors, strict=True))):
            yield f"counts {told} episodes, decisions and steps; in replay they are {sums}"
        if meta["pace"]["decisions"] != counters["decisions"]:
            yield f"its pace counts {meta['pace']['decisions']} decisions, its counters {counters['decisions']}"
        if meta["pace"]["updates"] > self._updates_due(counters["decisions"]):
            yield f"{meta['pace']['updates']} updates are more than {counters['decisions']} decisions ask for"
        for number, shard in enumerate(self.shards):
            if any(meta["accepted_losses"][number]):
                yield f"accepted losses of shard {number}"
            if (state := blobs.get(f"replay-{number}")) is None:  # it did not answer; its cursor says what counts
                continue
            content = unseal(state)
            start, stop = content["sequences"]
            span = [(e.sequence, e.checksum) for e in shard.episodes if start <= e.sequence < stop]
            if content["digest"] != zlib.crc32(repr(span).encode()) or stop < cursors[number]:
                yield f"names episodes {start} to {stop} of shard {number}, which are not there as they were"
        size = meta["metrics_bytes"]
        before = self.metrics[:size].split(b"\n")
        if len(self.metrics) < size or before[-1]:
            yield f"metrics.jsonl: no line ends at byte {size}, where the checkpoint was"
            return
        with suppress(ValueError, KeyError, TypeError):  # told where lines are read
            last = next(line for text in reversed(before[:-1]) if (line := json.loads(text))["kind"] != "eval")
            wanted = [counters["episodes"], counters["decisions"], counters["env_steps"], meta["pace"]["updates"]]
            if wanted != (got := [last[name] for name in ("episodes", "decisions", "env_steps", "updates")]):
                yield f"counts {wanted} episodes, decisions, steps and updates; metrics.jsonl {got}"

    def _lines_are_episodes(self, train: Sequence[Mapping[str, Any]], cursors: Sequence[int]) -> Iterator[str]:
        """Every episode that the learner has counted has its line, and no other."""
        told, sums = Counter[tuple[Any, ...]](), [0, 0, 0]
        for line in train:
            steps = line["env_steps"] - sums[2]
            sums = [sums[0] + 1, sums[1] + line["episode_length"], line["env_steps"]]
            told[line["actor"], line["episode_length"], steps, line["episode_return"]] += 1
            if sums[:2] != [line["episodes"], line["decisions"]]:
                yield f"metrics.jsonl: episode {line['episodes']} at {line['decisions']} decisions, want {sums[:2]}"
                sums = [line["episodes"], line["decisions"], line["env_steps"]]
        stored = Counter(e.line for e in self.episodes if e.sequence < cursors[e.shard])
        for line_, count in (stored - told).items():
            yield f"metrics.jsonl: {count} episodes (actor, decisions, steps, return) {line_} have no line"
        unknown = (told - stored).elements()
        rest = [0, 0, 0]
        for _, decisions, steps, _ in unknown:
            rest = [rest[0] + 1, rest[1] + decisions, rest[2] + steps]
        deleted = [sum(numbers) for numbers in zip(*(shard.deleted for shard in self.shards), strict=True)]
        if rest != deleted:
            yield f"metrics.jsonl: tells of {rest} episodes, decisions and steps that are not stored; deleted {deleted}"

    def _ended(self, meta: Mapping[str, Any]) -> Iterator[str]:
        """The run is finished: all steps, all updates, all lines."""
        counters, wanted = meta["counters"], self.training["env_steps"]
        if not meta["finished"] or counters["env_steps"] < wanted:
            yield f"the run has not reached its end: {counters['env_steps']} of {wanted} steps"
        elif self._updates_due(counters["decisions"]) - meta["pace"]["updates"] >= 1:
            yield f"updates are missing: {meta['pace']['updates']} at {counters['decisions']} decisions"
        elif len(self.metrics) != meta["metrics_bytes"]:
            yield f"metrics.jsonl: {len(self.metrics)} bytes, its newest checkpoint has {meta['metrics_bytes']}"


def read_shard(folder: Path) -> Shard:
    """Read a shard's index and log; what is wrong with them is in `wrong`."""
    shard, number = Shard(), int(folder.name.split("-")[1])
    try:
        index = unseal((folder / "index").read_bytes())
        shard.first, shard.deleted, shard.highest = index["first"], index["before"], dict(index["highest"])
        shard.wrong += [f"the index tells of a loss: {name}" for _, name in index["lost"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        shard.wrong.append(f"index: does not load ({' '.join(str(error).split())[:100]})")
    expected = shard.first
    for sequence, payload in read_log(folder, shard.wrong):
        if sequence < shard.first:  # its file was to be deleted
            continue
        if sequence != expected:
            shard.wrong.append(f"number {sequence} comes where {expected} was due")
        expected = sequence + 1
        try:
            shard.episodes.append(read_episode(number, sequence, payload))
        except (ValueError, KeyError, TypeError) as error:
            shard.wrong.append(f"number {sequence} is no episode ({' '.join(str(error).split())[:100]})")
    return shard


def read_log(folder: Path, wrong: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yield number and payload of each whole record; anything else but a record cut short by a kill is wrong."""
    for path in sorted(folder.glob("*.log")):
        data, at, is_first = path.read_bytes(), 0, True
        while at < len(data):
            magic, sequence, length, checksum = HEAD.unpack(data[at : at + HEAD.size].ljust(HEAD.size, b"\0"))
            end = at + HEAD.size + length
            payload = data[at + HEAD.size : end]
            checked = zlib.crc32(payload, zlib.crc32(struct.pack("<QI", sequence, length)))
            if magic == MAGIC and end <= len(data) and checked == checksum:
                if is_first and sequence != int(path.stem):
                    wrong.append(f"{path.name}: begins with number {sequence}")
                yield sequence, payload
                at, is_first = end, False
                continue
            following = data.find(MAGIC, at + 1)
            is_torn = MAGIC.startswith(data[at : at + 4]) and (end > len(data) or len(data) - at < HEAD.size)
            if following >= 0 or not is_torn:
                wrong.append(f"{path.name}: no whole record at byte {at}")
            at = following if following >= 0 else len(data)


def read_episode(shard: int, sequence: int, record: bytes) -> Stored:
    """Read an episode's record. ValueError, KeyError or TypeError if it is none."""
    content = unseal(record)
    arrays = {}
    for name, stored in content["arrays"].items():
        arrays[name] = np.frombuffer(stored["data"], stored["dtype"]).reshape(stored["shape"])
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} is not finite")
    decisions = len(arrays["rewards"])
    if decisions < 1 or len(arrays["actions"]) != decisions or len(arrays["observations"]) != decisions + 1:
        raise ValueError("its arrays are of other lengths than each other")
    numbers = {
        name: int(content[name]) for name in ("actor", "number", "env_steps", "oldest_weights", "newest_weights")
    }
    total = float(arrays["rewards"].sum(dtype=np.float64))
    checksum = int.from_bytes(record[:4], "little")
    return Stored(shard, sequence, checksum, decisions=decisions, episode_return=total, **numbers)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a checkpoint's meta and blobs. ValueError and others if it is not as it was written."""
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    if files.keys() != sums.keys():
        raise ValueError(f"it has {sorted(files)}, SHA256SUMS {sorted(sums)}")
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise ValueError(f"{name} is not what SHA256SUMS says")
    head = json.loads(files["checkpoint.json"])
    blobs = {name: files[f"blobs/{name}"] for name in head["blobs"]}
    tensors = safetensors.numpy.load(files["tensors.safetensors"])
    if bad := [name for name, tensor in tensors.items() if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()]:
        raise ValueError(f"{bad[0]} is not finite")
    meta = head["meta"]
    if not folder.name.endswith(f"-step-{head['step']}") or head["step"] != meta["counters"]["env_steps"]:
        raise ValueError(f"is of step {head['step']} and counts {meta['counters']['env_steps']}")
    if int(tensors["updates"]) != meta["pace"]["updates"]:
        raise ValueError(
            f"its networks have had {int(tensors['updates'])} updates, it counts {meta['pace']['updates']}"
        )
    return meta, blobs


def unseal(record: bytes) -> dict[str, Any]:
    """Read a map with its CRC32 in front. ValueError if it was changed."""
    if zlib.crc32(record[4:]) != int.from_bytes(record[:4], "little"):
        raise ValueError("its checksum differs")
    content: dict[str, Any] = msgpack.unpackb(record[4:])
    return content


def whole_episodes(run_dir: Path) -> dict[Place, int]:
    """Look at what a running run has on disk: checksums by place, for `audit` to hold against what is left later."""
    found = {}
    for folder in (run_dir / "replay").glob("shard-*"):
        with suppress(FileNotFoundError):  # deleted just now
            for sequence, payload in read_log(folder, []):
                found[int(folder.name.split("-")[1]), sequence] = int.from_bytes(payload[:4], "little")
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
            told = title + (process / "environ").read_bytes()
            if wanted.encode() in told or any(os.readlink(link).startswith(wanted) for link in links):
                found[int(process.name)] = re.sub(rb"[\0\s]+", b" ", title).decode(errors="replace").strip()
    return {pid: title for pid, title in found.items() if pid != os.getpid() and title}  # without a title: a zombie


def left_behind(folder: Path, ports: Sequence[int], temporary: Path) -> list[str]:
    """Return a line for each process, open port or temporary file that is left when all has ended."""
    lines = [f"process {pid} is left: {title[:100]}" for pid, title in processes(folder).items()]
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a machine may have no IPv6
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and (port := int(local.rpartition(":")[2], 16)) in ports:
                    lines.append(f"port {port} is still listened on")
    return lines + [f"{path}: a temporary file is left" for path in temporary.iterdir()]


if __name__ == "__main__":
    found = [f"{path}: {what}" for path in sys.argv[1:] for what in audit(Path(path))]
    print(*found, sep="\n" if found else "")
    sys.exit(1 if found else 0)
