"""An API that asks for keys, and callers who have one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill.store.callers import KeyRing
from tests.conftest import ApiServer


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


class People:
    """Clients of one API, each with a key of its own."""

    def __init__(self, url: str, ring: KeyRing, cleanup: ExitStack) -> None:
        self._url, self._ring, self._cleanup = url, ring, cleanup

    def __call__(self, name: str = "somebody", **may: Any) -> httpx.Client:
        return self.with_token(self._ring.create(name, **may))

    def with_token(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._cleanup.enter_context(httpx.Client(base_url=self._url, headers=headers, timeout=30))


@pytest.fixture
def people(keyed: str, ring: KeyRing) -> Iterator[People]:
    with ExitStack() as cleanup:
        yield People(keyed, ring, cleanup)
