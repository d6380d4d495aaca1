"""``models --all`` lists what this machine can run, and ``models pull`` downloads it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, requires
from typing import Any

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.extras import install_command
from modelmill.settings import MIB, get_settings
from modelmill_backends.device import Device, total_bytes
from modelmill_backends.loader import list_models, pull
from modelmill_backends.source import is_at_hand
from modelmill_cli.console import make_table, out

DISTRIBUTION = "modelmill"
WIDE = 140
"""The width, in columns, of a terminal that shows the whole table."""


@dataclass(frozen=True, slots=True)
class State:
    """Whether this machine can run a model of the catalogue.

    Attributes:
        code: ``installed``, ``to_fetch``, ``missing_packages`` or ``does_not_fit``.
        text: The same for people, with what they can do.
    """

    code: str
    text: str


def show_catalogue(task: str | None, *, as_json: bool) -> None:
    """Prints every entry with its state on this machine, as a table or as JSON."""
    catalogue = Catalogue.load(get_settings().models_file)
    memory = device_memory_mib()
    rows = [
        (entry, state_of(entry, memory))
        for entry in map(catalogue.find, list_models(task, catalogue=catalogue))
    ]
    if as_json:
        out.print_json(data=[_as_data(entry, state) for entry, state in rows])
        return
    # On a narrow terminal, these columns would break the names of tasks, and a model would take many lines.
    more = ("backend", "licence", "tasks") if out.width >= WIDE else ()
    table = make_table("model", "memory", "on this machine", *more, boxed=False)
    table.columns[1].justify = "right"
    for entry, state in rows:
        memory_mib = "" if entry.memory_mib is None else f"{entry.memory_mib} MiB"
        about = (entry.backend, entry.license or "", ", ".join(entry.tasks))
        table.add_row(entry.name, memory_mib, state.text, *about[: len(more)])
    out.print(table)


def _as_data(entry: ModelEntry, state: State) -> dict[str, Any]:
    named = ("name", "tasks", "backend", "license", "memory_mib", "devices", "aliases", "description")
    return entry.model_dump(mode="json", include=set(named)) | {"state": state.code, "hint": state.text}


def state_of(entry: ModelEntry, memory_mib: dict[str, int]) -> State:
    """An entry's state.

    Args:
        entry: The entry.
        memory_mib: The memory of each kind of device that this machine has, in MiB.
    """
    usable = {kind: memory for kind, memory in memory_mib.items() if kind in entry.devices}
    if not usable:
        return State("does_not_fit", f"does not fit: runs on {' or '.join(entry.devices)} only")
    needed = entry.memory_mib or 0
    if needed > max(usable.values()):
        return State("does_not_fit", f"does not fit: takes {needed} MiB, here are {max(usable.values())}")
    missing = [extra for extra in entry.requires if not has_extra(extra)]
    if missing:
        return State("missing_packages", f"needs {install_command(*missing)}")
    if is_at_hand(entry):
        return State("installed", "installed")
    if entry.source and entry.source.hub:
        return State("to_fetch", "to fetch")
    return State("missing_packages", "its package or folder is missing")


def device_memory_mib() -> dict[str, int]:
    """The memory of this machine and of its largest GPU, if it has one, by kind of device, in MiB."""
    found = {"cpu": total_bytes(Device("cpu", 1)) // MIB}
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
        except (OSError, subprocess.SubprocessError):
            return found
        sizes = [int(line) for line in done.stdout.split() if line.isdigit()]
        if sizes:
            found["cuda"] = max(sizes)
    return found


@cache
def has_extra(extra: str) -> bool:
    """Whether the packages of an extra are installed, according to this distribution's metadata."""
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        # Modelmill runs from its sources, without metadata, so the packages of an extra are unknown.
        return True
    wanted = [line for line in lines if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", line)]
    return all(_has_requirement(line) for line in wanted)


def _has_requirement(line: str) -> bool:
    match = re.match(r"([\w.-]+)\s*(?:\[([^\]]*)\])?", line)
    assert match is not None, line
    name, extras = match.groups()
    if name == DISTRIBUTION:
        return all(has_extra(extra.strip()) for extra in (extras or "").split(","))
    try:
        distribution(name)
    except PackageNotFoundError:
        # Some packages are installed under several names, such as onnxruntime-gpu, but imported under one.
        return importlib.util.find_spec(name.replace("-", "_")) is not None
    return True


def pull_models(names: Iterable[str]) -> None:
    """Downloads the files of each model and prints where they are.

    Raises:
        ModelmillError: a model cannot be downloaded. The models after it are not tried.
    """
    for name in names:
        folders = pull(name)
        if not folders:
            out.say(f"{name}: nothing to fetch, it does not come from a hub")
        for folder in folders:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            out.say(f"{name}: {_shown(size)} in {folder}")


def _shown(size: int) -> str:
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{size / 1024:.0f} KiB"
