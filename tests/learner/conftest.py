"""A learning loop that is alone has nobody to wait for."""

import pytest

import qttdm.learner.loop


@pytest.fixture(autouse=True)
def _hears_at_once(monkeypatch):
    monkeypatch.setattr(qttdm.learner.loop, "READ_EVERY", 0.0)
    monkeypatch.setattr(qttdm.learner.loop, "WAIT_SECONDS", 0.0005)
