"""``docs/add-a-task.md``, followed to the letter in a copy of this checkout: files, commands and answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelmill import processes
from tests.support.paths import REPOSITORY
from tests.support.processes import wait_until

PAGE = REPOSITORY / "docs" / "add-a-task.md"
PACKAGES = ("", "api", "backends", "cli", "tasks", "worker")
"""Folders of the copy that hold packages. They come before the installed ones in ``PYTHONPATH``."""
INSTALL = "make install\nsource .venv/bin/activate\n"
"""Not run: the copy uses the environment of these tests."""

MAKES_OWN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")

STEP = re.compile(
    r"(?:^(?P<how>Create the file|Add to the end of) `(?P<file>[^`]+)`:\n\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One block of the page: a file to write, commands to run, or what they print."""

    language: str
    text: str
    file: str | None
    appended: bool


def steps() -> Iterator[Step]:
    for match in STEP.finditer(PAGE.read_text()):
        yield Step(match["language"], match["text"], match["file"], match["how"] == "Add to the end of")


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    done = subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tracked files as they are now, committed, with the environment of these tests."""
    copy = tmp_path / "modelmill"
    for name in git(REPOSITORY, "ls-files", "-z").strip("\0").split("\0"):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((REPOSITORY / name).read_bytes())
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-q", "-m", "The copy")
    environment = copy / ".venv"
    environment.mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith(".installed"):
            (environment / part.name).symlink_to(part)
    for stamp in (".installed", ".installed-dev"):
        # Newer than pyproject.toml, so that make installs nothing.
        (environment / stamp).touch()
    return copy


class Reader:
    """Does what the page says."""

    def __init__(self, checkout: Path, cache_dir: Path, stack: ExitStack) -> None:
        self._checkout = checkout
        self._stack = stack
        self._port = processes.free_port()
        # If `make` runs these tests, its variables would change what the page's own `make` prints.
        inherited = {name: value for name, value in os.environ.items() if name not in MAKES_OWN}
        self._environment = inherited | {
            "PATH": f"{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(str(checkout / name) for name in PACKAGES),
            "MODELMILL_CACHE_DIR": str(cache_dir),
            "MODELMILL_DATA_DIR": str(checkout.parent / "data"),
            "MODELMILL_PORT": str(self._port),
        }

    def write(self, step: Step) -> None:
        assert step.file is not None
        file = self._checkout / step.file
        before = file.read_text() + "\n" if step.appended else ""
        assert step.appended or not file.exists()
        file.write_text(before + step.text)

    def run(self, commands: str) -> str:
        """What the commands print, which must all succeed."""
        # The server of this test has a port of its own; nothing else is changed.
        commands = commands.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{self._port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self._checkout,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, command: str) -> None:
        """Starts a command that stays, as in another terminal."""
        log = self._checkout.parent / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command.split(), cwd=self._checkout, env=self._environment, stdout=output, stderr=output
            )
        self._stack.callback(processes.stop, process, grace_s=40)
        wait_until(lambda: "Modelmill is up" in log.read_text() or process.poll() is not None, 60, command)
        assert process.poll() is None, log.read_text()


def assert_printed(found: str, shown: str) -> None:
    """Compares what commands print with what the page shows, in which ``…`` stands for anything."""
    if "…" not in shown and shown.startswith("{"):
        assert json.loads(found) == json.loads(shown)
        return
    pattern = ".*".join(re.escape(part) for part in shown.strip("\n").split("…"))
    assert re.fullmatch(pattern, found.strip("\n"), re.DOTALL), f"{found}\nis not\n{shown}"


def test_a_reader_who_follows_the_page_gets_what_it_shows(checkout: Path, cache_dir: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(checkout, cache_dir, stack)
        printed = ""
        for step in steps():
            if step.file is not None:
                reader.write(step)
            elif step.language == "bash":
                printed = reader.run(step.text)
            elif step.language == "console":
                if step.text != INSTALL:
                    reader.serve(step.text)
            else:
                assert_printed(printed, step.text)

    assert not git(checkout, "status", "--short"), "the last step removes everything"
