"""An API that asks for keys, and callers who have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from modelmill.settings import Settings
from modelmill.store.callers import KeyRing
from tests.support.callers import People
from tests.support.servers import ApiServer


@pytest.fixture
def ring(settings: Settings) -> Iterator[KeyRing]:
    with KeyRing(settings.redis_url) as found:
        yield found


@pytest.fixture
def keyed(settings: Settings) -> Iterator[str]:
    """The URL of an API that asks for keys."""
    server = ApiServer(settings.model_copy(update={"auth": "on"}))
    yield server.url
    server.close()


@pytest.fixture
def people(keyed: str, ring: KeyRing) -> Iterator[People]:
    with ExitStack() as cleanup:
        yield People(keyed, ring, cleanup)
