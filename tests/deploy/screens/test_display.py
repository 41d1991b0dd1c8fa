"""The one live display: lines now and then, or tables in a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from qttdm.deploy.screens.display import SECONDS_BETWEEN_LINES, SECONDS_OF_SILENCE, Display
from qttdm.deploy.screens.rows import Row, View

RUNNING, QUEUED = Row(0, "running", 10, 100), Row(1, "queued", 0, 100)


class Clock:
    """Seconds that pass only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def terminal(term: str = "xterm") -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=100, color_system=None, _environ={"TERM": term}), out


def test_plain_lines_come_when_a_state_changes_and_now_and_then_if_there_is_news(clock):
    out = io.StringIO()
    with Display(Console(file=out, width=40), clock) as display:

        def lines(*rows):
            out.truncate(0)
            display.show(View("walk", rows))
            return [line.strip("\0") for line in out.getvalue().splitlines()]

        assert len(lines(RUNNING, QUEUED)) == 2
        more = replace(RUNNING, steps=20)
        clock.now += SECONDS_BETWEEN_LINES / 2
        assert lines(more, QUEUED) == []
        clock.now += SECONDS_BETWEEN_LINES / 2
        assert lines(more, QUEUED) == ["seed 0 | state running | env steps 20 20%"]  # nothing is new of the other
        assert lines(more, replace(QUEUED, state="running")) == ["seed 1 | state running | env steps 0 0%"]


def test_the_last_state_is_always_told(clock):
    out = io.StringIO()
    with Display(Console(file=out), clock) as display:
        for steps in range(50):
            display.show(View("", [replace(RUNNING, steps=steps)]))
    assert [line.split(" | ")[2] for line in out.getvalue().splitlines()] == ["env steps 0 0%", "env steps 49 49%"]


def test_a_sign_of_life_only_after_silence(clock):
    out = io.StringIO()
    with Display(Console(file=out), clock) as display:
        for second in range(100):
            clock.now += SECONDS_OF_SILENCE / 10
            display.sign_of_life(f"decision {second}")
    assert out.getvalue().splitlines() == [f"decision {10 * i + 9}" for i in range(10)]


def test_a_terminal_gets_a_table_and_notes_stay_above_it(clock):
    console, out = terminal()
    with Display(console, clock) as display:
        display.show(View("walk", [RUNNING], ["learning"]))
        display.note("[bold]as it is[/bold]")
        out.truncate(0)
    text = out.getvalue()
    assert "\x1b[?25h" in text, "the cursor comes back"
    for part in ("walk", "10 10%", "learning"):
        assert part in text


def test_the_terminal_comes_back_after_an_error():
    console, out = terminal()
    with pytest.raises(KeyError), Display(console):
        raise KeyError
    assert "\x1b[?25h" in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines():
    console, out = terminal("dumb")
    with Display(console) as display:
        display.show(View("", [RUNNING]))
    assert out.getvalue() == "seed 0 | state running | env steps 10 10%\n"
