"""The output folder: shards of results, a manifest, and a checkpoint to resume from.

A row is done when a checkpoint covers it. A checkpoint holds the length of the current shard and the rows
that are not yet in a shard. It is written after the shard's bytes are on the disk, and it replaces the
earlier one as a whole. A resumed run cuts the shard to that length. So each row is in the output exactly
once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from modelmill.client.backfill.parquet import write_parquet
from modelmill.client.backfill.stats import Stats
from modelmill.errors import ConfigError

MANIFEST, CHECKPOINT, LOCK = "manifest.json", "checkpoint.json", "lock"
SHARD_BYTES = 512 * 1024 * 1024
"""A shard that reaches this size ends, even if it has few rows."""
VERSION = 1


@dataclass(slots=True)
class _Shard:
    number: int
    file: IO[bytes]
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a checkpoint, and the shards that must be on the disk before it is written."""

    document: Mapping[str, Any]
    current: _Shard
    ended: Sequence[_Shard]


@dataclass(slots=True)
class Plan:
    """Task, model, input and request of a run, for the manifest. A resumed run must have the same plan."""

    task: str
    model: str
    input: Mapping[str, Any]
    request: Mapping[str, Any]
    output_format: str = "jsonl"
    input_difference: Callable[[Mapping[str, Any], bool], str] | None = None
    """Why the input is not the one of a manifest, whose run may have stopped at a file that was cut off.
    Empty if it is that one. None: it must be equal."""

    def as_data(self) -> dict[str, Any]:
        # A field for all rows may hold a whole image.
        text = json.dumps(self.request, sort_keys=True, default=str)
        long = len(text) > 4000
        request = {"sha256": hashlib.sha256(text.encode()).hexdigest()} if long else json.loads(text)
        return {
            "task": self.task,
            "model": self.model,
            "input": dict(self.input),
            "request": request,
            "format": self.output_format,
        }


@dataclass(slots=True)
class Journal:
    """The output of one run. It locks the folder until ``close``.

    Args:
        folder: Created if it does not exist.
        plan: What the run does.
        result_schema: JSON schema of a result, for the columns of Parquet files.
        shard_rows: A shard ends when it has this many rows.

    Attributes:
        next_row: The first row that was never taken from the input.
        pending: Rows before it that are not done.
        finished_jobs: Jobs whose results are on the disk and that the server may still have.
    """

    folder: Path
    plan: Plan
    result_schema: Mapping[str, Any]
    shard_rows: int = 100_000
    run_id: str = ""
    next_row: int = 0
    pending: frozenset[int] = frozenset()
    finished_jobs: tuple[str, ...] = ()
    is_complete: bool = False
    _lock: IO[bytes] | None = None
    _shard: _Shard | None = None
    _ended: list[_Shard] = field(default_factory=list)
    _sealed: list[dict[str, Any]] = field(default_factory=list)
    _created_at: str = ""
    _input_is_cut: bool = False

    def open(self, stats: Stats, *, resume: bool) -> None:
        """Starts a run, or resumes an earlier one and puts its counts into ``stats``.

        Raises:
            ConfigError: another process writes to the folder; the folder holds a run and ``resume`` is False;
                or that run had another plan.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        manifest = _read(self.folder / MANIFEST)
        if manifest is None:
            if any(self.folder.glob("part-*")):
                raise ConfigError(f"{self.folder} holds results of something else: use an empty folder")
            self.run_id, self._created_at = uuid.uuid4().hex, _now()
            return
        if not resume:
            raise ConfigError(
                f"{self.folder} holds a run already, which is {manifest.get('state')}: resume it, or use "
                "another folder"
            )
        self._compare(manifest)
        self.run_id, self._created_at = manifest["run_id"], manifest["created_at"]
        self._sealed = list(manifest["shards"])
        self.is_complete = manifest["state"] == "complete"
        document = manifest if self.is_complete else _read(self.folder / CHECKPOINT)
        if document is not None:
            stats.complete, stats.failed = document["complete"], document["failed"]
            stats.errors, stats.resumed_at = dict(document["errors"]), stats.done
            # Earlier versions have none.
            stats.warnings = dict(document.get("warnings", {}))
        stats.skipped = dict(manifest.get("skipped", {}))
        if not self.is_complete:
            self._recover(document or {"next": 0, "pending": [], "shard": 0, "bytes": 0, "rows": 0})

    def begin(self, stats: Stats) -> None:
        """Writes the manifest. From now on this folder holds a run."""
        self._write_manifest("running", stats)
        self._shard = self._shard or self._open_shard(0)

    def write(self, line: bytes) -> None:
        """Appends the line of one row."""
        shard = self._shard
        assert shard is not None, "begin comes first"
        shard.file.write(line)
        shard.rows += 1
        shard.bytes += len(line)
        if shard.rows >= self.shard_rows or shard.bytes >= SHARD_BYTES:
            self._ended.append(shard)
            self._shard = self._open_shard(shard.number + 1)

    def snapshot(
        self, next_row: int, pending: Sequence[int], stats: Stats, finished_jobs: Sequence[str] = ()
    ) -> Snapshot:
        """The current state, for ``commit``. More rows may be written before the commit.

        Args:
            next_row: The first row that was not taken from the input.
            pending: Rows before it that are not done.
            stats: How far the run is.
            finished_jobs: Jobs that the server need not keep after the commit.
        """
        assert self._shard is not None, "begin comes first"
        self._shard.file.flush()
        document = {
            "next": next_row,
            "pending": sorted(pending),
            "shard": self._shard.number,
            "bytes": self._shard.bytes,
            "rows": self._shard.rows,
            "complete": stats.complete,
            "failed": stats.failed,
            "errors": dict(stats.errors),
            "warnings": dict(stats.warnings),
            "finished_jobs": list(finished_jobs),
        }
        return Snapshot(document, self._shard, list(self._ended))

    def commit(self, snapshot: Snapshot, stats: Stats) -> None:
        """Writes a checkpoint to the disk. This is slow: it waits for the disk.

        Raises:
            OSError: the disk is full, or cannot be written. The last checkpoint is still valid.
        """
        for shard in snapshot.ended:
            self._seal(shard)
        if snapshot.ended:
            self._write_manifest("running", stats)
        os.fsync(snapshot.current.file.fileno())
        _write(self.folder / CHECKPOINT, snapshot.document)
        for shard in snapshot.ended:
            if self.plan.output_format == "parquet":
                self._path(shard.number, "jsonl").unlink(missing_ok=True)

    def end(self, state: str, stats: Stats, reason: str = "", *, input_is_cut: bool = False) -> None:
        """Writes the final state, after the last ``commit``. If all rows are done, ends the last shard.

        ``input_is_cut``: the run stops because a file of the input ended too early.
        """
        assert self._shard is not None, "begin comes first"
        if state == "complete":
            if self._shard.rows or not self._sealed:
                self._seal(self._shard)
            else:
                self._shard.file.close()
                self._path(self._shard.number, "jsonl").unlink()
        self._input_is_cut = input_is_cut or (self._input_is_cut and state != "complete")
        self._write_manifest(state, stats, reason)
        if state == "complete":
            if self.plan.output_format == "parquet":
                self._path(self._shard.number, "jsonl").unlink(missing_ok=True)
            for leftover in (
                self.folder / CHECKPOINT,
                *self.folder.glob("files-*.list"),
                *self.folder.glob("input-*.data"),
            ):
                leftover.unlink(missing_ok=True)
            self.is_complete = True

    def close(self) -> None:
        """Closes the files and releases the lock."""
        for shard in (*self._ended, self._shard):
            if shard is not None:
                with contextlib.suppress(OSError):
                    shard.file.close()
        if self._lock is not None:
            has_begun = (self.folder / MANIFEST).exists()
            if self.is_complete or not has_begun:
                (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.close()
            if not has_begun:
                for pattern in ("files-*", "input-*"):
                    for listed in self.folder.glob(pattern):
                        listed.unlink()
                with contextlib.suppress(OSError):
                    self.folder.rmdir()  # fails if the folder is not empty

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no run yet."""
        return not (self.folder / MANIFEST).exists()

    @property
    def shards(self) -> list[dict[str, Any]]:
        """The shards that have ended."""
        return list(self._sealed)

    def _take_lock(self) -> None:
        self._lock = (self.folder / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise ConfigError(f"another backfill writes to {self.folder} right now") from None

    def _compare(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("version") != VERSION:
            raise ConfigError(f"{self.folder} was written by another version of Modelmill")
        ours = json.loads(json.dumps(self.plan.as_data()))
        self._input_is_cut = bool(manifest.get("input_is_cut"))
        if self.plan.input_difference is not None:
            different = self.plan.input_difference(manifest["input"], self._input_is_cut)
            if different:
                raise ConfigError(
                    f"{self.folder} holds a run with another input, so this run cannot continue it: "
                    f"{different}. If you know that the rows are the same, in the same order, give "
                    "--same-input"
                )
            self._input_is_cut &= manifest["input"] == ours.pop("input")
        for name, value in ours.items():
            if manifest[name] != value:
                raise ConfigError(
                    f"{self.folder} holds a run with another {name}, so this run cannot continue it: "
                    f"{_short(manifest[name])} is not {_short(value)}"
                )

    def _recover(self, checkpoint: Mapping[str, Any]) -> None:
        """Cuts the output to what the checkpoint covers."""
        current, length = checkpoint["shard"], checkpoint["bytes"]
        self.next_row, self.pending = checkpoint["next"], frozenset(checkpoint["pending"])
        self.finished_jobs = tuple(checkpoint.get("finished_jobs", ()))
        self._sealed = [shard for shard in self._sealed if shard["number"] < current]
        for shard in self._sealed:
            path = self.folder / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise _changed(path)
        done = {shard["name"] for shard in self._sealed}
        for path in self.folder.glob("part-*"):
            if path.name not in done and path != self._path(current, "jsonl"):
                path.unlink()
        self._shard = self._open_shard(current)
        if self._shard.file.seek(0, os.SEEK_END) < length:
            raise _changed(self._path(current, "jsonl"))
        self._shard.file.truncate(length)
        self._shard.file.seek(length)
        self._shard.rows, self._shard.bytes = checkpoint["rows"], length

    def _open_shard(self, number: int) -> _Shard:
        # The file stays open while the shard grows.
        file = os.open(self._path(number, "jsonl"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return _Shard(number, os.fdopen(file, "r+b", buffering=1 << 18))

    def _seal(self, shard: _Shard) -> None:
        if any(each["number"] == shard.number for each in self._sealed):
            return  # an earlier commit did so
        if not shard.file.closed:
            shard.file.flush()
            os.fsync(shard.file.fileno())
            shard.file.close()
        path = self._path(shard.number, "jsonl")
        if self.plan.output_format == "parquet":
            source, path = path, self._path(shard.number, "parquet")
            with _replacing(path) as unfinished:
                try:
                    write_parquet(source, unfinished, self.result_schema)
                except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
                    reason = " ".join(str(error).split())
                    raise ConfigError(
                        f"the rows of {source} do not fit into a Parquet file: {reason}. They are safe "
                        "there. Use the format jsonl"
                    ) from None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._sealed.append(
            {
                "name": path.name,
                "number": shard.number,
                "rows": shard.rows,
                "bytes": path.stat().st_size,
                "sha256": digest,
            }
        )
        if shard in self._ended:
            self._ended.remove(shard)

    def _write_manifest(self, state: str, stats: Stats, reason: str = "") -> None:
        document = {
            "version": VERSION,
            "run_id": self.run_id,
            "state": state,
            **({"reason": reason} if reason else {}),
            **self.plan.as_data(),
            "created_at": self._created_at,
            "updated_at": _now(),
            "rows": stats.done,
            "complete": stats.complete,
            "failed": stats.failed,
            "errors": dict(stats.errors),
            "warnings": dict(stats.warnings),
            "skipped": dict(stats.skipped),
            **({"input_is_cut": True} if self._input_is_cut else {}),
            "shards": self._sealed,
        }
        _write(self.folder / MANIFEST, document, indent=2)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"part-{number:05}.{suffix}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} is damaged, so the run cannot be resumed")
    return document


def _changed(path: Path) -> ConfigError:
    return ConfigError(f"{path} has changed since the run wrote it, so the run cannot be resumed")


def _write(path: Path, document: Mapping[str, Any], indent: int | None = None) -> None:
    """Replaces the file as a whole. It is on the disk when this returns."""
    with _replacing(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=indent) + "\n", encoding="ascii")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    unfinished = path.with_name(path.name + ".tmp")
    yield unfinished
    for each in (unfinished, path.parent):
        if each == path.parent:
            unfinished.replace(path)
        file = os.open(each, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."
