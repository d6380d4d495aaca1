"""The names of the variables, and the warning about a name that has no effect."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from modelmill.settings import Settings
from modelmill.start_checks import is_first, warn_about_names
from modelmill.variables import CHECKED, OTHERS, known_names, unknown_names
from tests.support.paths import REPOSITORY


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MODELMILL_RESULT_TTLS", "MODELMILL_RESULT_TTL_S"),
        ("MODELMILL_RESULT_TTL", "MODELMILL_RESULT_TTL_S"),
        ("MODELMILL_REDISURL", "MODELMILL_REDIS_URL"),
        ("MODELMILL_REDIS_ULR", "MODELMILL_REDIS_URL"),
        ("MODELMILL_AUHT", "MODELMILL_AUTH"),
        ("MODELMILL_LOGLEVEL", "MODELMILL_LOG_LEVEL"),
        ("MODELMILL_Port", "MODELMILL_PORT"),
        ("MODELMILL_API_KEYS", "MODELMILL_API_KEY"),
        ("MODELMIL_REDIS_URL", "MODELMILL_REDIS_URL"),
        ("MODEL_MILL_PORT", "MODELMILL_PORT"),
        ("MODELLMILL_URL", "MODELMILL_URL"),
        ("modelmill_port", "MODELMILL_PORT"),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest_one(name: str, meant: str) -> None:
    assert unknown_names({name: "1"}) == [f"The variable {name} has no effect. Did you mean {meant}?"]


def test_a_name_like_no_other_is_told_too() -> None:
    (sentence,) = unknown_names({"MODELMILL_QQQQ": "1"})

    assert (
        sentence == "The variable MODELMILL_QQQQ has no effect. docs/settings.md lists those that have one."
    )


def test_names_of_others_are_left_alone() -> None:
    others = ["PATH", "REDIS_URL", "MAIL_HOST", "MODEL_URL", "MODELMILL", "MILL_PORT", "MINIMILL_TOKEN"]

    assert unknown_names(dict.fromkeys([*others, "MODELMILL_PLUGIN_TOKEN", "MODELMILL_TEST_X"], "1")) == []


def test_every_name_is_known() -> None:
    assert unknown_names(dict.fromkeys(known_names(), "1")) == []
    assert len(known_names()) == len(Settings.model_fields) + len(OTHERS) + 1


def test_the_code_reads_no_variable_that_is_not_known() -> None:
    packages = ("modelmill", "api", "worker", "tasks", "backends", "cli", "deploy", "docker-compose.yml")
    files = [path for name in packages for path in _files(REPOSITORY / name)]
    found = {
        name
        for path in files
        for name in re.findall(r"\bMODELMILL_[A-Z_]+[A-Z]{2}\b|\bMODELMILL_[A-Z_]+_S\b", path.read_text())
    }

    unknown = {name for name in found if unknown_names({name: "1"})}

    assert unknown == set()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.suffix in (".py", ".yml", ".Dockerfile", ".lua")]


def test_the_settings_page_lists_every_variable() -> None:
    text = (REPOSITORY / "docs" / "settings.md").read_text()

    for name, description in OTHERS.items():
        assert f"| `{name}` | {description} |" in text, name


def test_processes_that_this_one_starts_do_not_warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_PROT", "1")
    monkeypatch.delenv(CHECKED, raising=False)
    said: list[str] = []

    warn_about_names(said.append)
    warn_about_names(said.append)

    assert said == ["The variable MODELMILL_PROT has no effect. Did you mean MODELMILL_PORT?"]
    assert os.environ[CHECKED] == "names"
    assert is_first("store")
    assert os.environ[CHECKED] == "names store"
