"""Every shell and Python block of README.md and docs/ runs, in order, a page in a folder that looks like a clone.

A block that cannot run here says so to its reader, `*Not run by the tests: why.*` above it. It is listed as skipped,
with its reason, and the command line must still take its words. Runs are smaller: SMALLER.
"""

import fcntl
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt

from qttdm.deploy.cli.main import app, main

ROOT = Path(__file__).parents[2]
RECORDS = {"docs/results.md", *(f"docs/suite/{path.name}" for path in (ROOT / "docs/suite").glob("*.md"))}
"""What was once typed, for hours: their commands are held against the command line, not run."""
PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHORT = "--set env.episode_steps=160 --set training.seed_decisions=40 --set training.eval_episodes=1"
SMALLER = [
    (r"--env-steps \S+", "--env-steps 400"),
    (r"env_steps=[\d_]+", "env_steps=400"),
    (r"^qttdm train\b(?!.*--(preset|resume))", f"qttdm train --preset debug {SHORT} "),
    (r"^qttdm train\b(?=.*--preset \w+\.yaml)", f"qttdm train {SHORT} --set env.action_repeat=8 "),
    (r"--preset twm-laptop", f"--preset debug --agent twm {SHORT} "),
    (r"^(qttdm train --resume \S+) --env-steps 400", r"\1 --env-steps 800"),
    (r"qttdm\.train\((\w+), ", r'qttdm.train(\1, "debug", '),
    (r"--episodes \d+", "--episodes 1"),
    (r"^(qttdm collect\b.*)", r"\1 --references 1"),
    (r" --video", ""),  # not every machine can draw
    (r"^(?=qttdm train)(?!.*--env-steps)(.*)", r"\1 --env-steps 400"),
    (r"^(qttdm eval --agent simulator-shooting .*)", r"\1 --preset debug"),
]
LISTENING = {"serve": 7747, "board": 6006}
"""Commands that go on until they are stopped, and their ports."""
NOT_RUN = re.compile(r"Not run by the tests: (.+?)\*")


class Block(NamedTuple):
    language: str
    title: str | None
    text: str
    why_not: str | None


def blocks(page):
    """The fenced blocks of a page, with what stands right above them."""
    before, found = "", []
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title, why_not = re.search(r'title="(.+?)"', rest), NOT_RUN.search(before)
            found.append(Block(language, title and title[1], token.content, why_not and why_not[1]))
        before = token.content or before if token.type in ("inline", "fence") else before
    return found


def commands(text):
    """The commands of a shell block: no comments, lines that go on joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


PAGES_TO_RUN = [
    page for page in PAGES if page not in RECORDS and any(b.language in ("shell", "python") for b in blocks(page))
]


def folder_like_a_clone(folder):
    """Links to what is in the repository, so that what is written stays here."""
    for path in ROOT.iterdir():
        if path.name not in ("runs", "site", ".venv", ".git"):
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)


class Shell:
    """Types the commands of a page. `qttdm` is called in this process: starting Python for each would take minutes."""

    def __init__(self, folder):
        self.folder, self.servers, self.lock = folder, [], None
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}

    def type(self, line):
        """Run one command; whatever fails raises."""
        words = shlex.split(line, comments=True)
        line = shlex.join(words)
        if words[0] == "qttdm" and words[1] in LISTENING:
            self.listen(words)
        elif words[0] == "qttdm":
            for pattern, smaller in SMALLER:
                line = re.sub(pattern, smaller, line)
            assert main(shlex.split(line)[1:]) == 0, line
        elif words[0] == "make":
            recipe = self.run(
                ["make", "--no-print-directory", "--dry-run", "--old-file", ".venv/installed", *words[1:]]
            ).splitlines()
            assert [self.type(step.replace(".venv/bin/", "", 1)) for step in recipe]
        elif words[0] != ".":  # activating is for terminals
            self.run(words)

    def run(self, words):
        done = subprocess.run(words, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def listen(self, words):
        """Start what listens, and wait until it does."""
        self.lock = self.lock or (Path(tempfile.gettempdir()) / f"qttdm-ports-{os.getuid()}.lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # pages are run side by side, and a page's port is one
        module = [sys.executable, "-m", "qttdm.deploy.cli.main"]
        self.servers.append(subprocess.Popen([*module, *words[1:]], cwd=self.folder, env=self.env))
        deadline = time.monotonic() + 600
        while True:
            try:
                socket.create_connection(("127.0.0.1", LISTENING[words[1]])).close()
                return
            except OSError:
                assert self.servers[-1].poll() is None, f"{shlex.join(words)} ended"
                assert time.monotonic() < deadline, f"{shlex.join(words)} does not listen"
                time.sleep(0.1)

    def close(self):
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait(timeout=60)
        if self.lock:
            self.lock.close()


@pytest.mark.parametrize("page", PAGES_TO_RUN)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    folder_like_a_clone(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    modules, shell = {*sys.modules}, Shell(tmp_path)
    try:
        for block in blocks(page):
            if block.title:
                (tmp_path / block.title).write_text(block.text)
            elif block.why_not is None and block.language == "shell":
                for line in commands(block.text):
                    shell.type(line)
            elif block.why_not is None and block.language == "python":
                text = block.text
                for pattern, smaller in SMALLER:
                    text = re.sub(pattern, smaller, text)
                exec(compile(text, page, "exec"), {"__name__": "__page__"})  # noqa: S102 - the page's own block
    finally:
        shell.close()
        for name in {*sys.modules} - modules:  # a page's own modules: another page has others of the same name
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
                del sys.modules[name]


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page in PAGES_TO_RUN for block in blocks(page) if block.why_not],
    ids=lambda value: value if isinstance(value, str) else value.text.split("\n")[0][:60],
)
def test_what_is_not_run_is_listed(page, block):
    pytest.skip(f"{page}: {block.why_not}")


def typed(page):
    """Every command line of qttdm or make in the shell blocks of a page, and in the indented ones of a record."""
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.info == "shell" or (token.type == "code_block" and page in RECORDS):
            for line in token.content.replace("\\\n", " ").splitlines():
                if match := re.match(r"(?:qttdm|make) [^#;'|$]*", line):
                    yield match[0]


@pytest.mark.parametrize("page", PAGES)
def test_the_command_line_takes_all_that_pages_say(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in typed(page):
        program, *words = shlex.split(line)
        if program == "qttdm":
            app.parse_args(words, print_error=False, exit_on_error=False)
        else:
            assert words[0] in targets, f"{page}: make {words[0]}: no such target"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page):
    assert [b.text for b in blocks(page) if b.language not in ("shell", "python", "yaml", "json", "text", "bash")] == []


def test_the_own_agent_of_the_page_is_the_tested_one():
    own = (ROOT / "tests/deploy/agents/own_agent.py").read_text()
    assert own in (ROOT / "docs/agents.md").read_text()
