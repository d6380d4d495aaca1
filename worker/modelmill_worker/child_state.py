"""The flight recorder: what a child is doing, in a file that outlives it.

The child writes, its parent reads: to see that it hangs and, when it died, whom it took along. A file
of this host is there when Redis is not, and a process that was killed has nothing left to flush.

The child writes several times a batch, so a word costs one system call and no new file: it goes in turn
to one of two places in the file, and a reader takes the newer of those that are whole. Who is killed while
writing leaves the word before.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

READ_TRIES = 10
"""How often a word is looked for that is being written over while it is read."""


Member = tuple[str, str, int]
"""An item: job id, fence, index within the job; ``store.OPENING`` for a job that is not opened yet."""


class Phase(StrEnum):
    """What a child is doing."""

    IDLE = "idle"
    LOADING = "loading"
    DRAINING = "draining"
    """Working on a queue, outside of ``forward``. Items may be prepared meanwhile, in this phase and that."""
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Flight:
    """A child's last word.

    Attributes:
        pid: The child.
        phase: What it is doing.
        model: On which model.
        since: Since when, in seconds of ``time.monotonic``, which is one clock for all processes of a host.
        fences: Its open claims. Written before a claim is made, so that none can be missing.
        forward: The items in ``forward``: job id, fence, index within the job.
        preparing: The items that are being opened and prepared, likewise; there may be some in either place.
        preparing_since: Since when one of these was last finished.
    """

    pid: int
    phase: Phase = Phase.IDLE
    model: str = ""
    since: float = 0.0
    fences: tuple[str, ...] = ()
    forward: tuple[Member, ...] = ()
    preparing: tuple[Member, ...] = ()
    preparing_since: float = 0.0

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    @property
    def preparing_s(self) -> float:
        return time.monotonic() - self.preparing_since if self.preparing else 0.0


@dataclass
class LoadDeaths:
    """Deaths of children while they loaded a model; the parent's word to the next child."""

    count: int = 0
    not_before: float = 0.0
    """``time.monotonic`` until which the model is not to be tried."""


class Recorder:
    """One node's files. The child's side and the parent's are told apart by the methods that they call.

    The child's methods may be called by several threads: one is in ``forward`` while another claims.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._fences: dict[str, None] = {}
        self._last = Flight(os.getpid())
        self._words: _Words | None = None

    def child_started(self) -> None:
        """Puts the file of a predecessor aside for the parent, and begins an own one."""
        flight = self.read()
        if flight is not None and flight.pid != os.getpid():
            # The parent may have been faster.
            with suppress(FileNotFoundError):
                self._file.rename(self.folder / f"dead-{flight.pid}")
        self._words = _Words(self._file)
        self._enter(Phase.IDLE)

    def loading(self, model: str) -> None:
        self._enter(Phase.LOADING, model)

    def draining(self, model: str) -> None:
        self._enter(Phase.DRAINING, model)

    def forward(self, model: str, items: Iterable[Member]) -> None:
        """``items`` are about to run."""
        self._enter(Phase.FORWARD, model, tuple(items))

    def preparing(self, items: Iterable[Member]) -> None:
        """These ``items``, and no others, are about to be opened or prepared."""
        named = tuple(items)
        with self._lock:
            # Plain jobs are named alike when they are opened and when they are prepared, at once after.
            if named != self._last.preparing:
                self._write(replace(self._last, preparing=named, preparing_since=time.monotonic()))

    def prepared(self) -> None:
        """All of them are."""
        with self._lock:
            self._write(replace(self._last, preparing=()))

    def idle(self) -> None:
        """Nothing is held any more."""
        with self._lock:
            self._fences.clear()
            self._last = replace(self._last, preparing=())
        self._enter(Phase.IDLE)

    def claiming(self, fence: str) -> None:
        """To be called before the claim is made, so that no job can be held by a fence that nobody knows."""
        with self._lock:
            self._fences[fence] = None
            self._write(replace(self._last, fences=tuple(self._fences)))

    def settled(self, fence: str) -> None:
        """All jobs of the claim are settled. Told to the file with its next change."""
        with self._lock:
            self._fences.pop(fence, None)

    def read(self) -> Flight | None:
        """The present child's last word, if it has said one."""
        return _read(self._file)

    def take_dead(self) -> list[Flight]:
        """The last words of children that were replaced, each once."""
        found = []
        for file in self.folder.glob("dead-*"):
            if (flight := _read(file)) is not None:
                found.append(flight)
            file.unlink(missing_ok=True)
        return found

    def bury(self, pid: int) -> None:
        """The child ``pid`` is dead and its last word has been read."""
        # Its successor may put that file aside at this very moment, and begin its own in the same place.
        with suppress(FileNotFoundError):
            grave = self._file.rename(self.folder / "grave")
            flight = _read(grave)
            if flight is not None and flight.pid == pid:
                grave.unlink()
            else:
                grave.rename(self._file)
        (self.folder / f"dead-{pid}").unlink(missing_ok=True)

    def load_deaths(self) -> dict[str, LoadDeaths]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "loads.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {model: LoadDeaths(**deaths) for model, deaths in found.items()}

    def write_load_deaths(self, deaths: dict[str, LoadDeaths]) -> None:
        text = json.dumps({model: asdict(each) for model, each in deaths.items()})
        _replace(self.folder / "loads.json", text)

    def forget_load_deaths(self, model: str) -> None:
        """The model was loaded: deaths before that say nothing of it any more."""
        deaths = self.load_deaths()
        if deaths.pop(model, None) is not None:
            self.write_load_deaths(deaths)

    @property
    def _file(self) -> Path:
        return self.folder / "child"

    def _enter(self, phase: Phase, model: str = "", forward: tuple[Member, ...] = ()) -> None:
        with self._lock:
            fences, last = tuple(self._fences), self._last
            self._write(
                Flight(
                    *(os.getpid(), phase, model, time.monotonic(), fences, forward),
                    *(last.preparing, last.preparing_since),
                )
            )

    def _write(self, flight: Flight) -> None:
        self._last = flight
        if self._words is not None:
            self._words.write(json.dumps([getattr(flight, name) for name in _FIELDS]).encode())


_FIELDS = tuple(field.name for field in fields(Flight))


class _Words:
    """The writer's side of a file that holds the last word and the one before it."""

    HEADER = struct.Struct("<QII")
    """Count of the words, length of this one in bytes, its CRC-32."""
    PLACE_BYTES = 4 * 1024 * 1024
    """Room for one word: thousands of jobs. What is not written takes no space on the disk."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._count = 0

    def __del__(self) -> None:
        os.close(self._descriptor)

    def write(self, word: bytes) -> None:
        self._count += 1
        header = self.HEADER.pack(self._count, len(word), zlib.crc32(word))
        os.pwrite(self._descriptor, header + word, self._count % 2 * self.PLACE_BYTES)

    @classmethod
    def last(cls, file: Path) -> bytes | None:
        """The newest word that is whole."""
        found: list[tuple[int, bytes]] = []
        with file.open("rb") as opened:
            for place in range(2):
                header = os.pread(opened.fileno(), cls.HEADER.size, place * cls.PLACE_BYTES)
                if len(header) == cls.HEADER.size:
                    count, length, checksum = cls.HEADER.unpack(header)
                    word = os.pread(opened.fileno(), length, place * cls.PLACE_BYTES + cls.HEADER.size)
                    if len(word) == length and zlib.crc32(word) == checksum and count:
                        found.append((count, word))
        return max(found)[1] if found else None


def _replace(file: Path, text: str) -> None:
    # Renamed into place, so that a reader never sees half of it.
    new = file.with_suffix(f".{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def _read(file: Path) -> Flight | None:
    try:
        # Two words written while one was read spoil both, but not again and again.
        word = next(filter(None, (_Words.last(file) for _ in range(READ_TRIES))), None)
    except OSError:
        return None
    if word is None:
        return None
    pid, phase, model, since, fences, forward, preparing, preparing_since = json.loads(word)
    return Flight(
        *(pid, Phase(phase), model, since, tuple(fences)),
        *(_members(forward), _members(preparing), preparing_since),
    )


def _members(rows: list[list[Any]]) -> tuple[Member, ...]:
    return tuple((job_id, fence, index) for job_id, fence, index in rows)
