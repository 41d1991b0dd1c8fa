"""A seeded attack on a real run: `make chaos CHAOS_SEED=n MINUTES=m`.

    schedule(seed) --faults--> Attack --signals, limits, files--> Ray, `qttdm cluster train`, `qttdm serve --watch`
                               Attack --starts again------------> `qttdm cluster resume`, `qttdm serve`
                               Honest <--answers----------------- `qttdm serve`
    audit <--when the run has reached its end-- all files

Ray, a run of the preset `debug` and its service are in a folder of their own, which stays if anything is found: exit
status 1.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App

from qttdm.deploy.chaos.audit import audit, left_behind, processes, whole_episodes
from qttdm.deploy.chaos.faulty import FOLDER
from qttdm.deploy.chaos.schedule import Fault, schedule
from qttdm.planner_service.serving.client import Client, DisconnectedError, RefusedError

TITLES = {"actor": "ray::Collector", "shard": "ray::Shard", "learner": "ray::Learner", "evaluator": "ray::Evaluator"}
"""how the command lines of a run's processes begin"""
TASK = "qttdm.deploy.chaos.faulty:FaultyPendulum"
RAY = (sys.executable, "-m", "ray.scripts.scripts")
QTTDM = (sys.executable, "-m", "qttdm.deploy.cli.main")
SETTINGS = (
    "training.env_steps=1e7 training.log_every=50 cluster.actors=2 cluster.shards=2 cluster.metrics_port=null "
    "cluster.hang_seconds=30 cluster.timeout_seconds=25"
)
"""without an end: the attack decides when it is enough"""
HOSTILE = "import sys; from qttdm.deploy.bench.hostile import *; attack(WITHOUT_TOKEN[sys.argv[1]], int(sys.argv[2]))"
TOKEN = "of-honest-clients"  # noqa: S105 - of a service on loopback, for some minutes
CLIENTS = 2
MORE_STEPS = 1600  # after the last fault, until the run's end
KEPT = ("driver", "service")  # are started again
PATIENCE = 300.0  # seconds for anything to come, or to come back: a busy machine is slow
RETRY = 2.0  # seconds after which a supervisor starts again what has ended
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # Linux's


class GaveUpError(RuntimeError):
    """Something did not come, or did not come back."""


class Honest(threading.Thread):
    """A client that asks ten times a second, and connects anew when it is hung up on."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.over = port, threading.Event()
        self.answers = self.cut = self.version = 0
        self.wrong: list[str] = []
        self.start()

    def run(self) -> None:
        """Act until `over`."""
        while not self.over.wait(0.5):
            try:
                with Client(port=self.port, token=TOKEN) as client:
                    self._act(client)
            except (DisconnectedError, RefusedError):
                self.cut += 1
            except Exception as error:  # told at the end
                self.wrong.append(f"a client got {type(error).__name__}: {error}")

    def _act(self, client: Client) -> None:
        episode = client.episode(seed=0)
        while not self.over.wait(0.1):
            result = episode.act(np.zeros(3, np.float32))
            self.answers += 1
            if not np.isfinite(result["action"]).all() or result["weights_version"] < self.version:
                self.wrong.append(f"a client was answered {result}, after weights {self.version}")
            self.version = result["weights_version"]


class Attack:
    """One run under attack, in an empty folder."""

    def __init__(self, folder: Path, task: str = TASK, settings: str = SETTINGS) -> None:
        """settings: as of --set, with spaces between."""
        self.task, self.settings = task, settings
        self.folder, self.run_dir, self.temporary = folder, folder / "runs/run/seed-0", folder / "tmp"
        self.faults = folder / "faults"
        for path in (folder / "ray", self.temporary, self.faults):
            path.mkdir()
        self.ray_port, self.port, *self.others = free_ports(7)
        self.env = os.environ | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(folder / "ray"),
            "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}",
            "TMPDIR": str(self.temporary),
            "QTTDM_TOKEN": TOKEN,
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            "OMP_NUM_THREADS": "1",
            FOLDER: str(self.faults),
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.clients: list[Honest] = []
        self.undo: list[tuple[float, str, Callable[[], object]]] = []
        self.witnessed: dict[tuple[int, int], int] = {}
        self.broken, self.restarts, self.began = 0, Counter[str](), time.monotonic()
        self.is_ending = False
        self.again_at: dict[str, float] = {}

    def begin(self) -> None:
        """Start everything; the schedule begins when the clients are answered."""
        flags = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent")
        ports = [f"--{flag}-port={port}" for flag, port in zip(flags, self.others, strict=False)]
        ports += [f"--metrics-export-port={self.others[-1]}", "--min-worker-port=0", "--max-worker-port=0"]
        ports += [f"--port={self.ray_port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        size = ["--num-cpus=8", "--object-store-memory=100000000"]
        self._start("ray", [*RAY, "start", "--head", "--block", *ports, *size])
        self.wait(lambda: not self._used(), "Ray", ())
        self.wait(lambda: newest(self.run_dir), "a first checkpoint", ["driver"])
        self.clients = [Honest(self.port) for _ in range(CLIENTS)]
        self.wait(lambda: all(client.answers for client in self.clients), "first answers")
        self.began = time.monotonic()

    def do(self, at: float, faults: Sequence[Fault]) -> None:
        """Do these at once, at that time or as soon as all are there to whom they are to be done."""
        self.wait(lambda: time.monotonic() - self.began >= at, "the next fault")
        hurt = [fault.whom for fault in faults if fault.kind in ("kill", "stop", "terminate", "fill")]
        self.wait(lambda: all(map(self._pid, hurt)), f"{', '.join(hurt)} to be there")
        self.witnessed |= whole_episodes(self.run_dir)
        for fault in faults:
            with suppress(ProcessLookupError):  # a fault of this moment has ended it already
                undo = self._hurt(fault.kind, fault.whom)
                self.say(f"{fault.kind} {fault.whom}")
                if undo:
                    self.undo.append((time.monotonic() + fault.seconds, f"{fault.kind} {fault.whom}", undo))

    def end(self) -> list[str]:
        """Let the run reach its end when the last fault is over, then end all; returns what is wrong."""
        self.wait(lambda: not self.undo, "the last faults to be over")
        for path in self.faults.iterdir():
            path.unlink()
        self.is_ending = True
        self.running["driver"].terminate()
        self.wait(lambda: self.running["driver"].poll() == 0 and newest(self.run_dir)["meta"]["finished"], "its end")
        last = newest(self.run_dir)["meta"]["pace"]["updates"]
        self.wait(lambda: {client.version for client in self.clients} == {last}, "the last weights", ["service"])
        for client in self.clients:
            client.over.set()
            client.join()
        found = [what for client in self.clients for what in client.wrong]
        with suppress(GaveUpError):
            self.wait(lambda: not self._used(), "an empty cluster", ())
        found += [f"the cluster has left {line}" for line in self._used()]
        for name in ("service", "ray"):
            self.running[name].terminate()
            self.running[name].wait(PATIENCE)
        if status := self.running["service"].returncode:
            found.append(f"the service ended with status {status}")
        with suppress(GaveUpError):  # what is left is told by name
            self.wait(lambda: not processes(self.folder), "all processes to end", ())
        return found

    def close(self) -> None:
        """Kill whatever is left."""
        self._undo_until(math.inf)
        for process in self.running.values():
            process.kill()
            process.wait()
        for pid in processes(self.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, condition: Callable[[], object], what: str, keep: Sequence[str] = KEPT) -> None:
        """Wait for it, and meanwhile undo what is due and start again of `keep` what has ended. GaveUpError."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise GaveUpError(f"waited {PATIENCE:g} s for {what}")
            self._undo_until(time.monotonic())
            for name in keep:
                process = self.running.get(name)
                if process is None or (process.poll() is not None and time.monotonic() > self.again_at[name]):
                    self._start(name, self._words(name))
            time.sleep(0.1)

    def say(self, what: str) -> None:
        """Print it, with the seconds since the schedule began."""
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", flush=True)

    def _words(self, name: str) -> list[str]:
        """What a user types to start it, or to start it again."""
        if name == "service":
            return [*QTTDM, "serve", str(self.run_dir), "--watch", f"--port={self.port}"]
        runs = f"--runs-dir={self.run_dir.parents[1]}"
        if not self.run_dir.exists():
            sets = [f"--set={item}" for item in self.settings.split()]
            return [
                *QTTDM,
                *f"cluster train --preset=debug --task={self.task} --name=run --seeds=0 {runs}".split(),
                *sets,
            ]
        more = [f"--env-steps={newest(self.run_dir)['step'] + MORE_STEPS}"] if self.is_ending else []
        return [*QTTDM, "cluster", "resume", "run", runs, *more]

    def _start(self, name: str, words: Sequence[str]) -> None:
        if (ended := self.running.get(name)) is not None:
            said = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-1:] or [""]
            self.say(f"{name} ended with status {ended.returncode} ({said[0][:200]}); starts again")
            self.restarts[name] += 1
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(words, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running[name], self.again_at[name] = child, time.monotonic() + RETRY

    def _pid(self, name: str) -> int | None:
        """Find the oldest process of that name."""
        if name in self.running:
            return self.running[name].pid if self.running[name].poll() is None else None
        pids = [pid for pid, title in processes(self.folder).items() if title.startswith(TITLES[name])]
        return min(pids, default=None)

    def _hurt(self, kind: str, whom: str) -> Callable[[], object] | None:
        """Do it; returns how to undo it. ProcessLookupError if nobody is there."""
        if kind == "be hostile":
            return subprocess.Popen([sys.executable, "-c", HOSTILE, whom, str(self.port)], env=self.env).kill
        if kind == "break":
            (self.faults / whom).touch()
            self.broken += 1
            return None
        if kind == "write-protect":
            set_modes(self.run_dir, 0o555)
            return lambda: set_modes(self.run_dir, 0o755)
        if (pid := self._pid(whom)) is None:
            raise ProcessLookupError
        if kind == "fill":  # to a program, a limit on what a file may hold is a disk without room
            soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
            return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        os.kill(pid, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}[kind])
        return (lambda: os.kill(pid, signal.SIGCONT)) if kind == "stop" else None

    def _used(self) -> list[str]:
        """List what of the cluster is in use, by actors, placement groups or objects."""
        asked = subprocess.run([*RAY, "status"], env=self.env, capture_output=True, text=True, check=False)
        usage = asked.stdout.partition("Total Usage:")[2].partition("\n\n")[0].splitlines()[1:]
        return [line.strip() for line in usage or ["no answer"] if not re.fullmatch(r" 0(\.0|B)/\S+ \w+", line)]

    def _undo_until(self, now: float) -> None:
        for due in [entry for entry in self.undo if entry[0] <= now]:
            self.undo.remove(due)
            with suppress(ProcessLookupError):
                due[2]()
                self.say(f"over: {due[1]}")


def free_ports(count: int) -> list[int]:
    """Find so many ports of this machine that nobody listens on."""
    with ExitStack() as stack:  # all open at once, so that all are different
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def newest(run_dir: Path) -> dict[str, Any]:
    """Read the head of the newest checkpoint; {} if there is none yet."""
    folders = sorted((run_dir / "checkpoints").glob("[0-9]*-step-*"))
    head: dict[str, Any] = json.loads((folders[-1] / "checkpoint.json").read_text()) if folders else {}
    return head


def set_modes(top: Path, mode: int) -> None:
    """Let its folders be written to, or not."""
    for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
        with suppress(FileNotFoundError):  # a checkpoint that is removed meanwhile
            folder.chmod(mode)


def attack(*, seed: int = 0, minutes: float = 1.0) -> None:
    """Attack a run by a schedule, and audit what is left.

    Args:
        seed: of the schedule
        minutes: that faults are begun in
    """
    faults = schedule(seed, minutes)
    print(f"schedule {seed}, {minutes:g} minutes, {len(faults)} faults:", *faults, sep="\n", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # in good order, as by Ctrl-C
    if os.geteuid() == 0:  # whom modes do not stop, unless this is taken from what it starts
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
    run = Attack(folder := Path(tempfile.mkdtemp(prefix="chaos-")))
    found = []
    try:
        run.begin()
        for at, group in groupby(faults, key=lambda fault: fault.at):
            run.do(at, [*group])
        found += run.end()
    except GaveUpError as error:
        found.append(str(error))
    finally:
        found += left_behind(folder, [run.ray_port, run.port], run.temporary)
        run.close()
    found += audit(run.run_dir, run.witnessed, run.broken)
    run.say(
        f"{len(faults)} faults; {len(run.witnessed)} episodes were seen meanwhile; started again: {dict(run.restarts)}"
    )
    run.say(f"clients' answers: {[c.answers for c in run.clients]}, cut off: {[c.cut for c in run.clients]} times")
    if found:
        print(*found, f"all files: {folder}", sep="\n")
        sys.exit(1)
    shutil.rmtree(folder)
    print("the auditor found nothing")


if __name__ == "__main__":
    App(default_command=attack)()
