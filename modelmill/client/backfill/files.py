"""Rows that are files of a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from modelmill.client.backfill.media import AS_IT_IS
from modelmill.client.backfill.rows import Row, RowSource
from modelmill.client.backfill.walk import find_files
from modelmill.errors import ConfigError
from modelmill.formats.names import shown, storable_name


class FileRows(RowSource):
    """Each file is a row. The list of files is written when the run begins.

    Args:
        base: The folder.
        parts: The pattern below it.
        number: The number of this input, for the name of the list.
    """

    is_files = True

    def __init__(self, base: str, parts: Sequence[str], number: int) -> None:
        super().__init__()
        self._base = base
        self._parts = parts
        self._name = f"files-{number}.list"
        self._list: Path | None = None
        self._count = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"files": str(Path(self._base).resolve().joinpath(*self._parts))}

    def prepare(self, folder: Path) -> None:
        self._list = folder / self._name
        if self._list.exists():
            with self._list.open("rb") as file:
                self._count = sum(1 for _ in file)
            return
        # Renamed when it is whole: a run that was killed before that makes the list again.
        unfinished = self._list.with_suffix(".tmp")
        output = os.path.realpath(folder)
        if self._parts == ["**"] and os.path.realpath(self._base or ".") == output:
            raise ConfigError(f"{shown(folder)} is the input: choose another folder for the results")
        with unfinished.open("w", encoding="ascii") as file:
            for name in find_files(self._base, self._parts, self._skip, output):
                file.write(json.dumps(name.removeprefix(self._base).lstrip("/")) + "\n")
                self._count += 1
        if not self._count:
            unfinished.unlink()
            pattern = shown("/".join(self._parts))
            skipped = "".join(f"; skipped {path}: {reason}" for path, reason in self.skipped[:3])
            raise ConfigError(
                f"no file matches {pattern} in {shown(self._base) or 'this folder'}{skipped}. Small and "
                "capital letters differ"
            )
        unfinished.rename(self._list)

    def rows(self, start: int) -> Generator[Row, None, None]:
        assert self._list is not None, "prepare comes first"
        with self._list.open(encoding="ascii") as file:
            for number, line in enumerate(islice(file, start, None), start):
                # As the user wrote it: a Path would remove "./".
                path = os.path.join(self._base, json.loads(line))  # noqa: PTH118
                if path[:8].lower().startswith(AS_IT_IS):
                    path = f"./{path}"  # it is not a URL
                keep = {"path": storable_name(path)}
                yield Row(number, {"path": path}, Path(), size_bytes=len(line), keep=keep)

    def count(self) -> int | None:
        return self._count

    def _skip(self, path: str, reason: str) -> None:
        self.skipped.append((shown(path), reason))
