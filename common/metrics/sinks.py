"""Copy the lines of metrics.jsonl to TensorBoard event files or Weights & Biases.

    qttdm train --set sinks.tensorboard=false         # on without a word where the package is installed
    qttdm train --set sinks.wandb=true                # needs: pip install wandb; WANDB_MODE=offline asks no server

A sink is a function that takes each line. Its package is imported only when it is on. One that fails while the run goes
on says so once and is left out: metrics.jsonl has the same.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from qttdm.common.config import Config, ConfigError
from qttdm.common.metrics.lines import Sink

Picture = Callable[[], bytes | None]
"""Draws what an evaluation showed, a PNG file; None: nothing to see."""


class SinksConfig(Config):
    """Where the lines of metrics.jsonl go as well."""

    tensorboard: bool | None = None
    """event files in the run's directory, for `qttdm board`; null: where the package is installed"""
    wandb: bool = False
    """Weights & Biases, as its own environment variables say (WANDB_API_KEY, WANDB_MODE)"""


def check_sinks(config: SinksConfig) -> None:
    """Check that the packages of the sinks that are on are installed. ConfigError, one line, if not."""
    for package, on in config:
        if on and importlib.util.find_spec(package) is None:
            raise ConfigError(f"sinks.{package}: the package is not installed; want: pip install {package}")


def make_sinks(
    config: SinksConfig, directory: Path, settings: Mapping[str, Any], picture: Picture = lambda: None
) -> list[Sink]:
    """Make the sinks that are on, for the run in that directory; picture: goes to TensorBoard with each `eval` line.

    ConfigError if a package is missing.
    """
    check_sinks(config)
    tensorboard = partial(TensorBoard, picture=picture)
    kinds: dict[str, Callable[..., Sink]] = {"tensorboard": tensorboard, "wandb": WeightsAndBiases}
    found = importlib.util.find_spec("tensorboard") is not None
    chosen = {name: found if on is None else on for name, on in config}
    return [surviving(name, kinds[name](directory, settings)) for name, on in chosen.items() if on]


def surviving(name: str, sink: Sink) -> Sink:
    """Wrap a sink so that its first error is printed and no more lines go to it."""
    failed = False

    def write(line: dict[str, Any]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            sink(line)
        except Exception as error:  # whatever it is: the run is worth more than its second copy
            failed = True
            print(
                f"sinks.{name}: left out from now on ({' '.join(str(error).split())[:200]})",
                file=sys.stderr,
                flush=True,
            )

    return write


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of a line as `train/episode_return`; lists and nulls are left out."""
    return {f"{line['kind']}/{name}": float(v) for name, v in line.items() if isinstance(v, bool | int | float)}


class TensorBoard:
    """Write TensorBoard event files; steps are environment steps.

    Not with its own writer: that has a thread, which ends with a traceback when the disk is full.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], picture: Picture = lambda: None) -> None:
        self.directory, self.picture = directory / "tensorboard", picture
        self._writer: Any = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Write a line. At the first line TensorBoard purges later steps, which an interrupted run wrote."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        now, step = {"wall_time": time.time()}, line["env_steps"]
        if self._writer is None:
            self._writer = self._open()
            self._write(Event(**now, file_version="brain.Event:2"))
            self._write(Event(**now, step=step, session_log=SessionLog(status=SessionLog.START)))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(line).items()]
        if line["kind"] == "eval" and (png := self.picture()) is not None:
            width, height = struct.unpack(">II", png[16:24])  # where a PNG file has them
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
            values.append(Summary.Value(tag="eval/dream", image=image))
        self._write(Event(**now, step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _open(self) -> Any:
        """Open a new file, after those that are there: they are read by name, and a clock may have been set back."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.directory.mkdir(exist_ok=True)
        there = [int(path.name.split(".")[3]) for path in self.directory.glob("events.out.tfevents.*")]
        second = max([int(time.time()), *(1 + other for other in there)])
        return RecordWriter((self.directory / f"events.out.tfevents.{second:010d}.qttdm").open("xb", buffering=0))


class WeightsAndBiases:
    """Log to a W&B run named after the directory; a resumed run continues it."""

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        self.directory, self.settings = directory, settings
        self._run: Any = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Log a line."""
        if self._run is None:
            import wandb

            name = "-".join(self.directory.absolute().parts[-2:])
            self._run = wandb.init(
                project="qttdm",
                name=name,
                id=name,
                resume="allow",
                dir=str(self.directory),
                config=dict(self.settings),
            )
            self._run.define_metric("*", step_metric="env_steps")
        self._run.log({**scalars(line), "env_steps": line["env_steps"]})
