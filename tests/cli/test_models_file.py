"""Mistakes in a models file are reported before a server starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelmill.errors import ConfigError
from modelmill_cli.models_file import check_models_file

GOOD = """
[models.good]
backend = "onnx"
tasks = ["text-embedding"]
source = { folder = "weights" }

[models.of-code]
backend = "ours"
runner = "our_package:Runner"
tasks = ["text-embedding"]
"""
WORKER: dict[str, Any] = {"has_runners": True, "loads": True}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path / "models.toml"


def test_a_good_file_passes(file: Path) -> None:
    file.write_text(GOOD)

    check_models_file(file, **WORKER)
    check_models_file(file)
    check_models_file(None, **WORKER)


@pytest.mark.parametrize(
    ("wrong", "for_api", "said"),
    [
        (
            'backend = "onnx"\ntasks = [\n  "text-embeding",\n]',
            True,
            "line 13: model 'wrong': tasks: There is no task 'text-embeding'. Did you mean text-embedding",
        ),
        (
            'backend = "transformrs"\ntasks = ["text-embedding"]',
            False,
            "line 12: model 'wrong': backend: There is no backend 'transformrs'. Did you mean transformers?",
        ),
        (
            'backend = "onnx"\ntasks = ["text-embedding", "text-to-image"]',
            False,
            "line 13: model 'wrong': tasks: no runner 'default' of backend 'onnx' answers text-to-image.",
        ),
        (
            'backend = "onnx"\ntasks = ["text-embedding"]\nsource = { folder = "nope" }',
            False,
            "line 14: model 'wrong': source: There is no folder {folder}/nope.",
        ),
        ('backend = "onnx"\ntasks = []', True, "line 13: model 'wrong': tasks: Tuple should have at least 1"),
        ('backend = "onnx"\ntasks = ["custom"]\naliases = ["good"]', True, "the name of another model"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, wrong: str, for_api: bool, said: str) -> None:
    file.write_text(f"{GOOD}[models.wrong]\n{wrong}\n")

    with pytest.raises(ConfigError) as caught:
        check_models_file(file, **WORKER)

    assert said.format(folder=file.parent) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    if for_api:
        with pytest.raises(ConfigError):
            check_models_file(file)
    else:
        # Another host may have the runner or folder that is missing here.
        check_models_file(file)


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    file.write_text(
        '[models.one]\nbackend = "onnx"\ntasks = ["text-embeding", "txt"]\n'
        '[models.two]\nbackend = "onx"\ntasks = ["text-embedding"]\nsource = { folder = "nope" }\n'
    )

    with pytest.raises(ConfigError) as caught:
        check_models_file(file, **WORKER)

    assert [line.split(": ")[:3] for line in str(caught.value).splitlines()] == [
        [f"{file}, line {line}", f"model {name!r}", where]
        for line, name, where in (
            (3, "one", "tasks"),
            (3, "one", "tasks"),
            (5, "two", "backend"),
            (7, "two", "source"),
        )
    ]


def test_of_models_that_are_not_served_here_no_folder_is_asked_for(file: Path) -> None:
    file.write_text(
        GOOD + '[models.gone]\nbackend = "onnx"\ntasks = ["sentence-similarity"]\n'
        'source = { folder = "nope" }\n'
    )

    check_models_file(file, **WORKER, models=["good"])
    check_models_file(file, **WORKER, tasks=["text-embedding"])
    with pytest.raises(ConfigError):
        check_models_file(file, **WORKER, tasks=["sentence-similarity"])
