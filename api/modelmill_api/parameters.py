"""Header parameters that several routes take, as FastAPI documents them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

MAX_WAIT_S = 60
"""The longest wait that ``Prefer: wait`` can ask for."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours. The same key with the same body gives the same job, however often "
        "you send it.",
    ),
]

Prefer = Annotated[
    list[str] | None,
    Header(
        description=f"`wait=n`: answer when the job has ended, after n seconds at most (cap {MAX_WAIT_S}). "
        "Other preferences are ignored (RFC 7240).",
        examples=[["wait=10"]],
    ),
]
