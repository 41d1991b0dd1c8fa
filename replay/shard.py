"""One shard of the replay: a share of the episodes, in memory to sample from and on disk to survive a kill.

    actor   --record--> insert     known already? -> checked -> on disk -> in memory -> acknowledged
    learner <--Batch--- sample     from memory only
                        mass       how much of a batch this shard's share is (samplers.shares)
            <--News---- news       which episodes were stored since it last asked
    a new process in the same directory starts with the same episodes

On disk is a log of episodes (replay/log.py). Its index holds what they do not tell: the number of the first one, totals
and the highest number per actor of those deleted before it, visit counts and random state, and from where on the kept
states need the log. It is replaced by `save_state` and before files are deleted; visits and random numbers after it are
lost by a kill.

Totals are of episodes that were whole when they were read. What the index counts on and the disk has no more is in
`News.lost`: a checkpoint that counts on it too must be refused. The shard itself goes on with what there is.

Choice: `load_state` goes back to exactly what was stored at its checkpoint, and forgets later episodes. Why: actors and
learner go back too, will collect those episodes' numbers again, and the run repeats bit for bit where it can. Whoever
wants to keep them merely does not call it: a new shard holds all that was ever acknowledged.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.contracts import DataSpec
from qttdm.common.disk import replace_file
from qttdm.common.episode import Episode
from qttdm.replay.buffer import Replay, ReplayConfig
from qttdm.replay.codec import decode, seal, unseal
from qttdm.replay.log import DiskConfig, Log
from qttdm.replay.news import MOST_EPISODES, News, StoredEpisode, Totals

VERSION = 3
"""Format of index and states; raised whenever their keys or meaning change."""


class ShardConfig(Config):
    """What one shard keeps."""

    replay: ReplayConfig = ReplayConfig()
    """what is in memory; `capacity` is this shard's own"""
    disk: DiskConfig = DiskConfig()
    """how it gets to the disk"""
    keep_states: int = Field(default=3, ge=1)
    """newest `save_state`s that can be gone back to; their episodes stay on disk. As many as checkpoints are kept."""


@dataclass(frozen=True)
class ShardStats:
    """Where a shard stands. What says nothing else counts since the first process opened it."""

    decisions: int
    """decisions stored, at most `capacity`"""
    episodes: int
    """episodes stored"""
    fill: float
    """stored decisions as a fraction of capacity"""
    inserted_decisions: int
    """decisions ever inserted, evicted ones included"""
    inserted_episodes: int
    """episodes ever inserted, evicted ones included"""
    inserted_env_steps: int
    """simulator steps of those"""
    bytes_on_disk: int
    """size of the episodes' files"""
    dropped_records: int
    """episodes that this process found missing or damaged"""
    duplicates: int
    """inserts of an episode that had been inserted before, in this process"""
    sampled_batches: int
    """calls of `sample` in this process"""
    capacity: int
    """decisions"""
    sampled_age: float
    """decisions inserted since those that the newest batch begins at, mean"""


class ReplayShard:
    """A Replay whose inserts are idempotent and outlive it. May be called from several threads; `stats` never waits."""

    def __init__(self, directory: Path, config: ShardConfig, data: DataSpec, seed: int) -> None:
        """Open or create; O(episodes on disk). The seed counts in a new directory only.

        ValueError, naming the directory, if what is there is of other settings.
        RuntimeError if another process has it open.
        """
        self.config = config
        self._new_replay = lambda: Replay(config.replay, data, seed)
        self._writing, self._sampling = threading.Lock(), threading.Lock()  # taken in this order
        self._replay = self._new_replay()
        self._live: list[StoredEpisode] = []  # whole on disk, oldest first; the newest of them are in memory
        self._checksums: list[bytes] = []  # CRC32 of the record of each
        self._known: set[tuple[int, int]] = set()  # (actor, number) of those
        self._first = 0  # number of the first episode that is not deleted
        self._before = self._inserted = Totals()  # of what is deleted, and of all
        self._highest: dict[int, int] = {}  # number of each actor's that is deleted
        self._lost: dict[int, str] = {}  # sequence numbers that ought to have a whole record, and what is missing
        self._pins: list[int] = []  # for each kept state, oldest first, the oldest sequence number it needs
        self._duplicates = self._batches = 0
        self._index_path = directory / "index"
        self._log = Log(directory, config.disk)
        try:
            self._recover()
        except ValueError as error:
            self._log.close()
            raise ValueError(f"{directory}: {error}") from None

    def insert(self, record: bytes) -> bool:
        """Store an encoded episode (replay/codec.py), on disk when this returns; False if it had been inserted before.

        Either way it is safe to forget it; after an exception, to send it again. What (actor, number) names is
        compared, not the content; below an actor's highest deleted number all count as inserted. O(length), and the
        fsync that the configuration asks for, which concurrent inserts share.
        ValueError, and no change, if it cannot be stored; OSError if the disk refuses.
        """
        episode = decode(record)
        self._replay.check(episode)  # what is on disk must fit into memory, or no process could start again
        with self._writing:
            if known := self._knows(episode):
                self._duplicates += 1
            else:
                self._log.append(record)
                with self._sampling:
                    self._store(self._log.next - 1, record, episode)
                    self._replay.add(episode)
                self._discard()
        self._log.flush()
        return not known

    def sample(self, batch_size: int) -> Batch:
        """As Replay.sample."""
        with self._sampling:
            batch = self._replay.sample(batch_size)
            self._batches += 1
            return batch

    def mass(self) -> float:
        """Log of the sampling weight of all that is stored, for samplers.shares; -inf while nothing is."""
        with self._sampling:
            return self._replay.mass()

    def news(self, since: int) -> News:
        """The stored episodes with sequence numbers from `since` (0, or the `cursor` of the answer before), and totals.

        Asking on from cursor to cursor tells of every episode once, also across restarts, except of those evicted in
        between: `totals` has them. After `load_state` ask with the cursor of that checkpoint. A power cut may take
        episodes that were told of already (DiskConfig.fsync); their numbers are then given to others.
        Waits for one batch at most, never for the disk.
        """
        with self._sampling:
            evicted = len(self._live) - self._replay.num_episodes
            first = max(evicted, self._index_of(since))
            episodes = self._live[first : first + MOST_EPISODES]
            end = self._live[-1].sequence + 1 if self._live else 0
            cursor = episodes[-1].sequence + 1 if episodes else min(since, end)  # beyond the end: after a power cut
            return News(episodes, cursor, self._inserted, list(self._lost.items()))

    def next_number(self, actor: int) -> int:
        """The number from which on this actor's episodes are new here: where a restarted actor goes on counting."""
        with self._writing:
            numbers = (number for other, number in self._known if other == actor)
            return 1 + max(self._highest.get(actor, -1), max(numbers, default=-1))

    def save_state(self) -> bytes:
        """What `load_state` needs to come back to this moment, besides this directory; in it that is kept possible."""
        with self._writing, self._sampling:
            self._log.sync()
            self._pins = [*self._pins, self._oldest()][-self.config.keep_states :]
            state = self._state()
            self._write_index(state, self._first, self._before, self._highest)
            return state

    def load_state(self, state: bytes) -> None:
        """Go back to where `save_state` was called in this directory: the next batches are identical.

        Later episodes are forgotten, on disk too, and count as new when they come again. A kill in the middle leaves a
        directory that this can be called on again. ValueError, and no change, if the state is not one of the newest
        `keep_states`, has other settings, or an episode it needs was damaged, which is named.
        """
        content = unseal(state)
        _check_version("replay state", content)
        first, stop = content["sequences"]
        with self._writing, self._sampling:
            if not self._first <= first <= stop <= self._log.next:
                want = f"{self._first} to {self._log.next}, which are on disk"
                raise ValueError(f"replay state: got episodes {first} to {stop}, want them within {want}")
            if lost := [name for sequence, name in self._lost.items() if first <= sequence < stop]:
                raise ValueError(f"replay state: got no whole {', '.join(lost)}, want episodes {first} to {stop}")
            records = list(self._log.read(first, stop))
            if _digest((s, record[:4]) for s, record in records) != content["digest"]:
                raise ValueError(f"replay state: got another history, want episodes {first} to {stop} as they were")
            replay = self._new_replay()
            replay.load(content["replay"], (decode(record) for _, record in records))
            self._pins = content["pins"]
            self._write_index(state, self._first, self._before, self._highest)
            self._log.rewind(stop)
            kept = self._index_of(stop)
            del self._live[kept:], self._checksums[kept:]
            self._replay, self._inserted = replay, self._before.plus(*self._live)
            self._lost = {sequence: name for sequence, name in self._lost.items() if sequence < stop}
            self._known = {(episode.actor, episode.number) for episode in self._live}

    def stats(self) -> ShardStats:
        """Where this shard stands; takes no lock, so that looking at it never waits."""
        inserted = self._inserted
        return ShardStats(
            decisions=self._replay.decisions,
            episodes=self._replay.num_episodes,
            fill=self._replay.fill,
            inserted_decisions=inserted.decisions,
            inserted_episodes=inserted.episodes,
            inserted_env_steps=inserted.env_steps,
            bytes_on_disk=sum(list(self._log.sizes.values())),
            dropped_records=len(self._lost) + self._log.torn,
            duplicates=self._duplicates,
            sampled_batches=self._batches,
            capacity=self.config.replay.capacity,
            sampled_age=self._replay.sampled_age,
        )

    def sync(self) -> None:
        """Flush all episodes to the disk itself, as before a checkpoint that counts on them."""
        self._log.sync()

    def close(self) -> None:
        """Flush, and let another process open the directory."""
        with self._writing:
            self._log.close()

    def _knows(self, episode: Episode) -> bool:
        name = (episode.actor, episode.number)
        return name in self._known or episode.number <= self._highest.get(episode.actor, -1)

    def _store(self, sequence: int, record: bytes, episode: Episode) -> None:
        """Count an episode that is on disk."""
        stored = StoredEpisode.of(sequence, episode)
        self._live.append(stored)
        self._checksums.append(record[:4])
        self._known.add((episode.actor, episode.number))
        self._inserted = self._inserted.plus(stored)

    def _oldest(self) -> int:
        """Sequence number of the oldest episode in memory; of the next one if there is none."""
        episodes = self._replay.num_episodes
        return self._live[-episodes].sequence if episodes else self._log.next

    def _index_of(self, sequence: int) -> int:
        """Of the first live episode from that number on."""
        return bisect_left(self._live, sequence, key=lambda episode: episode.sequence)

    def _discard(self) -> None:
        """Delete the files that neither memory nor a kept state needs, once the index knows what was in them."""
        if not (files := self._log.deletable(min([self._oldest(), *self._pins]))):
            return
        first = next(s for s in self._log.sizes if s > files[-1])
        kept = self._index_of(first)
        highest = dict(self._highest)
        for episode in self._live[:kept]:
            highest[episode.actor] = max(episode.number, highest.get(episode.actor, -1))
        before = self._before.plus(*self._live[:kept])
        with self._sampling:
            state = self._state()
        self._write_index(state, first, before, highest)
        self._log.delete(files)
        self._first, self._before, self._highest = first, before, highest
        self._known -= {(episode.actor, episode.number) for episode in self._live[:kept]}
        with self._sampling:
            del self._live[:kept], self._checksums[:kept]

    def _recover(self) -> None:
        """Read the index, then all records that it says there are; what is missing or damaged is lost."""
        log, index = self._log, self._index_path.read_bytes() if self._index_path.exists() else b""
        if not index and not log.next:
            self._write_index(self._state(), 0, Totals(), {})
        try:
            content = unseal(index or self._index_path.read_bytes())
        except (ValueError, FileNotFoundError):
            self._first = min(log.sizes)
            self._lost[self._first - 1] = f"index, of what was before number {self._first}"
            state, oldest, stop = None, 0, 0
        else:
            _check_version("replay index", content)
            self._first, self._before = content["first"], Totals(*content["before"])
            self._highest = dict(content["highest"])
            self._lost = {sequence: name for sequence, name in content["lost"] if sequence < self._first}
            state = unseal(content["state"])
            self._pins, (oldest, stop) = state["pins"], state["sequences"]
        self._inserted = self._before
        if log.next < stop:
            log.begin(stop)  # numbers of lost records are not given again
        log.delete(log.deletable(self._first))  # a kill came before it was done
        episodes = []
        for sequence, record in log.read(self._first, log.next):
            episode = decode(record)
            self._store(sequence, record, episode)
            if sequence >= oldest:
                episodes.append(episode)
        whole = {episode.sequence for episode in self._live}
        for sequence in set(range(self._first, log.next)) - whole:
            self._lost[sequence] = f"number {sequence}"
        later = 0
        span = slice(self._index_of(oldest), self._index_of(stop))
        if state is not None and self._digest(oldest, stop) == state["digest"]:
            later = span.stop - span.start
            self._replay.load(state["replay"], episodes[:later])
        for episode in episodes[later:]:
            self._replay.add(episode)

    def _digest(self, first: int, stop: int) -> int:
        span = slice(self._index_of(first), self._index_of(stop))
        return _digest(zip((episode.sequence for episode in self._live[span]), self._checksums[span], strict=True))

    def _state(self) -> bytes:
        """What memory holds and the files do not tell, and which of them it needs."""
        return seal(
            {
                "version": VERSION,
                "sequences": [self._oldest(), self._log.next],
                "digest": self._digest(self._oldest(), self._log.next),
                "pins": self._pins,
                "replay": self._replay.state(),
            }
        )

    def _write_index(self, state: bytes, first: int, before: Totals, highest: dict[int, int]) -> None:
        content = {
            "version": VERSION,
            "first": first,
            "before": list(vars(before).values()),
            "highest": list(highest.items()),
            "lost": list(self._lost.items()),
            "state": state,
        }
        replace_file(self._index_path, seal(content))


def _digest(records: Iterable[tuple[int, bytes]]) -> int:
    """Tells one row of records from another, by their numbers and the CRC32 that each begins with."""
    return zlib.crc32(repr(list(records)).encode())


def _check_version(what: str, content: dict[str, Any]) -> None:
    if content.get("version") != VERSION:
        raise ValueError(f"{what}: got version {content.get('version')!r}, want {VERSION}")
