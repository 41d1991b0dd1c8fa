"""The page of `qttdm report`, as its text and as a browser shows it."""

import re
import shutil
import subprocess

import imageio.v3 as iio
import pytest

from qttdm.common.config import ConfigError
from qttdm.common.extras import EXTRAS
from qttdm.deploy.screens.page import write_page
from tests.deploy.screens.test_plot import make_run


@pytest.fixture
def runs(tmp_path):
    ends = {"a": (0, 1, 500), "b": (1, 1, 700), "c": (0, 2, 90)}
    return [
        make_run(tmp_path / name, {0: 10, 100_000: end}, overrides=[f"seed={seed}", f"env.action_repeat={repeat}"])
        for name, (seed, repeat, end) in ends.items()
    ]


def test_the_page_has_curves_settings_video_and_machine(runs, tmp_path):
    (runs[0] / "video.mp4").write_bytes(b"film")
    (runs[0] / "machine.json").write_text('{"CPU": "abacus <3"}')
    write_page(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "qt-tdm env.action_repeat=1 (2 runs)" in text
    assert "TD-MPC2" in text  # published for this task, within the package
    assert "<td>env.action_repeat</td><td>2</td><td>1</td><td>1</td><td>2</td>" in text
    assert 'src="data:video/mp4;base64,ZmlsbQ=="' in text
    assert "CPU abacus &lt;3" in text
    assert "not recorded" in text


def test_the_page_loads_nothing(runs, tmp_path):
    write_page(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.findall(r"""<(?:script|link|img|video|iframe)[^>]*(?:src|href)=["']?(?!data:)""", text)
    assert text.count("plotly.js v") == 1


def test_without_plotly_it_names_the_package(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(EXTRAS, "report", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"^qttdm report needs no_such_package: pip install 'qttdm\[report\]'$"):
        write_page(runs, tmp_path / "report.html")


def test_a_browser_draws_the_curves(runs, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is installed (Debian: apt install chromium)")
    write_page(runs, tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=1200,900"]
    page = [f"--user-data-dir={tmp_path}/profile", (tmp_path / "report.html").as_uri()]

    def show(how: str) -> str:
        command = [chromium, *options, how, *page]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    dom = show("--dump-dom")
    show(f"--screenshot={tmp_path}/report.png")
    colours = {tuple(pixel) for pixel in iio.imread(tmp_path / "report.png")[..., :3].reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # the first two groups' lines
    assert len(re.findall(r'class="js-line"', dom)) >= 3  # two groups and what is published
    assert re.findall(r'class="js-fill"', dom)  # the interval
