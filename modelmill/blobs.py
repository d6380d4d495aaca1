"""The blob store: large payloads, in a folder or in an object store behind fsspec.

It keeps bytes under names. Only Redis knows what they are and when they go. All calls block, so the API
makes them from threads.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.extras import missing_package
from modelmill.setting_types import masked
from modelmill.settings import Settings

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
PARTIAL = "tmp/"
"""The folder for unfinished files. If a process dies while it writes, the sweeper removes the file later."""

# This project makes the names from ids and fences, never from the text of a caller. Other names are
# refused all the same.
_NAME = re.compile(r"(?:in|out|file|tmp)/[A-Za-z0-9_-]{1,64}(?:\.[A-Za-z0-9_-]{1,64})?")


class BlobError(ModelmillError):
    """Raised when the blob store does not answer or refuses. A missing blob is no error: methods return
    None."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.STORE_UNAVAILABLE, "The blob store does not answer. Try again shortly.", retry_after_s=2
        )


class _NoNameError(ValueError):
    """A bug in this project. A retry does not help."""


class BlobStore(ABC):
    """Bytes by name. Every method may be called from any thread, and may raise ``BlobError``."""

    @staticmethod
    def from_settings(settings: Settings) -> BlobStore | None:
        """The store that ``blob_url`` names; None if it is not set. It does not connect yet.

        Raises:
            ConfigError: there is no such kind of store, its package is not installed, or the folder
                cannot be created.
        """
        if settings.blob_url is None:
            return None
        scheme, separator, _ = settings.blob_url.partition("://")
        if not separator:
            return _Folder(Path(settings.blob_url))
        if scheme in ("file", "local"):
            return _Folder(Path(unquote(urlsplit(settings.blob_url).path)))
        _check_installed(scheme)
        return _Remote(settings.blob_url)

    def put(self, name: str, data: bytes) -> None:
        """Writes one blob, completely or not at all. It replaces a blob of the same name."""
        self.put_many({name: data})

    def get(self, name: str) -> bytes | None:
        """The bytes of one blob; None if there is no blob of this name."""
        return self.get_many([name])[name]

    @abstractmethod
    def put_many(self, blobs: Mapping[str, bytes]) -> None:
        """Writes blobs, each completely or not at all."""

    @abstractmethod
    def get_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """The bytes of each blob, or None."""

    @abstractmethod
    def put_file(self, name: str, source: IO[bytes]) -> None:
        """Writes the rest of ``source``, in pieces; completely or not at all."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO | None:
        """A blob, open for reading in pieces; None if there is no blob of this name. The caller closes it."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Deletes blobs. Missing ones are ignored."""

    @abstractmethod
    def names(self, older_than_s: float) -> Iterator[str]:
        """Names of all blobs that were written longer ago, unfinished ones included."""


class _Folder(BlobStore):
    """Files of this host. Only this user can read them, because they belong to callers."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in ("in", "out", "file", "tmp"):
                (self._root / name).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"MODELMILL_BLOB_URL: the folder {self._root} cannot be used: {error.strerror}"
            ) from None

    def _path(self, name: str) -> Path:
        return self._root / _checked(name)

    def put_many(self, blobs: Mapping[str, bytes]) -> None:
        for name, data in blobs.items():
            with self._written(name) as file:
                file.write(data)

    def put_file(self, name: str, source: IO[bytes]) -> None:
        with self._written(name) as file:
            for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
                file.write(chunk)

    def get_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        with _translated():
            for name in names:
                try:
                    found[name] = self._path(name).read_bytes()
                except FileNotFoundError:
                    if not self._path(name).parent.is_dir():
                        raise  # the whole folder is missing, for instance because a disk is not mounted
                    found[name] = None
        return found

    def open(self, name: str) -> BinaryIO | None:
        with _translated():
            try:
                return self._path(name).open("rb")
            except FileNotFoundError:
                return None

    def delete(self, names: Iterable[str]) -> None:
        with _translated():
            for name in names:
                self._path(name).unlink(missing_ok=True)

    def names(self, older_than_s: float) -> Iterator[str]:
        limit = time.time() - older_than_s
        for folder in ("in", "out", "file", "tmp"):
            with _translated(), os.scandir(self._root / folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if entry.stat().st_mtime < limit and _NAME.fullmatch(f"{folder}/{entry.name}"):
                            yield f"{folder}/{entry.name}"

    @contextmanager
    def _written(self, name: str) -> Iterator[IO[bytes]]:
        """A file that gets its name when it is complete."""
        with _translated():
            number, partial = tempfile.mkstemp(dir=self._root / PARTIAL)
            try:
                with os.fdopen(number, "wb") as file:
                    yield file
                    file.flush()
                    # Without this, a power cut after the rename could leave an empty file.
                    os.fsync(number)
                Path(partial).replace(self._path(name))
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise


class _Remote(BlobStore):
    """Any file system that fsspec knows. An object appears when it is complete."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the path in it. Made at first use, so that a parent that forks has no
        connection."""
        import fsspec

        # Other processes write there too, so a cached list would be out of date.
        options = {"use_listings_cache": False, "skip_instance_cache": True}
        system, path = fsspec.core.url_to_fs(self._url, **options)
        return system, path.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._place[1]}/{_checked(name)}"

    def put_many(self, blobs: Mapping[str, bytes]) -> None:
        with _translated(self._url):
            self._place[0].pipe({self._path(name): data for name, data in blobs.items()})

    def put_file(self, name: str, source: IO[bytes]) -> None:
        with _translated(self._url):
            file = self._place[0].open(self._path(name), "wb", autocommit=False)
            try:
                for chunk in iter(lambda: source.read(CHUNK_BYTES), b""):
                    file.write(chunk)
                file.close()
            except BaseException:
                with suppress(Exception):
                    file.discard()
                    # Otherwise the garbage collector would finish the file.
                    file.closed = True
                raise
            file.commit()

    def get_many(self, names: Sequence[str]) -> dict[str, bytes | None]:
        if not names:
            return {}
        paths = {self._path(name): name for name in names}
        with _translated(self._url):
            # Always a list, also for one path: then the answer is a mapping that also holds the missing ones.
            found = self._place[0].cat(list(paths), recursive=False, on_error="return")
            answers: dict[str, bytes | None] = {}
            for path, name in paths.items():
                data = found[path]
                if isinstance(data, BaseException) and not isinstance(data, FileNotFoundError):
                    raise data
                answers[name] = data if isinstance(data, bytes) else None
        return answers

    def open(self, name: str) -> BinaryIO | None:
        with _translated(self._url):
            try:
                return cast(
                    "BinaryIO",
                    self._place[0].open(
                        self._path(name), "rb", block_size=CHUNK_BYTES, cache_type="readahead"
                    ),
                )
            except FileNotFoundError:
                return None

    def delete(self, names: Iterable[str]) -> None:
        system = self._place[0]
        with _translated(self._url):
            paths = [self._path(name) for name in names]
            try:
                if paths:
                    system.rm(paths)
            except FileNotFoundError:
                # Some stores raise this for one missing file, and do not say which files are left.
                for path in paths:
                    with suppress(FileNotFoundError):
                        system.rm_file(path)

    def names(self, older_than_s: float) -> Iterator[str]:
        limit = time.time() - older_than_s
        system, root = self._place
        with _translated(self._url):
            for path, about in system.find(root, detail=True).items():
                name = path.removeprefix(root + "/")
                written = _written_at(about)
                if written is not None and written < limit and _NAME.fullmatch(name):
                    yield name


def _written_at(about: Mapping[str, Any]) -> float | None:
    """When an object was written. Each file system of fsspec has its own field for it."""
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        at = about.get(key)
        if isinstance(at, datetime):
            return at.timestamp()
        if isinstance(at, int | float):
            return float(at)
        if isinstance(at, str):
            with suppress(ValueError):
                return datetime.fromisoformat(at).timestamp()
    return None


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _NoNameError(name)
    return name


def _check_installed(scheme: str) -> None:
    from fsspec.registry import known_implementations

    known = known_implementations.get(scheme)
    if known is None:
        raise ConfigError(
            f"MODELMILL_BLOB_URL: there is no store of the kind {scheme!r}. Use a folder or s3://…"
        )
    package = known["class"].partition(".")[0]
    if find_spec(package) is None:
        raise ConfigError(f"MODELMILL_BLOB_URL: {scheme}:// cannot be used. {missing_package(package)}")


@contextmanager
def _translated(url: str | None = None) -> Iterator[None]:
    """Turns the errors of each file system into ``BlobError``. The log shows no password of ``url``."""
    try:
        yield
    except (BlobError, _NoNameError):
        raise
    except Exception as error:
        logger.warning("the blob store failed: %s: %s", type(error).__name__, masked(str(error), url))
        raise BlobError from error
