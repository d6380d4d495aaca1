"""The Procfile names commands that the installed package has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _processes() -> dict[str, str]:
    lines = (ROOT / "Procfile").read_text(encoding="utf-8").splitlines()
    # The same pattern that honcho and foreman read lines by.
    found = [re.match(r"^([A-Za-z0-9_-]+):\s*(.+)$", line) for line in lines if not line.startswith("#")]
    assert all(found), "every line is a comment or a process"
    return {match[1]: match[2] for match in found if match}


def test_the_procfile_starts_the_api_and_the_worker() -> None:
    assert set(_processes()) == {"api", "worker"}


def test_every_process_is_a_console_command_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, command in _processes().items():
        assert command.split()[0] in project["scripts"], name
