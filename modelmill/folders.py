"""The folders of this user: data, cache and temporary files, also where there is no home folder.

Containers and services often run as a user without a name, without ``HOME``, or with one that cannot be
written.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from modelmill.errors import ConfigError

logger = logging.getLogger(__name__)


def home() -> Path | None:
    """The home folder; None if the user has none. It may not exist."""
    named = Path(os.environ.get("HOME", "").strip())
    if named.is_absolute():
        return named
    try:
        named = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None
    return named if named.is_absolute() and named != Path("/") else None


def default_data_dir() -> Path | None:
    """Where data are kept unless a setting says otherwise; None if there is no home folder."""
    return _user_folder("XDG_DATA_HOME", ".local/share")


def default_cache_dir() -> Path:
    """Where the cache is unless a setting says otherwise.

    If the home folder cannot be written, it is a folder for temporary files that belongs to this user
    alone: a cache may be lost at any time, and only this user may write what this user loads.
    """
    wanted = _user_folder("XDG_CACHE_HOME", ".cache")
    if wanted is not None and may_write(wanted):
        return wanted
    try:
        private = Path(tempfile.gettempdir()) / _temporary_cache_name()
    except FileNotFoundError:
        private = None
    return private if private is not None and _is_private(private) else wanted or Path("/modelmill-cache")


def is_temporary_cache(folder: Path) -> bool:
    """Whether this is the cache of a user whose home folder cannot be written."""
    return folder.name == _temporary_cache_name()


def may_write(folder: Path) -> bool:
    """Whether this process may make the folder and write files in it. It makes nothing."""
    try:
        while not folder.exists():
            folder = folder.parent
        return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def make_folder(folder: Path, setting: str) -> None:
    """Makes a folder if it is not there, for this user alone.

    Args:
        folder: Its path.
        setting: What names it, for messages.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} cannot be written: {error.strerror}. Name another one with {setting}."
        ) from None


def ensure_temporary_folder(*others: Path | None) -> None:
    """Makes sure that this process and those that it starts can write temporary files.

    Args:
        others: Folders to use if the usual ones cannot be written.

    Raises:
        ConfigError: there is no such folder.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "").strip()
        candidates = [Path(runtime) if runtime else None, *(other and other / "tmp" for other in others)]
        for folder in filter(None, candidates):
            if may_write(folder):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
                with suppress(FileNotFoundError):
                    logger.warning(
                        "temporary files are written to %s: /tmp is not usable", tempfile.gettempdir()
                    )
                    return
        raise ConfigError(
            "No folder for temporary files can be written. Set TMPDIR to a folder that this user may write."
        ) from None


def keep_weights_beside(cache: Path) -> None:
    """If the home folder cannot hold downloaded weights, lets the hub's library keep them in ``cache``."""
    if os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME"):
        return
    usual = home()
    if usual is None or not (may_write(usual / ".cache") or (usual / ".cache" / "huggingface").exists()):
        os.environ["HF_HOME"] = str(cache / "huggingface")


def _temporary_cache_name() -> str:
    return f"modelmill-cache-{os.getuid()}"


def _user_folder(variable: str, fallback: str) -> Path | None:
    # An XDG variable that holds no absolute path does not count, as its specification says.
    named = Path(os.environ.get(variable, "").strip())
    if named.is_absolute():
        return named / "modelmill"
    at = home()
    return None if at is None else at / fallback / "modelmill"


def _is_private(folder: Path) -> bool:
    """Whether the folder belongs to this user alone. Makes it if it is not there."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
