"""Writes large results, before a script makes them the result of their job.

A result above ``keys.INLINE_BYTES`` does not pass through Lua. It goes to the blob store, or into a key of
its own in Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.blobs import BlobError, BlobStore
from modelmill.settings import MIB, Settings
from modelmill.store import keys, scripts
from modelmill.store.records import Outcome, Released, Settlement
from modelmill.store.server_errors import is_temporary

logger = logging.getLogger(__name__)

Storing = Callable[[], AbstractContextManager[None]]
"""Makes a context that is open while a write to the blob store is under way."""

ASK_ABOVE_BYTES = MIB
"""Redis accepts no lower limit than this for one value. So only for larger ones it is asked for its limit."""
USUAL_LIMIT_BYTES = 512 * MIB
"""The default of ``proto-max-bulk-len``, for servers that do not tell."""
BLOBS_AT_ONCE_BYTES = 64 * MIB
"""Blobs are written in groups of about this size, so that no single write takes very long."""


@dataclass(slots=True)
class Written:
    """What became of the large results of some outcomes.

    Attributes:
        blobs: Names of the results that are in the blob store.
        refused: The verdict on each outcome that cannot be settled now, by its index.
    """

    blobs: set[str] = field(default_factory=set)
    refused: dict[int, Settlement] = field(default_factory=dict)


class ResultWriter:
    """Writes large results. Thread-safe."""

    def __init__(self, settings: Settings, client: redis.Redis, blobs: BlobStore | None) -> None:
        self._settings = settings
        self._redis = client
        self._blobs = blobs

    def is_for_blobs(self, outcome: Outcome | Released) -> bool:
        """Whether the result goes to the blob store."""
        return (
            self._blobs is not None
            and isinstance(outcome, Outcome)
            and outcome.result is not None
            and len(outcome.result) >= self._settings.blob_min_bytes
        )

    def write(
        self, outcomes: Sequence[Outcome | Released], *, spill: bool = False, storing: Storing = nullcontext
    ) -> Written:
        """Writes the large results among ``outcomes``.

        Args:
            outcomes: Ends of jobs, and releases.
            spill: Results for the blob store go to Redis instead.
            storing: Open while a write to the blob store is under way.

        Raises:
            RedisError: the server does not answer, or refuses all commands for now.
        """
        written = Written()
        for_blobs: list[int] = []
        for index, outcome in enumerate(outcomes):
            if self.is_for_blobs(outcome) and not spill:
                for_blobs.append(index)
        if for_blobs:
            self._write_blobs(outcomes, for_blobs, written, storing)
        has_room = True
        for index, outcome in enumerate(outcomes):
            large = scripts.large_result(outcome)
            if large and isinstance(outcome, Outcome) and index not in for_blobs:
                verdict = self._write_beside(outcome, large) if has_room else Settlement.NOT_NOW
                if verdict is not Settlement.OK:
                    written.refused[index] = verdict
                    # The next ones would fail for the same reason, maybe after a long wait.
                    has_room = verdict is not Settlement.NOT_NOW
        return written

    def _write_blobs(
        self, outcomes: Sequence[Outcome | Released], indexes: list[int], written: Written, storing: Storing
    ) -> None:
        assert self._blobs is not None
        fails = False
        for group in _groups([(index, cast("Outcome", outcomes[index])) for index in indexes]):
            blobs = {scripts.out_blob(outcome): outcome.result or b"" for _, outcome in group}
            if not fails:
                try:
                    with storing():
                        self._blobs.put_many(blobs)
                except BlobError:
                    fails = True
                else:
                    written.blobs |= blobs.keys()
                    continue
            written.refused |= dict.fromkeys((index for index, _ in group), Settlement.NOT_NOW)

    def _write_beside(self, outcome: Outcome, result: bytes) -> Settlement:
        """Writes a result into a key of its own in Redis."""
        if len(result) > ASK_ABOVE_BYTES and len(result) > self._longest_value():
            # The server would close the connection in the middle, which looks like an outage.
            return Settlement.TOO_LARGE
        try:
            # `NX`: a retry after a lost reply must not overwrite the result of an ended job and reset
            # its TTL.
            self._redis.set(keys.out(outcome.id, outcome.fence), result, ex=scripts.ORPHAN_TTL_S, nx=True)
        except OutOfMemoryError:
            return Settlement.NOT_NOW
        except (RedisConnectionError, RedisTimeoutError) as error:
            # If the server is away, this raises as well.
            self._redis.ping()
            logger.warning(
                "job %s: a result of %d bytes does not get through: %s", outcome.id, len(result), error
            )
            return Settlement.NOT_NOW
        except RedisError as error:
            if is_temporary(error):
                raise
            logger.error("job %s: a result of %d bytes is refused: %s", outcome.id, len(result), error)
            return Settlement.UNWRITABLE
        return Settlement.OK

    def _longest_value(self) -> int:
        try:
            found = cast("dict[str, Any]", self._redis.config_get("proto-max-bulk-len"))
            return int(found["proto-max-bulk-len"])
        except (RedisError, KeyError, ValueError):
            # Some hosted servers refuse CONFIG. If this one is away, the write finds out.
            return USUAL_LIMIT_BYTES

    def drop_refused(
        self,
        outcomes: Sequence[Outcome | Released],
        verdicts: Sequence[Settlement],
        blobs: Collection[str],
        storing: Storing = nullcontext,
    ) -> None:
        """Deletes the blobs of results that did not become the result of their job."""
        refused = {
            scripts.out_blob(outcome)
            for outcome, verdict in zip(outcomes, verdicts, strict=True)
            if isinstance(outcome, Outcome) and verdict is not Settlement.OK
        }.intersection(blobs)
        if self._blobs is None or not refused:
            return
        try:
            with storing():
                self._blobs.delete(refused)
        except BlobError as error:
            logger.warning("refused results stay until the next sweep for orphans: %s", error)


def _groups(results: Sequence[tuple[int, Outcome]]) -> Iterator[list[tuple[int, Outcome]]]:
    group: list[tuple[int, Outcome]] = []
    size = 0
    for index, outcome in results:
        length = len(outcome.result or b"")
        if group and size + length > BLOBS_AT_ONCE_BYTES:
            yield group
            group, size = [], 0
        group.append((index, outcome))
        size += length
    if group:
        yield group
