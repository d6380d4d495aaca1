"""The child state: a file in which a child says what it is doing, and which outlives the child.

The child writes it and its parent reads it: to see that the child hangs and, after its death, which jobs
were in progress. A file on this host exists also while Redis does not answer, and a killed process need not
flush it.

The child writes several times for each batch, so a write costs one system call and makes no new file.
States go to the two places of the file in turn, and a reader takes the newer one that is complete. If the
child is killed while it writes, the state before remains.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

READ_TRIES = 10
"""How often a reader tries again, if the child overwrites the state that it reads."""


Member = tuple[str, str, int]
"""An item: job id, fence, index within the job. ``store.OPENING`` stands for a job that is not opened yet."""


class Phase(StrEnum):
    """What a child is doing."""

    IDLE = "idle"
    LOADING = "loading"
    DRAINING = "draining"
    """It works on a queue, outside of ``forward``. Items may be prepared in this phase and in ``FORWARD``."""
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class ChildState:
    """What a child said last.

    Attributes:
        pid: The child.
        phase: What it is doing.
        model: The model that it works on.
        since: When the phase began, in seconds of ``time.monotonic``: one clock for all processes of a host.
        fences: Its open claims. Written before a claim is made, so that none is missing.
        forward: The items in ``forward``.
        preparing: The items that are opened or prepared. An item may be in both places.
        preparing_since: When one of these items was last finished.
        storing_since: When the oldest call of the blob store began that is under way; 0 if there is none.
    """

    pid: int
    phase: Phase = Phase.IDLE
    model: str = ""
    since: float = 0.0
    fences: tuple[str, ...] = ()
    forward: tuple[Member, ...] = ()
    preparing: tuple[Member, ...] = ()
    preparing_since: float = 0.0
    storing_since: float = 0.0

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    @property
    def preparing_s(self) -> float:
        return time.monotonic() - self.preparing_since if self.preparing else 0.0

    @property
    def storing_s(self) -> float:
        return time.monotonic() - self.storing_since if self.storing_since else 0.0


@dataclass
class LoadDeaths:
    """Children that died while they loaded a model. The parent writes it for the next child."""

    count: int = 0
    not_before: float = 0.0
    """``time.monotonic`` until which the model is not loaded again."""


class Recorder:
    """Writes and reads the files of one node.

    A child calls ``start_file`` and the methods ``note_…``, from several threads: one is in ``forward`` while
    another claims. The parent calls the others, from one thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        # Under the lock; the drain thread, the ahead thread and the threads that write outcomes change them.
        self._fences: dict[str, None] = {}
        self._held: frozenset[str] = frozenset()
        """The claims of jobs whose results are held."""
        self._stores: dict[int, float] = {}
        """When each thread began its call of the blob store."""
        self._last = ChildState(os.getpid())
        self._states: _StateFile | None = None

    def start_file(self) -> None:
        """Renames the previous child's file for the parent, and starts a new one."""
        state = self.read()
        if state is not None and state.pid != os.getpid():
            # The parent may have been faster.
            with suppress(FileNotFoundError):
                self._file.rename(self.folder / f"dead-{state.pid}")
        self._states = _StateFile(self._file)
        self._enter(Phase.IDLE)

    def note_loading(self, model: str) -> None:
        """The child is about to load ``model``."""
        self._enter(Phase.LOADING, model)

    def note_draining(self, model: str) -> None:
        """The child works on the queue of ``model``, and no item is in ``forward``."""
        self._enter(Phase.DRAINING, model)

    def note_forward(self, model: str, items: Iterable[Member]) -> None:
        """``items`` are about to run."""
        self._enter(Phase.FORWARD, model, tuple(items))

    def note_preparing(self, items: Iterable[Member]) -> None:
        """``items``, and no others, are about to be opened or prepared."""
        named = tuple(items)
        with self._lock:
            # Plain jobs are noted when they are opened and again when they are prepared: skip the second
            # write.
            if named != self._last.preparing:
                self._write(replace(self._last, preparing=named, preparing_since=time.monotonic()))

    def note_prepared(self) -> None:
        """All these items are prepared."""
        with self._lock:
            self._write(replace(self._last, preparing=()))

    def note_idle(self) -> None:
        """The child has no claimed jobs, but those whose results are held."""
        with self._lock:
            self._fences = dict.fromkeys(self._held)
            self._last = replace(self._last, preparing=())
        self._enter(Phase.IDLE)

    def note_claim(self, fence: str) -> None:
        """The child is about to claim under ``fence``.

        Noted before the claim, so that no job is overlooked.
        """
        with self._lock:
            self._fences[fence] = None
            self._write(replace(self._last, fences=tuple(self._fences)))

    def note_settled(self, fence: str) -> None:
        """All jobs of the claim are settled. The next change writes it to the file."""
        with self._lock:
            self._fences.pop(fence, None)

    def note_held(self, fences: Iterable[str]) -> None:
        """The claims of all jobs whose results are held. They outlive the run that made them."""
        with self._lock:
            self._held = frozenset(fences)

    @contextmanager
    def storing(self) -> Iterator[None]:
        """The calling thread makes a call of the blob store, which may hang."""
        thread = threading.get_ident()
        self._note_store(thread, time.monotonic())
        try:
            yield
        finally:
            self._note_store(thread, None)

    def _note_store(self, thread: int, since: float | None) -> None:
        with self._lock:
            if since is None:
                del self._stores[thread]
            else:
                self._stores[thread] = since
            self._write(replace(self._last, storing_since=min(self._stores.values(), default=0.0)))

    def read(self) -> ChildState | None:
        """The state of the present child, or None if it has written none."""
        return _read(self._file)

    def take_dead(self) -> list[ChildState]:
        """The last states of children that have been replaced, each once."""
        found = []
        for file in self.folder.glob("dead-*"):
            if (state := _read(file)) is not None:
                found.append(state)
            file.unlink(missing_ok=True)
        return found

    def forget(self, pid: int) -> None:
        """Removes the file of the child ``pid``, which is dead and whose last state has been read."""
        # At this moment its successor may rename that file and start its own under the same name.
        with suppress(FileNotFoundError):
            aside = self._file.rename(self.folder / "aside")
            state = _read(aside)
            if state is not None and state.pid == pid:
                aside.unlink()
            else:
                aside.rename(self._file)
        (self.folder / f"dead-{pid}").unlink(missing_ok=True)

    def load_deaths(self) -> dict[str, LoadDeaths]:
        """Deaths while loading, by model."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "loads.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {model: LoadDeaths(**deaths) for model, deaths in found.items()}

    def write_load_deaths(self, deaths: dict[str, LoadDeaths]) -> None:
        text = json.dumps({model: asdict(each) for model, each in deaths.items()})
        _replace(self.folder / "loads.json", text)

    def forget_load_deaths(self, model: str) -> None:
        """The model was loaded, so earlier deaths no longer count."""
        deaths = self.load_deaths()
        if deaths.pop(model, None) is not None:
            self.write_load_deaths(deaths)

    @property
    def _file(self) -> Path:
        return self.folder / "child"

    def _enter(self, phase: Phase, model: str = "", forward: tuple[Member, ...] = ()) -> None:
        with self._lock:
            self._write(
                ChildState(
                    pid=os.getpid(),
                    phase=phase,
                    model=model,
                    since=time.monotonic(),
                    fences=tuple(self._fences),
                    forward=forward,
                    preparing=self._last.preparing,
                    preparing_since=self._last.preparing_since,
                    storing_since=self._last.storing_since,
                )
            )

    def _write(self, state: ChildState) -> None:
        self._last = state
        if self._states is not None:
            self._states.write(json.dumps([getattr(state, name) for name in _FIELDS]).encode())


_FIELDS = tuple(field.name for field in fields(ChildState))


class _StateFile:
    """The writer's side of a file that holds the last state and the one before it."""

    HEADER = struct.Struct("<QII")
    """The number of the state, its length in bytes, its CRC-32."""
    PLACE_BYTES = 4 * 1024 * 1024
    """Room for one state: thousands of jobs. Bytes that are never written take no space on the disk."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._count = 0

    def __del__(self) -> None:
        os.close(self._descriptor)

    def write(self, state: bytes) -> None:
        self._count += 1
        header = self.HEADER.pack(self._count, len(state), zlib.crc32(state))
        os.pwrite(self._descriptor, header + state, self._count % 2 * self.PLACE_BYTES)

    @classmethod
    def last(cls, file: Path) -> bytes | None:
        """The newest state that is complete."""
        found: list[tuple[int, bytes]] = []
        with file.open("rb") as opened:
            for place in range(2):
                header = os.pread(opened.fileno(), cls.HEADER.size, place * cls.PLACE_BYTES)
                if len(header) == cls.HEADER.size:
                    count, length, checksum = cls.HEADER.unpack(header)
                    state = os.pread(opened.fileno(), length, place * cls.PLACE_BYTES + cls.HEADER.size)
                    if len(state) == length and zlib.crc32(state) == checksum and count:
                        found.append((count, state))
        return max(found)[1] if found else None


def _replace(file: Path, text: str) -> None:
    # Renamed into place, so that a reader never sees half of it.
    new = file.with_suffix(f".{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _read(file: Path) -> ChildState | None:
    try:
        # If two states are written during one read, both are torn. This does not happen many times in a row.
        text = next(filter(None, (_StateFile.last(file) for _ in range(READ_TRIES))), None)
    except OSError:
        return None
    if text is None:
        return None
    found = dict(zip(_FIELDS, json.loads(text), strict=True))
    return ChildState(
        pid=found["pid"],
        phase=Phase(found["phase"]),
        model=found["model"],
        since=found["since"],
        fences=tuple(found["fences"]),
        forward=_members(found["forward"]),
        preparing=_members(found["preparing"]),
        preparing_since=found["preparing_since"],
        storing_since=found["storing_since"],
    )


def _members(rows: list[list[Any]]) -> tuple[Member, ...]:
    return tuple((job_id, fence, index) for job_id, fence, index in rows)
