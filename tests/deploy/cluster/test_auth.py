"""The mode is said once, by what is there."""

import os

import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.cluster.auth import choose_mode


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Without a token anywhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "")  # so that it is put back, whatever the test leaves
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def token_in_the_environment(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")


def token_in_a_file(home, monkeypatch):
    (home / "token").write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))


def token_in_the_home_directory(home, monkeypatch):
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret\n")


@pytest.mark.parametrize("put", [token_in_the_environment, token_in_a_file, token_in_the_home_directory])
def test_a_token_that_is_there_is_used(home, monkeypatch, put):
    put(home, monkeypatch)
    choose_mode()
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_without_one_there_is_no_authentication():
    choose_mode()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_what_the_user_chose_stays(home, monkeypatch):
    token_in_the_home_directory(home, monkeypatch)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    choose_mode()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("text", ["", " \n"])
def test_token_mode_without_a_token_is_refused(home, monkeypatch, text):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (home / "token").write_text(text)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    with pytest.raises(ConfigError, match="want the cluster's in RAY_AUTH_TOKEN"):
        choose_mode()
