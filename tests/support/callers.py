"""Callers of an API that asks for keys."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx

from modelmill.store.callers import KeyRing


class People:
    """Clients of one API, each with a key of its own."""

    def __init__(self, url: str, ring: KeyRing, cleanup: ExitStack) -> None:
        self._url, self._ring, self._cleanup = url, ring, cleanup

    def __call__(self, name: str = "caller", **may: Any) -> httpx.Client:
        return self.with_token(self._ring.create(name, **may))

    def with_token(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._cleanup.enter_context(httpx.Client(base_url=self._url, headers=headers, timeout=30))
