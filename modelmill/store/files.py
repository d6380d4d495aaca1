"""Files that callers uploaded, or that the API fetched for them: their records, and their content.

Large content goes to the blob store, if one is set up; other content to Redis. ``sweep`` removes a file
when its time is over and no job refers to it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from modelmill.blobs import CHUNK_BYTES, BlobStore
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import keys
from modelmill.store.arguments import pack
from modelmill.store.connection import StoreConnection
from modelmill.store.scripts import MEMORY_SHARE

WRITE_S = 3600
"""How long writing a file's content may take. After this time an unfinished file is removed."""
AT_MOST = 500
"""Files and blobs that one sweep takes."""
ORPHAN_AGE_S = 3600
"""An older blob that no record names is an orphan. The record of a younger one may still be written."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """The data that is kept for a file besides its content."""

    owner: str
    size: int
    sha256: str
    media_type: str
    name: str | None = None
    problem: tuple[str, str] | None = None
    """Why the file cannot be used as media: code and message."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as the store knows it. Times are seconds since the epoch, by the clock of Redis."""

    id: str
    size: int
    sha256: str
    media_type: str
    name: str | None
    problem: tuple[str, str] | None
    created_at: float
    expires_at: float
    blob: str | None
    """Name of the content in the blob store; None if the content is in Redis."""

    @classmethod
    def from_hash(cls, file_id: str, fields: Mapping[bytes, bytes]) -> FileRecord:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        code, _, message = text.get("problem", "").partition(" ")
        return cls(
            id=file_id,
            size=int(text["bytes"]),
            sha256=text["sha256"],
            media_type=text["media_type"],
            name=text.get("name"),
            problem=(code, message) if code else None,
            created_at=int(text["created_ms"]) / 1000,
            expires_at=int(text["expires_ms"]) / 1000,
            blob=text.get("blob"),
        )


class FileStore:
    """Keeps files, and removes what is no longer needed. If Redis fails, every method raises
    ``ModelmillError``."""

    def __init__(self, settings: Settings, connection: StoreConnection, blobs: BlobStore | None) -> None:
        self._settings = settings
        self._connection = connection
        self._blobs = blobs

    async def add(self, file: NewFile, content: IO[bytes], ttl_s: float | None = None) -> FileRecord:
        """Keeps a file for its owner, for ``ttl_s`` or the time of the setting. If this fails, nothing
        is left.

        Raises:
            ModelmillError: ``store_full``, if all files together would be over their limit.
        """
        file_id = str(uuid.uuid4())
        large = self._blobs is not None and file.size >= self._settings.blob_min_bytes
        blob = keys.FILE_BLOB + file_id if large else None
        if blob is None:
            await self._check_memory(file.size)
        await self._reserve(file_id, file.size, blob)
        try:
            await self._write(file_id, blob, content)
            created_at, expires_at = await self._give_to_owner(
                file_id, file, self._settings.file_ttl_s if ttl_s is None else ttl_s
            )
        except BaseException:
            # If this fails too, the reservation expires after `WRITE_S`.
            with suppress(ModelmillError):
                await asyncio.shield(self._delete(file_id, owner=""))
            raise
        return FileRecord(
            id=file_id,
            size=file.size,
            sha256=file.sha256,
            media_type=file.media_type,
            name=file.name,
            problem=file.problem,
            created_at=created_at,
            expires_at=expires_at,
            blob=blob,
        )

    async def _reserve(self, file_id: str, size: int, blob: str | None) -> None:
        arguments = pack(
            "file_reserve",
            id=file_id,
            bytes=size,
            max_bytes=self._settings.max_files_bytes,
            write_ms=WRITE_S * 1000,
            blob=blob or "",
        )
        if await self._connection.run_script("file_reserve", arguments) == b"full":
            raise ModelmillError(
                ErrorCode.STORE_FULL,
                f"All files together may hold {self._settings.max_files_bytes} bytes, and nearly do. "
                "Delete some, or try again when others have expired.",
                retry_after_s=60,
            )

    async def _give_to_owner(self, file_id: str, file: NewFile, ttl_s: float) -> tuple[float, float]:
        """Makes a written file readable. Returns when it was created and when it expires."""
        fields: list[Any] = ["sha256", file.sha256, "media_type", file.media_type]
        if file.name is not None:
            fields += ["name", file.name]
        if file.problem is not None:
            fields += ["problem", " ".join(file.problem)]
        arguments = pack("file_add", fields, id=file_id, owner=file.owner, ttl_ms=round(ttl_s * 1000))
        times = await self._connection.run_script("file_add", arguments)
        if not times:
            raise ModelmillError(ErrorCode.STORE_UNAVAILABLE, "The job store lost the file; send it again.")
        created_ms, expires_ms = times
        return int(created_ms) / 1000, int(expires_ms) / 1000

    async def _delete(self, file_id: str, owner: str) -> bool:
        reply = await self._connection.run_script("file_delete", pack("file_delete", id=file_id, owner=owner))
        return bool(reply == b"deleted")

    async def _check_memory(self, size: int) -> None:
        """Refuses a file that would fill the memory that results need. ``submit`` does the same."""
        (info,) = await self._connection.read(("INFO", "memory"))
        about = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        limit = int(about["maxmemory"])
        if limit and int(about["used_memory"]) + size > limit * MEMORY_SHARE:
            raise ModelmillError(
                ErrorCode.STORE_FULL, "The job store is nearly out of memory.", retry_after_s=10
            )

    async def _write(self, file_id: str, blob: str | None, content: IO[bytes]) -> None:
        if blob is not None and self._blobs is not None:
            await asyncio.to_thread(self._blobs.put_file, blob, content)
            return
        key = keys.BLOB + file_id
        start = 0
        while chunk := await asyncio.to_thread(content.read, CHUNK_BYTES):
            # Not APPEND: if a chunk is sent again after a lost reply, it must land in the same place.
            await self._connection.read_large(("SETRANGE", key, start, chunk), ("EXPIRE", key, WRITE_S))
            start += len(chunk)

    async def find(self, file_id: str, owner: str) -> FileRecord | None:
        """The owner's file with this id."""
        return (await self.find_many([file_id], owner))[file_id]

    async def find_many(self, file_ids: Collection[str], owner: str) -> dict[str, FileRecord | None]:
        """The owner's files with these ids; None for an id that does not exist or belongs to another
        owner."""
        ids = [file_id for file_id in file_ids if is_file_id(file_id)]
        commands = [("HGETALL", keys.FILE + file_id) for file_id in ids]
        found = await self._connection.read(*commands) if commands else []
        answers: dict[str, FileRecord | None] = dict.fromkeys(file_ids)
        for file_id, fields in zip(ids, found, strict=True):
            if fields.get(b"owner") == owner.encode():
                answers[file_id] = FileRecord.from_hash(file_id, fields)
        return answers

    async def delete(self, file_id: str, owner: str) -> bool:
        """Takes the file from its owner; its content goes when no job needs it. False if there is no
        such file."""
        return is_file_id(file_id) and await self._delete(file_id, owner)

    async def read(self, file: FileRecord) -> AsyncIterator[bytes]:
        """The content, in pieces.

        Raises:
            ModelmillError: ``file_not_found``, if the file is removed meanwhile.
        """
        if file.blob is not None:
            async for chunk in self._read_blob(file.blob):
                yield chunk
            return
        start = 0
        while start < file.size:
            (chunk,) = await self._connection.read_large(
                ("GETRANGE", keys.BLOB + file.id, start, start + CHUNK_BYTES - 1)
            )
            if not chunk:
                raise file_gone()
            yield chunk
            start += len(chunk)

    async def _read_blob(self, name: str) -> AsyncIterator[bytes]:
        source = None if self._blobs is None else await asyncio.to_thread(self._blobs.open, name)
        if source is None:
            raise file_gone()
        try:
            while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
                yield chunk
        finally:
            source.close()

    async def sweep(self) -> Sequence[str]:
        """Removes files whose time is over, and deletes blobs that are no longer needed.

        Returns:
            Names of the blobs that were due for deletion, at most ``AT_MOST``. Without a blob store
            they stay.
        """
        arguments = pack("sweep", file_ttl_ms=self._settings.file_ttl_s * 1000, at_most=AT_MOST)
        names = [name.decode() for name in await self._connection.run_script("sweep", arguments)]
        if names and self._blobs is not None:
            await asyncio.to_thread(self._blobs.delete, names)
            await self._connection.read(("ZREM", keys.TRASH, *names))
        return names

    async def sweep_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Deletes blobs that no record names. A process that dies between the two writes leaves one."""
        if self._blobs is None:
            return 0
        blobs = self._blobs
        names = await asyncio.to_thread(lambda: list(blobs.names(older_than_s)))
        count = 0
        for start in range(0, len(names), AT_MOST):
            some = names[start : start + AT_MOST]
            named = await self._connection.read(*(_who_names(name) for name in some))
            orphans = [name for name, by in zip(some, named, strict=True) if by not in (name.encode(), 1)]
            await asyncio.to_thread(blobs.delete, orphans)
            count += len(orphans)
        return count

    async def may_sweep_orphans(self) -> bool:
        """Whether this process must look for orphans. One process does it each hour."""
        if self._blobs is None:
            return False
        (won,) = await self._connection.read(("SET", keys.SWEPT, "1", "NX", "EX", ORPHAN_AGE_S))
        return won is not None


def is_file_id(text: str) -> bool:
    """Whether a file can have this id. Ids become part of keys as they are, so only the canonical form
    is valid."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def file_gone() -> ModelmillError:
    """The error for a file that does not exist. A file of another caller gives the same words."""
    return ModelmillError(
        ErrorCode.FILE_NOT_FOUND, "There is no such file, or its time is over: upload it again."
    )


def _who_names(name: str) -> tuple[str, ...]:
    """The command that answers with the name, or with 1, if a record refers to this blob."""
    folder, _, rest = name.partition("/")
    owner = rest.partition(".")[0]
    if folder == keys.FILE_BLOB.rstrip("/"):
        return ("EXISTS", keys.FILE + owner)
    return ("HGET", keys.JOB + owner, "in_blob" if folder == keys.IN_BLOB.rstrip("/") else "out_blob")
