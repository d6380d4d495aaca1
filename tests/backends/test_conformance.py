"""Every built-in runner passes the checks for plugins, on the specimens in ``tests/fixtures/specimens``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from modelmill.catalogue import ModelEntry
from modelmill.settings import Settings
from modelmill_backends.conformance import CHECKS, LoadedSpecimen, SkippedError, Specimen
from modelmill_backends.device import Device
from modelmill_backends.registry import all_runners, find_runner
from tests.fixtures.specimens import all_specimens

SPECIMENS = all_specimens()


@pytest.fixture(scope="module")
def built() -> dict[str, ModelEntry]:
    """The entries of the built specimens, by the names of the specimens."""
    return {}


@pytest.fixture(scope="module", params=SPECIMENS, ids=lambda specimen: f"{specimen.task}-{specimen.name}")
def loaded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    built: dict[str, ModelEntry],
) -> Iterator[LoadedSpecimen]:
    specimen: Specimen = request.param
    # One thread: more threads make such small models slower.
    loaded = LoadedSpecimen(specimen, tmp_path_factory.mktemp(specimen.name), settings, Device("cpu", 1))
    yield loaded
    built[specimen.name] = loaded.entry
    loaded.close()
    # The garbage collector then skips the objects of this specimen's libraries when the next one is closed.
    gc.freeze()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(loaded: LoadedSpecimen, check: Callable[[LoadedSpecimen], None]) -> None:
    try:
        check(loaded)
    except SkippedError as reason:
        pytest.skip(str(reason))


def test_every_runner_has_a_specimen(
    built: dict[str, ModelEntry], tmp_path_factory: pytest.TempPathFactory
) -> None:
    without = {
        f"{backend} {task} {name}"
        for (backend, task, name), runner in all_runners().items()
        if runner.__module__.startswith("modelmill_backends.") and backend != "noop"
    }
    for specimen in SPECIMENS:
        entry = built.get(specimen.name) or specimen.build(tmp_path_factory.mktemp("entry"))
        runner = find_runner(entry.model_copy(update={"tasks": (specimen.task,)}), specimen.task)
        without.discard(f"{runner.backend} {runner.task} {runner.name}")
    assert not without
