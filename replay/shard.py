"""One shard of the replay: a share of the episodes, in memory to sample from and on disk to survive a kill.

    actor   --record--> insert     known already? -> checked -> on disk -> in memory -> acknowledged
    learner <--Batch--- sample     from memory only
                        mass       how much of a batch this shard's share is (samplers.shares)
            <--News---- news       which episodes were stored since it last asked
    a new process in the same directory starts with the same episodes

On disk are the log of episodes (replay/segments.py) and a snapshot of what it does not tell: which episodes there were
before its beginning and their sums, visit counts, random state. Starting is always the same: the snapshot, then every
later record. It is taken when a segment is deleted and by `save_state`; visits and random numbers after it are lost by
a kill.

Choice: `load_state` goes back to exactly what was stored at its checkpoint, and forgets later episodes. Why: actors and
learner go back too, will collect those episodes' numbers again, and the run repeats bit for bit where it can. Whoever
wants to keep them merely does not call it: a new shard holds all that was ever acknowledged.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.episode import Episode
from qttdm.replay.buffer import Replay, ReplayConfig
from qttdm.replay.codec import decode, seal, unseal
from qttdm.replay.news import MOST_EPISODES, News, StoredEpisode, Totals
from qttdm.replay.samplers import Mass
from qttdm.replay.seen import Seen
from qttdm.replay.segments import SegmentConfig, SegmentLog, replace_file

VERSION = 2
"""Format of the snapshot; raised whenever its keys or their meaning change."""


class ShardConfig(Config):
    """What one shard keeps."""

    replay: ReplayConfig = ReplayConfig()
    """what is in memory; `capacity` is this shard's own"""
    log: SegmentConfig = SegmentConfig()
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
    """size of the log"""
    dropped_records: int
    """records found torn or damaged by this process; a torn one had not been acknowledged"""
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

    def __init__(
        self,
        directory: Path,
        config: ShardConfig,
        obs_dim: int,
        action_dim: int,
        window: int,
        discount: float,
        seed: int,
    ) -> None:
        """Open or create; O(stored decisions). The last five as for Replay; the seed counts in a new directory only.

        ValueError, naming the directory, if what is there is of other settings or its snapshot is damaged.
        RuntimeError if another process has it open.
        """
        self.config = config
        self._snapshot_path = directory / "snapshot"
        self._new_replay = lambda: Replay(config.replay, obs_dim, action_dim, window, discount, seed)
        self._writing, self._sampling = threading.Lock(), threading.Lock()  # taken in this order
        self._log = SegmentLog(directory, config.log)
        self._replay, self._seen = self._new_replay(), Seen()
        self._stored: deque[StoredEpisode] = deque()  # oldest first
        self._checksums: deque[bytes] = deque()  # CRC32 of the record of each
        self._inserted = Totals()
        self._pins: list[int] = []  # for each kept state, oldest first, the oldest log number it needs
        self._duplicates = self._batches = 0
        try:
            self._recover()
        except ValueError as error:
            self._log.close()
            raise ValueError(f"{directory}: {error}") from None

    def insert(self, record: bytes) -> bool:
        """Store an encoded episode (replay/codec.py), on disk when this returns; False if it had been inserted before.

        Either way it is safe to forget it; after an exception, to send it again. What (actor, number) names is
        compared, not the content. O(length), and the fsync that the configuration asks for.
        ValueError, and no change, if it cannot be stored; OSError if the disk refuses.
        """
        episode = decode(record)
        with self._writing:
            if (episode.actor, episode.number) in self._seen:
                self._duplicates += 1
                return False
            self._replay.check(episode)  # what is on disk must fit into memory, or no process could start again
            sequence = self._log.append(record)
            with self._sampling:
                self._store(sequence, record, episode)
            if self._log.can_discard(oldest := min([self._stored[0].sequence, *self._pins])):
                with self._sampling:
                    snapshot = self._snapshot()
                self._write_snapshot(snapshot)  # first: it remembers the names of the episodes that go
                self._log.discard_before(oldest)
        return True

    def sample(self, batch_size: int, returns: tuple[float, float] | None = None) -> Batch:
        """As Replay.sample; `returns` is the range that samplers.shares gave, None if this is the only shard."""
        with self._sampling:
            batch = self._replay.sample(batch_size, returns)
            self._batches += 1
            return batch

    def mass(self) -> Mass:
        """Sampling weight of all that is stored, for samplers.shares; log_weight -inf while nothing is."""
        with self._sampling:
            return self._replay.mass()

    def news(self, since: int) -> News:
        """The stored episodes with log numbers from `since` (0, or the `cursor` of the answer before), and totals.

        Asking on from cursor to cursor tells of every episode once, also across restarts, except of those evicted in
        between: `totals` has them. After `load_state` ask with the cursor of that checkpoint. A power cut may take
        episodes that were told of already (SegmentConfig.fsync); their numbers are then given to others.
        Waits for one batch at most, never for the disk.
        """
        with self._sampling:
            first = bisect_left(self._stored, since, key=lambda episode: episode.sequence)
            count = min(len(self._stored) - first, MOST_EPISODES)
            episodes = [self._stored[i] for i in range(first, first + count)]
            end = self._stored[-1].sequence + 1 if self._stored else 0
            cursor = episodes[-1].sequence + 1 if episodes else min(since, end)  # beyond the end: after a power cut
            return News(episodes, cursor, self._inserted)

    def next_number(self, actor: int) -> int:
        """The number from which on this actor's episodes are new here: where a restarted actor goes on counting."""
        with self._writing:
            return self._seen.next_number(actor)

    def save_state(self) -> bytes:
        """What `load_state` needs to come back to this moment, besides this directory; in it that is kept possible."""
        with self._writing, self._sampling:
            self._pins = [*self._pins, self._oldest()][-self.config.keep_states :]
            state = self._snapshot()
            self._write_snapshot(state)
            return state

    def load_state(self, state: bytes) -> None:
        """Go back to where `save_state` was called in this directory: the next batches are identical.

        Later episodes are forgotten, on disk too, and count as new when they come again. A kill in the middle leaves a
        directory that this can be called on again. ValueError, and no change, if the state is not one of the newest
        `keep_states`, has other settings, or an episode it needs was damaged.
        """
        with self._writing, self._sampling:
            content = _unseal_snapshot(state)
            first, stop = content["sequences"]
            here = range(self._log.first_sequence, self._log.next_sequence + 1)
            if first not in here or stop not in here:
                want = f"{here.start} to {here.stop - 1}, which are on disk"
                raise ValueError(f"replay state: got records {first} to {stop}, want them within {want}")
            records = list(self._log.read(first, stop))
            if _digest(record[:4] for _, record in records) != content["digest"]:
                raise ValueError(f"replay state: records {first} to {stop} on disk are damaged or of another history")
            self._take_over(content, records)
            self._write_snapshot(state)
            self._log.rewind(stop)

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
            bytes_on_disk=self._log.bytes_on_disk,
            dropped_records=self._log.dropped,
            duplicates=self._duplicates,
            sampled_batches=self._batches,
            capacity=self.config.replay.capacity,
            sampled_age=self._replay.sampled_age,
        )

    def sync(self) -> None:
        """Flush the log to the disk itself, as before a checkpoint that counts on it."""
        with self._writing:
            self._log.sync()

    def close(self) -> None:
        """Flush, and let another process open the directory."""
        with self._writing:
            self._log.close()

    def _store(self, sequence: int, record: bytes, episode: Episode) -> None:
        self._seen.add(episode.actor, episode.number)
        self._replay.add(episode)
        self._stored.append(StoredEpisode.of(sequence, episode))
        self._checksums.append(record[:4])
        self._inserted = self._inserted.plus(self._stored[-1])
        while len(self._stored) > self._replay.num_episodes:  # evicted
            self._stored.popleft()
            self._checksums.popleft()

    def _oldest(self) -> int:
        """Log number of the oldest stored episode; of the next one if there is none."""
        return self._stored[0].sequence if self._stored else self._log.next_sequence

    def _recover(self) -> None:
        """The snapshot, if there is one, then every later record."""
        stop, damaged = 0, False
        if self._snapshot_path.exists():
            content = _unseal_snapshot(self._snapshot_path.read_bytes())
            first, stop = content["sequences"]
            records = list(self._log.read(first, stop))
            self._take_over(content, records)
            damaged = _digest(self._checksums) != content["digest"]
        for sequence, record in self._log.read(stop):
            self._store(sequence, record, decode(record))
        if damaged:
            self._write_snapshot(self._snapshot())  # of what is left: the next start finds that whole

    def _take_over(self, content: dict[str, Any], records: list[tuple[int, bytes]]) -> None:
        """Be what the snapshot says; if not all its `records` are there, then without visits and random state.

        ValueError, and no change, for other settings.
        """
        replay, stored = self._new_replay(), deque[StoredEpisode]()

        def episodes() -> Iterator[Episode]:
            for sequence, record in records:
                episode = decode(record)
                stored.append(StoredEpisode.of(sequence, episode))
                yield episode

        checksums = deque(record[:4] for _, record in records)
        if _digest(checksums) == content["digest"]:
            replay.load(content["replay"], episodes())
        else:
            for episode in episodes():
                replay.add(episode)
        self._replay, self._stored, self._checksums = replay, stored, checksums
        self._seen, self._pins, self._inserted = Seen(content["seen"]), content["pins"], Totals(*content["inserted"])

    def _snapshot(self) -> bytes:
        """All that the log does not tell."""
        return seal(
            {
                "version": VERSION,
                "sequences": [self._oldest(), self._log.next_sequence],
                "digest": _digest(self._checksums),
                "inserted": list(vars(self._inserted).values()),
                "seen": self._seen.items(),
                "pins": self._pins,
                "replay": self._replay.state(),
            }
        )

    def _write_snapshot(self, snapshot: bytes) -> None:
        """Put it on disk, after the records that it counts on."""
        self._log.sync()
        replace_file(self._snapshot_path, snapshot)


def _digest(checksums: Iterable[bytes]) -> int:
    """Tells one row of records from another, by the CRC32 that each begins with."""
    return zlib.crc32(b"".join(checksums))


def _unseal_snapshot(snapshot: bytes) -> dict[str, Any]:
    try:
        content = unseal(snapshot)
    except ValueError as error:
        raise ValueError(f"replay snapshot: {error}") from None
    if content.get("version") != VERSION:
        raise ValueError(f"replay snapshot: got version {content.get('version')!r}, want {VERSION}")
    return content
