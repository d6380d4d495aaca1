"""Finds the job store of a running `modelmill up` on this machine, for the commands that use it."""

from __future__ import annotations

import os
from pathlib import Path

from modelmill.embedded import running_url
from modelmill.errors import ConfigError
from modelmill.settings import Settings
from modelmill_cli.console import err
from modelmill_cli.options import set_environment

BLOB_FOLDER = "blobs"
"""The folder inside the data folder in which `modelmill up` keeps large payloads."""


def running_store(redis_url: str | None, data_dir: Path | None) -> tuple[str, Path] | None:
    """The URL and the data folder of a running `modelmill up`.

    None if the user named another store, here or with MODELMILL_REDIS_URL, or if no `modelmill up` runs.

    Args:
        redis_url: The store that the user named, if any.
        data_dir: The data folder that the user named; the folder of the settings if None.

    Raises:
        ConfigError: the user named a folder, but no `modelmill up` uses it.
    """
    if redis_url or (data_dir is None and os.environ.get("MODELMILL_REDIS_URL")):
        return None
    named = data_dir or Settings.from_env().data_dir
    if named is None:
        return None
    folder = named.resolve()
    url = running_url(folder)
    if url is None:
        if data_dir is not None:
            raise ConfigError(f"No `modelmill up` runs with the data folder {folder}.")
        return None
    return url, folder


def join_store(redis_url: str | None, data_dir: Path | None) -> None:
    """Makes the running store, if there is one, the store of this process and of those that it starts.

    Raises:
        ConfigError: as ``running_store``.
    """
    found = running_store(redis_url, data_dir)
    if found is None:
        return
    url, folder = found
    blobs = Settings.from_env().blob_url or folder / BLOB_FOLDER
    set_environment(redis_url=url, broker_url=url, blob_url=blobs)
    err.say(f"joining the `modelmill up` that runs with the data folder {folder}")
