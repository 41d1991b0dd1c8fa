"""deploy/chaos/audit.py finds what is planted into the files of a real run, and nothing where nothing is."""

import hashlib
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import msgpack
import pytest

from qttdm.common.run_dir import RunDir
from qttdm.deploy.chaos import audit as audit_module
from qttdm.deploy.chaos.audit import audit, left_behind, read_log, whole_episodes
from qttdm.deploy.runs.local import new_run
from tests.deploy.runs.test_local import train
from tests.fakes import tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 12 episodes in files of two, the oldest of which are deleted."""
    folder = tmp_path_factory.mktemp("audited") / "run"
    own = ["replay.capacity=30", "sinks.tensorboard=false"]
    training = "training={env_steps: 960, seed_decisions: 10, eval_every: 320, checkpoint_every: 160, eval_episodes: 1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qttdm.replay.log.FILE_BYTES", 1000)
        run = new_run(tiny_config(*own, training), RunDir.create(folder))
        train(run)
        run.close()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


class Planting:
    """Damage to a run's files, each whole in itself: no checksum tells of it."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "replay/shard-0"
        self.records = [*read_log(self.folder, [])]
        self.lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        self.train = [i for i, line in enumerate(self.lines) if '"train"' in line]
        self.older, _, self.newest = sorted((run / "checkpoints").iterdir())

    def log(self, records: list, anew: bool = False) -> None:
        """Have these records; anew: numbered in a row."""
        for path in self.folder.glob("*.log"):
            path.unlink()
        first = records[0][0]
        with (self.folder / f"{first:020d}.log").open("wb") as file:
            for place, (number, payload) in enumerate(records, first):
                checked = struct.pack("<QI", place if anew else number, len(payload))
                checksum = zlib.crc32(payload, zlib.crc32(checked))
                file.write(b"\xf5SEG" + checked + checksum.to_bytes(4, "little") + payload)

    def older_weights(self) -> None:
        """Have the newest episode say so of itself."""
        *before, (number, payload) = self.records
        content = msgpack.packb(msgpack.unpackb(payload[4:]) | {"oldest_weights": 0})
        self.log([*before, (number, zlib.crc32(content).to_bytes(4, "little") + content)])

    def metrics(self, lines: list[str]) -> None:
        """Have these lines."""
        (self.run / "metrics.jsonl").write_text("".join(lines))

    def updates_behind(self, after: str) -> None:
        """Have some updates missing in one place, and that event."""
        self.metrics([line.replace('"updates": 80,', '"updates": 20,') for line in self.lines])
        with (self.run / "events.log").open("a") as events:
            events.write(f"learner: {after}\n")

    def return_of_last(self) -> None:
        """Have another one in its line."""
        line = json.loads(self.lines[self.train[-1]])
        changed = json.dumps(line | {"episode_return": line["episode_return"] + 1}) + "\n"
        self.metrics([*self.lines[: self.train[-1]], changed, *self.lines[self.train[-1] + 1 :]])

    def file(self, name: str, change) -> None:
        """Have other content in a file of the newest checkpoint, and the checksum that belongs to it."""
        path, sums = self.newest / name, self.newest / "SHA256SUMS"
        old, new = path.read_bytes(), change(path.read_bytes())
        path.write_bytes(new)
        sums.write_text(sums.read_text().replace(*(hashlib.sha256(data).hexdigest() for data in (old, new))))


PLANTED = {
    "a lost record": (lambda p: p.log(p.records[:2] + p.records[3:]), "comes where"),
    "a lost record, the others closed up": (
        lambda p: p.log(p.records[:2] + p.records[3:], True),
        "episodes are missing",
    ),
    "the newest record lost": (lambda p: p.log(p.records[:-1]), "in replay are [11,"),
    "a lost file": (lambda p: min(p.folder.glob("*.log")).unlink(), "comes where"),
    "a lost index": (lambda p: (p.folder / "index").unlink(), "index: does not load"),
    "an episode stored twice": (lambda p: p.log([*p.records, p.records[1]], True), "is stored 2 times"),
    "a record twice": (lambda p: p.log(p.records[:2] + p.records[1:]), "comes where"),
    "two episodes swapped": (lambda p: p.log([*p.records[1::-1], *p.records[2:]], True), "comes after"),
    "older weights": (lambda p: p.older_weights(), "has older weights than the one before"),
    "a lost line": (lambda p: p.metrics(p.lines[: p.train[4]] + p.lines[p.train[4] + 1 :]), "no line of the episode"),
    "a line twice": (lambda p: p.metrics(p.lines[: p.train[4] + 1] + p.lines[p.train[4] :]), "that are not stored"),
    "lines swapped": (lambda p: p.metrics([*p.lines[:4], *p.lines[7:3:-1], *p.lines[8:]]), "goes back from"),
    "a line with another return": (lambda p: p.return_of_last(), "no line of the episode"),
    "a line without an end": (lambda p: p.metrics([*p.lines[:-1], p.lines[-1][:-5]]), "its last line has no end"),
    "updates ahead": (
        lambda p: p.metrics([line.replace('"updates": 10,', '"updates": 11,') for line in p.lines]),
        "11 updates at 20 decisions, 10 are due",
    ),
    "updates behind": (
        lambda p: p.updates_behind(after=""),
        "20 updates at 90 decisions, 80 are due",
    ),
    "updates behind, which no new beginning explains": (
        lambda p: p.updates_behind(after="goes on from the checkpoint at 80 updates"),
        "20 updates at 90 decisions, 80 are due",
    ),
    "another counter": (
        lambda p: p.file("checkpoint.json", lambda data: data.replace(b'"episodes": 12', b'"episodes": 13')),
        "'episodes': 13",
    ),
    "another state of replay": (
        lambda p: p.file("blobs/replay-0", lambda _: (p.older / "blobs/replay-0").read_bytes()),
        "names episodes",
    ),
    "a lost blob": (lambda p: (p.newest / "blobs/replay-0").unlink(), "not those of SHA256SUMS"),
    "a lost checkpoint": (lambda p: shutil.rmtree(p.newest), "has not reached its end"),
    "a temporary file": (lambda p: (p.run / "generation.tmp").touch(), "a temporary file is left"),
}


def test_finds_nothing_where_nothing_is(whole, capsys):
    assert audit(whole, whole_episodes(whole)) == []
    command = [sys.executable, audit_module.__file__, str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize("name", PLANTED)
def test_finds_what_is_planted(run, name):
    plant, told = PLANTED[name]
    plant(Planting(run))
    found = audit(run)
    assert [line for line in found if told in line], found
    assert not [line for line in found if "\n" in line]


@pytest.mark.parametrize("kind", ["replay/shard-0/*.log", "replay/shard-0/index", "checkpoints/*/**/*"])
def test_finds_every_flipped_bit(run, kind):
    rng = random.Random(kind)
    files = sorted(path for path in run.glob(kind) if path.is_file() and path.stat().st_size)
    for path in rng.choices(files, k=40):
        data = path.read_bytes()
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        assert audit(run), (path, [i for i in range(len(data)) if data[i] != changed[i]])
        path.write_bytes(data)
    assert audit(run) == []


def test_an_episode_that_was_seen_has_to_stay(run):
    seen = whole_episodes(run)
    last = max(seen)
    assert "is gone or another" in audit(run, seen | {(0, last[1] + 1): 1})[0]
    assert "is gone or another" in audit(run, seen | {last: 1})[0]
    assert audit(run, seen | {(0, 0): 1}) == []  # it was deleted since


def test_a_record_that_a_kill_cut_short_is_none(run):
    newest_file = max((run / "replay/shard-0").glob("*.log"))
    with newest_file.open("ab") as file:
        file.write(b"\xf5SEG" + struct.pack("<QII", 12, 500, 0) + bytes(100))
    assert audit(run) == []


def test_finds_a_process_a_port_and_a_file_that_are_left(tmp_path):
    (tmp_path / "tmp").mkdir()
    assert left_behind(tmp_path, [1], tmp_path / "tmp") == []
    program = (
        "import socket as s; one = s.create_server(('127.0.0.1', 0)); print(one.getsockname()[1], flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, text=True, stdin=-1, stdout=-1)
    try:
        port = int(child.stdout.readline())
        (tmp_path / "tmp/half").touch()
        process, listening, file = left_behind(tmp_path, [port], tmp_path / "tmp")
        assert f"process {child.pid} is left" in process
        assert f"port {port} " in listening
        assert "half" in file
    finally:
        child.kill()
        child.wait()


def test_shares_no_code_with_what_it_audits():
    source = Path(audit_module.__file__).read_text()
    assert not re.findall(r"^ *(?:from|import) (?:qttdm|torch|ray|\.).*", source, re.MULTILINE)
