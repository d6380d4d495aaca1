"""The configuration of a node, from its environment."""

from __future__ import annotations

import os

import pytest

from modelmill.catalogue import Catalogue
from modelmill.errors import ConfigError
from modelmill_worker.config import (
    MODELS_VARIABLE,
    NODE_VARIABLE,
    PRELOAD_VARIABLE,
    TASKS_VARIABLE,
    NodeConfig,
)
from tests.support.paths import TEST_MODELS


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setenv(NODE_VARIABLE, "node")
    return Catalogue.load(TEST_MODELS)


def test_a_node_serves_the_whole_catalogue_unless_told_otherwise(catalogue: Catalogue) -> None:
    config = NodeConfig.from_env(catalogue)
    assert (config.name, config.preload) == ("node", ())
    assert config.models == {name: tuple(entry.tasks) for name, entry in catalogue.items()}


def test_models_and_tasks_narrow_what_is_served(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, "conse-lite0, minilm,noop")
    monkeypatch.setenv(TASKS_VARIABLE, "zero-shot-image-classification")
    monkeypatch.setenv(PRELOAD_VARIABLE, "noop")
    config = NodeConfig.from_env(catalogue)
    assert config.models == dict.fromkeys(["conse-lite0", "noop"], ("zero-shot-image-classification",))
    assert config.preload == ("noop",)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({MODELS_VARIABLE: "noop,nope"}, "MODELMILL_WORKER_MODELS names unknown models: nope"),
        ({PRELOAD_VARIABLE: "nope"}, "MODELMILL_PRELOAD names unknown models: nope"),
        ({TASKS_VARIABLE: "text-embeding"}, "MODELMILL_WORKER_TASKS names unknown tasks: text-embeding"),
        ({MODELS_VARIABLE: "noop", TASKS_VARIABLE: "text-embedding"}, "None of the models"),
    ],
)
def test_a_node_that_could_serve_nothing_says_why(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        NodeConfig.from_env(catalogue)


def test_the_device_is_one_of_two(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_DEVICE", " CUDA\n")
    NodeConfig.from_env(catalogue)
    assert os.environ["MODELMILL_DEVICE"] == "cuda"

    monkeypatch.setenv("MODELMILL_DEVICE", "gpu")
    with pytest.raises(ConfigError, match=r"MODELMILL_DEVICE must be cpu or cuda\."):
        NodeConfig.from_env(catalogue)
