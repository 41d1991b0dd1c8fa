import io

import pytest
from rich.console import Console

from qttdm.deploy.screens.display import SECONDS_BETWEEN_LINES, SECONDS_OF_SILENCE
from qttdm.deploy.screens.progress import Progress


class Clock:
    """Seconds that pass only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(total: int = 1000, max_minutes: float | None = None) -> tuple[Progress, Clock, io.StringIO]:
    clock, out = Clock(), io.StringIO()
    return Progress(total, max_minutes, Console(file=out, width=40), clock), clock, out


def left(progress: Progress) -> float | None:
    [row] = progress.view().rows
    return row.seconds_left


def test_time_left_is_the_budget_that_ends_first() -> None:
    progress, clock, _ = plain(total=1000, max_minutes=10)
    assert left(progress) == 600
    progress.update(env_steps=0, wall_seconds=0.0)
    clock.now += 60
    progress.update(env_steps=500, wall_seconds=60.0)  # 60 s for half: 60 s to go, 540 s allowed
    assert left(progress) == pytest.approx(60)
    clock.now += 440
    progress.update(env_steps=510, wall_seconds=500.0)  # at this pace 480 s to go, 100 s allowed
    assert left(progress) == pytest.approx(100)
    clock.now += 1000
    assert left(progress) == 0


def test_time_left_is_at_the_pace_of_the_whole_run_also_when_it_was_resumed() -> None:
    progress, _, _ = plain(total=1000)
    assert left(progress) is None
    progress.update(env_steps=800, wall_seconds=400.0)
    assert left(progress) == pytest.approx(100)


def test_a_plain_line_holds_everything_and_is_not_wrapped_or_coloured() -> None:
    progress, clock, out = plain(max_minutes=2)
    with progress:
        progress.update(env_steps=0)
        clock.now += SECONDS_BETWEEN_LINES
        progress.evaluation(0, mean=3.25, success=0.5)
        speeds = {"wall_seconds": 10.0, "decisions_per_second": 40.0, "updates_per_second": 8.0}
        losses = {"loss_state": 1.0, "loss_reward": 2.0, "loss_continuation": 3.0, "loss_q": None}
        progress.update(env_steps=250, episode_return=1.5, **speeds, **losses)
    assert out.getvalue().splitlines() == [
        "seed 0 | state running | env steps 0 0% | left 2.0m",
        "evaluation at 0 steps: return 3.2, success 50%",
        "seed 0 | state running | env steps 250 25% | left 30s | return 1.5 | eval 3.2 | upd/s 8.0 | dec/s 40.0 | "
        "losses: state 1, reward 2, continuation 3",
    ]


def test_notes_and_evaluations_always_show_and_are_not_markup() -> None:
    progress, _, out = plain()
    with progress:
        progress.note("[bold]as it is[/bold] 12")
        progress.evaluation(5, mean=1.0)
        progress.evaluation(6, mean=2.0)
    assert out.getvalue() == (
        "[bold]as it is[/bold] 12\nevaluation at 5 steps: return 1.0\nevaluation at 6 steps: return 2.0\n"
    )


def test_a_terminal_gets_one_table_with_every_number_and_what_is_under_way() -> None:
    out = io.StringIO()
    clock = Clock()
    console = Console(file=out, force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"})
    with Progress(1000, 5, console, clock, seed=3) as progress:
        progress.update(env_steps=0)
        clock.now += 10
        progress.evaluation(100, mean=33.3, success=None)
        progress.update(env_steps=100, wall_seconds=10.0, episode_return=12.5, loss_q=0.25, decisions_per_second=7.0)
        progress.doing("learning: update 5")
        out.truncate(0)
    text = out.getvalue()
    for part in ("3 running", "100 10%", "1.5m", "12.5", "33.3", "q 0.25", "7.0", "0:00:10, learning: update 5"):
        assert part in text, text


def test_a_long_episode_gives_a_sign_of_life_now_and_then() -> None:
    progress, clock, out = plain()
    with progress:
        progress.update(env_steps=0)
        clock.now += SECONDS_OF_SILENCE
        progress.doing("decision 9")
        progress.doing("decision 10")
    assert out.getvalue().splitlines()[1:] == ["decision 9"]
