from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modelmill.settings import Settings
from modelmill_api.app import create_app
from tests.modelmill.client.backfill.stub import Stub


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """The server's OpenAPI document."""
    return dict(create_app(Settings()).openapi())


@pytest.fixture(scope="session")
def _stub(document: dict[str, Any]) -> Iterator[Stub]:
    server = Stub(document)
    yield server
    server.close()


@pytest.fixture
def stub(_stub: Stub) -> Stub:
    """A server that a test can make misbehave. At first it behaves."""
    _stub.reset()
    return _stub
