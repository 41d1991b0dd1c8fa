"""One shard of the replay: a share of the episodes, in memory to sample from and on disk to survive a kill.

    actor   --record-------> insert            known already? -> checked -> on disk -> in memory -> acknowledged
    learner <--Batch-------- sample            from memory only
                             mass              how much of a batch this shard's share is (samplers.shares)
            <--EpisodePage-- episodes_since    which episodes were stored since a cursor
    a new process in the same directory starts with the same episodes

On disk is a log of episodes (replay/log.py) and an index of what they do not say: the number of the first one, totals
and the highest number per actor of those deleted before it, and the newest state: visit counts, random state, the
episodes it counts on. It is replaced by `save_state` and before files are deleted; visits and random numbers after it
are lost by a kill.

Totals are of episodes that were whole when they were read. What the index counts on and the disk has no more is in
`EpisodePage.lost`: a checkpoint that counts on it too must be refused. The shard itself goes on with what there is.

Choice: `load_state` goes back to exactly what was stored at its checkpoint, and forgets later episodes. Why: actors and
learner go back too, will collect those episodes' numbers again, and the run repeats bit for bit where it can. To keep
them, do not call it: a new shard holds all that was ever acknowledged.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left
from pathlib import Path
from typing import Any

from pydantic import Field

from qttdm.common.batch import Batch
from qttdm.common.config import Config
from qttdm.common.contracts import DataSpec
from qttdm.common.disk import replace_file
from qttdm.replay.buffer import Replay, ReplayConfig
from qttdm.replay.codec import decode, seal, unseal
from qttdm.replay.feed import PAGE_EPISODES, EpisodePage, EpisodesLostError, StoredEpisode, Totals
from qttdm.replay.log import Fsync, Log

VERSION = 4
"""Format of index and states, Replay's in them too; raised whenever their keys or meaning change."""


class ShardConfig(Config):
    """What one shard keeps."""

    replay: ReplayConfig = ReplayConfig()
    """what is in memory; `capacity` is this shard's own"""
    fsync: Fsync = "interval"
    """when it gets to the disk itself (replay/log.py)"""
    keep_states: int = Field(default=3, ge=1)
    """newest `save_state`s that can be gone back to; their episodes stay on disk. One more than checkpoints are kept: a
    state may be saved whose checkpoint never is."""


class ReplayShard:
    """A Replay whose inserts are idempotent and outlive it. May be called from several threads."""

    def __init__(self, directory: Path, config: ShardConfig, data: DataSpec, seed: int) -> None:
        """Open or create; O(episodes on disk). The seed counts in a new directory only.

        ValueError, naming the directory, if what is there is of other settings.
        RuntimeError if another process has it open.
        """
        self.config = config
        self._new_replay = lambda: Replay(config.replay, data, seed)
        self._writing, self._sampling = threading.Lock(), threading.Lock()  # taken in this order
        self._index_path = directory / "index"
        self._pins: list[int] = []  # for each kept state, oldest first, the oldest sequence number that it needs
        self._log = Log(directory, config.fsync)
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
        ValueError, and no change, if it cannot be stored; DiskError.
        """
        episode = decode(record)
        self._replay.check(episode)  # what is on disk must fit into memory, or no process could start again
        name = (episode.actor, episode.number)
        with self._writing:
            known = name in self._known or episode.number <= self._highest.get(episode.actor, -1)
            if not known:
                self._log.append(record)
                with self._sampling:
                    self._count(StoredEpisode.of(self._log.next - 1, record, episode))
                    self._replay.add(episode)
                self._discard()
        self._log.flush()
        return not known

    def sample(self, batch_size: int) -> Batch:
        """As Replay.sample."""
        with self._sampling:
            return self._replay.sample(batch_size)

    def mass(self) -> float:
        """Log of the sampling weight of all that is stored, for samplers.shares; -inf while nothing is."""
        with self._sampling:
            return self._replay.mass()

    def episodes_since(self, cursor: int) -> EpisodePage:
        """Return the stored episodes with sequence numbers from `cursor` (0, or the page's before), and totals.

        From page to page every episode comes once, also across restarts, except those evicted in between: `totals` has
        them. After `load_state` go on with the cursor of that checkpoint. A power cut may take episodes that were read
        already (`fsync: interval`); their numbers are then given to others.
        Waits for one batch at most, never for the disk.
        """
        with self._sampling:
            evicted = len(self._live) - self._replay.num_episodes
            first = max(evicted, self._index_of(cursor))
            page = self._live[first : first + PAGE_EPISODES]
            end = self._live[-1].sequence + 1 if self._live else 0
            cursor = page[-1].sequence + 1 if page else min(cursor, end)  # beyond the end: after a power cut
            return EpisodePage(page, cursor, self._inserted, list(self._lost.items()))

    def next_number(self, actor: int) -> int:
        """Return the number from which this actor's episodes are new: where a restarted actor goes on counting."""
        with self._writing:
            numbers = (number for other, number in self._known if other == actor)
            return 1 + max(self._highest.get(actor, -1), max(numbers, default=-1))

    def save_state(self) -> bytes:
        """Save what `load_state` needs, besides this directory, to come back to this moment."""
        with self._writing:
            self._log.sync()
            if self._pins[-1:] != [oldest := self._oldest()]:  # a retried call, say, moves no pin
                self._pins = [*self._pins, oldest][-self.config.keep_states :]
            with self._sampling:  # no longer: a slow disk holds up no batch
                state = self._state()
            self._write_index(state)
            return seal(state)

    def load_state(self, sealed: bytes) -> None:
        """Go back to where `save_state` was called in this directory: the next batches are identical.

        Later episodes are forgotten, on disk too, and count as new when they come again. A kill in the middle leaves a
        directory that this can be called on again. ValueError, and no change, if the state is not one of the newest
        `keep_states` or has other settings; EpisodesLostError if an episode it needs was damaged, which is named.
        """
        state = unseal(sealed)
        _check_version(state)
        first, stop = state["sequences"]
        with self._writing, self._sampling:
            self._replay.check_settings(state["replay"])
            if not self._first <= first <= stop <= self._log.next or self._digest(first, stop) != state["digest"]:
                if lost := [name for sequence, name in self._lost.items() if first <= sequence < stop]:
                    want = f"episodes {first} to {stop}"
                    raise EpisodesLostError(f"replay state: got no whole {', '.join(lost)}, want {want}")
                want = f"{self._first} to {self._log.next} as they are on disk"
                raise EpisodesLostError(f"replay state: got episodes {first} to {stop} of another history, want {want}")
            self._write_index(state)
            self._log.rewind(stop)
            self._recover()

    @property
    def decisions(self) -> int:
        """Decisions stored in memory, at most the capacity."""
        return self._replay.decisions

    @property
    def bytes_on_disk(self) -> int:
        """Size of the log's files."""
        return sum(list(self._log.sizes.values()))

    def close(self) -> None:
        """Flush, and let another process open the directory."""
        with self._writing:
            self._log.close()

    def _recover(self) -> None:
        """Take over the index, then all records that it says there are; what is missing or damaged is lost."""
        index, log = self._read_index(), self._log
        _check_version(index)
        self._replay = self._new_replay()
        self._live: list[StoredEpisode] = []  # whole on disk, oldest first; the newest of them are in memory
        self._known: set[tuple[int, int]] = set()  # (actor, number) of those
        self._first: int = index["first"]  # number of the first episode that is not deleted
        self._before = self._inserted = Totals(*index["before"])  # of the deleted episodes; of all
        self._highest: dict[int, int] = dict(index["highest"])  # number of each actor's deleted episodes
        self._lost = {sequence: name for sequence, name in index["lost"] if sequence < self._first}
        self._pins = index["pins"]
        oldest, stop = index["sequences"]
        if log.next < stop:
            log.begin(stop)  # numbers of lost records are not given again
        log.delete(log.files_before(self._first))  # a kill came before it was done
        episodes = []
        for sequence, record in log.read(self._first):
            episode = decode(record)
            self._count(StoredEpisode.of(sequence, record, episode))
            if sequence >= oldest:
                episodes.append(episode)
        whole = {episode.sequence for episode in self._live}
        self._lost |= {number: f"number {number}" for number in range(self._first, log.next) if number not in whole}
        if index["digest"] == self._digest(oldest, stop):  # else the visits are lost, too
            counted = self._index_of(stop) - self._index_of(oldest)
            self._replay.load(index["replay"], episodes[:counted])
            del episodes[:counted]
        for episode in episodes:
            self._replay.add(episode)
        if not self._index_path.exists():
            self._write_index(self._state())

    def _count(self, episode: StoredEpisode) -> None:
        """Count an episode that is on disk."""
        self._live.append(episode)
        self._known.add((episode.actor, episode.number))
        self._inserted = self._inserted.plus(episode)

    def _discard(self) -> None:
        """Delete the files that neither memory nor a kept state needs, once the index says what was in them."""
        first = min([self._oldest(), *self._pins])
        if not (files := self._log.files_before(first)):
            return
        self._first = first
        with self._sampling:
            gone = self._live[: self._index_of(first)]
            del self._live[: len(gone)]
            state = self._state()
        self._before = self._before.plus(*gone)
        for episode in gone:
            self._known.discard((episode.actor, episode.number))
            self._highest[episode.actor] = max(episode.number, self._highest.get(episode.actor, -1))
        self._write_index(state)
        self._log.delete(files)

    def _oldest(self) -> int:
        """Return sequence number of the oldest episode in memory; of the next one if there is none."""
        episodes = self._replay.num_episodes
        return self._live[-episodes].sequence if episodes else self._log.next

    def _index_of(self, sequence: int) -> int:
        """Place in `_live` of the first episode from that number on."""
        return bisect_left(self._live, sequence, key=lambda episode: episode.sequence)

    def _digest(self, first: int, stop: int) -> int:
        """Compute checksum of the records with these sequence numbers."""
        span = self._live[self._index_of(first) : self._index_of(stop)]
        return zlib.crc32(repr([(episode.sequence, episode.checksum) for episode in span]).encode())

    def _state(self) -> dict[str, Any]:
        """Return what memory holds and the files do not say, and which files that needs."""
        oldest, stop = self._oldest(), self._log.next
        return {
            "version": VERSION,
            "sequences": [oldest, stop],
            "digest": self._digest(oldest, stop),
            "pins": self._pins,
            "replay": self._replay.state(),
        }

    def _write_index(self, state: dict[str, Any]) -> None:
        deleted = {
            "first": self._first,
            "before": list(vars(self._before).values()),
            "highest": list(self._highest.items()),
            "lost": list(self._lost.items()),
        }
        replace_file(self._index_path, seal(state | deleted))

    def _read_index(self) -> dict[str, Any]:
        """Read the index; if it is gone, what the names of the files say."""
        try:
            return unseal(self._index_path.read_bytes())
        except (ValueError, FileNotFoundError):
            first = min(self._log.sizes)
            is_new = not self._log.next and not self._index_path.exists()
            lost = [] if is_new or first == 0 else [(first - 1, f"index, of what was before number {first}")]
            nothing = {"before": [], "highest": [], "pins": [], "sequences": [0, 0], "digest": None}
            return {"version": VERSION, "first": first, "lost": lost, **nothing}


def _check_version(state: dict[str, Any]) -> None:
    if state.get("version") != VERSION:
        raise ValueError(f"replay state: got version {state.get('version')!r}, want {VERSION}")
