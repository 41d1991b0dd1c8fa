"""Two signals at once are one request; later ones give up."""

import os
import signal

import pytest

from qttdm.deploy.runs import stopping
from qttdm.deploy.runs.stopping import stopping as stopping_context


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_counts_when_the_first_has_had_its_time(monkeypatch, second):
    with stopping_context() as stopped:
        assert not stopped()
        for number in (signal.SIGTERM, second, second):  # GNU timeout sends two
            send(number)
            assert stopped()
        monkeypatch.setattr(stopping, "ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(second)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
