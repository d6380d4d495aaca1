"""Whether a file of the input is still the one that an earlier run read.

A file that was copied has another time of modification and the same content. So the content decides. Of a
file over ``WHOLE_BYTES``, samples are read: if they differ, the file has changed; if they are equal and the
time is not, nothing proves that it is the same, and the user must say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WHOLE_BYTES = 1024**3
"""Of a file up to this size, all is read: about two seconds."""
SAMPLES, SAMPLE_BYTES = 256, 1024**2
_OF_A_FILE = frozenset({"path", "bytes", "modified_ns", "sha256", "samples_sha256"})


def identity(path: Path) -> dict[str, Any]:
    """What identifies a file, for JSON.

    Raises:
        OSError: it cannot be read.
    """
    about = path.stat()
    return {
        "path": str(path.resolve()),
        "bytes": about.st_size,
        "modified_ns": about.st_mtime_ns,
        **_digest(path, about.st_size),
    }


def difference(noted: Mapping[str, Any], ours: Mapping[str, Any], *, was_cut: bool) -> str:
    """Why a file is not the one that was noted; empty if it is.

    Args:
        noted: The identity in the manifest. Manifests of earlier versions have no digest.
        ours: The identity now. Further keys must be equal.
        was_cut: Whether the noted file ended too early. Then the whole file, which begins with it, is taken.
    """
    if noted == ours:
        return ""
    if "bytes" not in noted or "bytes" not in ours or _rest(noted) != _rest(ours):
        return f"{_short(noted)} is not {_short(ours)}"
    if noted["path"] != ours["path"]:
        return f"{noted['path']} is not {ours['path']}"
    name, size = ours["path"], noted["bytes"]
    if was_cut and ours["bytes"] > size and _digest(Path(name), size).items() <= noted.items():
        return ""
    if size != ours["bytes"]:
        return f"{name} had {size:,} bytes, and now has {ours['bytes']:,}"
    kinds = [kind for kind in ("sha256", "samples_sha256") if kind in noted]
    if any(noted[kind] != ours.get(kind) for kind in kinds):
        return f"the content of {name} has changed"
    if noted["modified_ns"] == ours["modified_ns"] or "sha256" in kinds:
        return ""
    return f"{name} was modified or copied meanwhile, and nothing proves that its content is the same"


def _rest(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in _OF_A_FILE}


def _digest(path: Path, size: int) -> dict[str, str]:
    """The digest of a file's first ``size`` bytes, or of samples of them."""
    digest = hashlib.sha256()
    is_whole = size <= WHOLE_BYTES
    step = SAMPLE_BYTES if is_whole else (size - SAMPLE_BYTES) // (SAMPLES - 1)
    with path.open("rb") as file:
        for start in range(0, size, SAMPLE_BYTES) if is_whole else [n * step for n in range(SAMPLES)]:
            file.seek(start)
            digest.update(file.read(min(SAMPLE_BYTES, size - start)))
    return {"sha256" if is_whole else "samples_sha256": digest.hexdigest()}


def _short(value: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name} {each}" for name, each in value.items() if "sha256" not in name)
    return text if len(text) <= 200 else text[:197] + "..."
