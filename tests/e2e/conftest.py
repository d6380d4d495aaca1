"""The whole system as a user starts it: `modelmill up` in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modelmill import processes
from tests.support.paths import NOOP_MODELS
from tests.support.processes import wait_until
from tests.support.specimen_models import SpecimenModels
from tests.support.system import Up, start_up


@pytest.fixture(scope="session")
def specimen_models(tmp_path_factory: pytest.TempPathFactory) -> SpecimenModels:
    """Specimens for all tasks, built once."""
    return SpecimenModels(tmp_path_factory.mktemp("specimens"))


@pytest.fixture(scope="session")
def up(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, specimen_models: SpecimenModels
) -> Iterator[Up]:
    """One running system with a model for every task. Tests that use it do not stop it."""
    models = specimen_models.write(NOOP_MODELS)
    options = ("--devices", "cpu", "--models-file", str(models), "--preload", "conse-lite0")
    started = start_up(tmp_path_factory.mktemp("up"), cache_dir, *options)
    with httpx.Client(base_url=started.url) as client:
        wait_until(
            lambda: client.get("/api/models/conse-lite0/status").json()["status"] == "running",
            timeout_s=170,
            what="conse-lite0, exported and loaded",
        )
    yield started
    processes.stop(started.process, grace_s=40)
