"""Files that callers uploaded, or that were fetched for them: their records, and their content.

Content lies in the blob store where there is one and it is large, else in Redis. A file goes when its time
is over and no job refers to it; ``sweep`` sees to that.
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
from modelmill.store.api_store import ApiStore
from modelmill.store.scripts import MEMORY_SHARE, Argument

WRITE_S = 3600
"""How long writing a file's content may take, until what there is of it counts as left behind."""
AT_MOST = 500
"""Files and blobs that one sweep takes."""
ORPHAN_AGE_S = 3600
"""A blob that no record names is left behind when it is older; a younger one may be about to be named."""


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is to be kept of a file beside its content."""

    owner: str
    size: int
    sha256: str
    media_type: str
    name: str | None = None
    problem: tuple[str, str] | None = None
    """Why it cannot be used as media: code and message."""


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
    """Where its content lies in the blob store; None where it lies in Redis."""

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
    """Keeps files, and sweeps away what has become garbage. Every method raises ``ModelmillError``."""

    def __init__(self, settings: Settings, store: ApiStore, blobs: BlobStore | None) -> None:
        self._settings = settings
        self._store = store
        self._blobs = blobs

    async def add(self, file: NewFile, content: IO[bytes], ttl_s: float | None = None) -> FileRecord:
        """Keeps a file for its owner, for ``ttl_s`` or the setting's time. Nothing is left of one that fails.

        Raises:
            ModelmillError: ``store_full``, when all files together would be over their limit.
        """
        file_id = str(uuid.uuid4())
        large = self._blobs is not None and file.size >= self._settings.blob_min_bytes
        blob = keys.FILE_BLOB + file_id if large else None
        if blob is None:
            await self._check_memory(file.size)
        room: list[Argument] = [
            file_id,
            file.size,
            self._settings.max_files_bytes,
            WRITE_S * 1000,
            blob or "",
        ]
        if await self._store.run("file_reserve", room) == b"full":
            raise ModelmillError(
                ErrorCode.STORE_FULL,
                f"All files together may hold {self._settings.max_files_bytes} bytes, and nearly do. "
                "Delete some, or try again when others have expired.",
                retry_after_s=60,
            )
        try:
            await self._write(file_id, blob, content)
            fields: list[Any] = ["sha256", file.sha256, "media_type", file.media_type]
            if file.name is not None:
                fields += ["name", file.name]
            if file.problem is not None:
                fields += ["problem", " ".join(file.problem)]
            ttl_ms = round((self._settings.file_ttl_s if ttl_s is None else ttl_s) * 1000)
            times = await self._store.run("file_add", [file_id, file.owner, ttl_ms, *fields])
            if not times:
                raise ModelmillError(
                    ErrorCode.STORE_UNAVAILABLE, "The job store lost the file; send it again."
                )
        except BaseException:
            # Where this cannot be said either, its time of writing runs out.
            with suppress(ModelmillError):
                await asyncio.shield(self._store.run("file_delete", [file_id, ""]))
            raise
        created, expires = (int(at) / 1000 for at in times)
        return FileRecord(
            file_id, file.size, file.sha256, file.media_type, file.name, file.problem, created, expires, blob
        )

    async def _check_memory(self, size: int) -> None:
        """Refuses what would fill the memory that results need. ``submit`` does the same."""
        (info,) = await self._store.ask(("INFO", "memory"))
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
            # Not APPEND: a chunk that is sent again after a lost reply must land where it was.
            await self._store.carry(("SETRANGE", key, start, chunk), ("EXPIRE", key, WRITE_S))
            start += len(chunk)

    async def find(self, file_id: str, owner: str) -> FileRecord | None:
        """The owner's file of that id."""
        return (await self.find_many([file_id], owner))[file_id]

    async def find_many(self, file_ids: Collection[str], owner: str) -> dict[str, FileRecord | None]:
        """The owner's files of those ids; None for each that is not there, or somebody else's."""
        ids = [file_id for file_id in file_ids if is_file_id(file_id)]
        found = await self._store.ask(*(("HGETALL", keys.FILE + file_id) for file_id in ids)) if ids else []
        answers: dict[str, FileRecord | None] = dict.fromkeys(file_ids)
        for file_id, fields in zip(ids, found, strict=True):
            if fields.get(b"owner") == owner.encode():
                answers[file_id] = FileRecord.from_hash(file_id, fields)
        return answers

    async def delete(self, file_id: str, owner: str) -> bool:
        """Takes the file from its owner; its content goes when no job needs it. False when there is none."""
        if not is_file_id(file_id):
            return False
        return bool(await self._store.run("file_delete", [file_id, owner]) == b"deleted")

    async def read(self, file: FileRecord) -> AsyncIterator[bytes]:
        """The content in pieces.

        Raises:
            ModelmillError: ``file_not_found``, when it goes meanwhile.
        """
        if file.blob is not None:
            async for chunk in self._read_blob(file.blob):
                yield chunk
            return
        start = 0
        while start < file.size:
            (chunk,) = await self._store.carry(
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
        """Lets files go whose time is over, and deletes blobs that nothing needs any more.

        Returns:
            Names of blobs that are to be deleted, of which there may be more. Without a blob store they stay.
        """
        arguments = [self._settings.file_ttl_s * 1000, AT_MOST]
        names = [name.decode() for name in await self._store.run("sweep", arguments)]
        if names and self._blobs is not None:
            await asyncio.to_thread(self._blobs.delete, names)
            await self._store.ask(("ZREM", keys.TRASH, *names))
        return names

    async def sweep_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Deletes blobs that no record names: of a process that died between writing and saying so."""
        if self._blobs is None:
            return 0
        blobs = self._blobs
        names = await asyncio.to_thread(lambda: list(blobs.names(older_than_s)))
        count = 0
        for start in range(0, len(names), AT_MOST):
            some = names[start : start + AT_MOST]
            named = await self._store.ask(*(_who_names(name) for name in some))
            orphans = [name for name, by in zip(some, named, strict=True) if by not in (name.encode(), 1)]
            await asyncio.to_thread(blobs.delete, orphans)
            count += len(orphans)
        return count

    async def may_sweep_orphans(self) -> bool:
        """Wins the right to look for orphans, which one process an hour does."""
        if self._blobs is None:
            return False
        (won,) = await self._store.ask(("SET", keys.SWEPT, "1", "NX", "EX", ORPHAN_AGE_S))
        return won is not None


def is_file_id(text: str) -> bool:
    """Whether a file can have that id. Keys are made of ids as they come, so only the usual form will do."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def file_gone() -> ModelmillError:
    """For a file that is not there, and word for word the same for somebody else's."""
    return ModelmillError(
        ErrorCode.FILE_NOT_FOUND, "There is no such file, or its time is over: upload it again."
    )


def _who_names(name: str) -> tuple[str, ...]:
    """The command that answers with the name, or with 1, where a record refers to that blob."""
    folder, _, rest = name.partition("/")
    owner = rest.partition(".")[0]
    if folder == keys.FILE_BLOB.rstrip("/"):
        return ("EXISTS", keys.FILE + owner)
    return ("HGET", keys.JOB + owner, "in_blob" if folder == keys.IN_BLOB.rstrip("/") else "out_blob")
