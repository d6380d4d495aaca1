"""Models for the tests of this folder: real ones from wheels, tiny ones made once per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from tests.fixtures import tiny_models
from tests.fixtures.tiny import texts
from tests.fixtures.tiny.embeddings import exported_dual_encoder
from tests.support.models import CPU, OpenModel


@pytest.fixture(scope="session")
def settings(cache_dir: Path) -> Settings:
    return Settings(cache_dir=cache_dir)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture(scope="session")
def context_of(settings: Settings, catalogue: Catalogue) -> Callable[..., LoadContext]:
    """A context for a catalogued name or an entry."""

    def make(model: str | ModelEntry, device: Device = CPU) -> LoadContext:
        entry = catalogue.find(model) if isinstance(model, str) else model
        return LoadContext(entry, device, catalogue, settings)

    return make


@pytest.fixture(scope="session")
def open_model(context_of: Callable[..., LoadContext]) -> Iterator[OpenModel]:
    """Loads a model once per session, by name or entry."""
    kept: dict[str, LoadedModel] = {}

    def load(model: str | ModelEntry) -> LoadedModel:
        key = str(model)
        if key not in kept:
            kept[key] = LoadedModel(context_of(model)).load()
        return kept[key]

    yield load
    for model in kept.values():
        model.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny("clip", logit_scale=3.0)``: the folder of a tiny model, made at the first call."""
    kept: dict[str, Path] = {}

    def make(kind: str, **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in kept:
            folder = tmp_path_factory.mktemp(f"tiny-{kind}")
            kept[key] = getattr(tiny_models, f"tiny_{kind}")(folder, **options)
        return kept[key]

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``exported("clip")``: the tiny model in ONNX form, in Optimum's layout."""
    kept: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in kept:
            kept[kind] = exported_dual_encoder(kind, tmp_path_factory.mktemp(f"onnx-{kind}"))
        return kept[kind]

    return make


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_text("qa", window=48)``: the folder of a tiny model, made when first asked for."""
    kept: dict[str, Path] = {}

    def make(kind: str, /, **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in kept:
            kept[key] = getattr(texts, f"tiny_{kind}")(tmp_path_factory.mktemp(kind), **options)
        return kept[key]

    return make
