"""What an API checks before it starts, so that an error is one sentence and not a failed start."""

from __future__ import annotations

from modelmill.blobs import BlobStore
from modelmill.folders import ensure_temporary_folder
from modelmill.settings import Settings
from modelmill_api.middleware.auth import cors_origins, keys_are_on


def check_settings(settings: Settings) -> None:
    """Checks the settings that only an API uses.

    Raises:
        ConfigError: one of them cannot be used.
    """
    ensure_temporary_folder(settings.cache_dir, settings.data_dir)
    keys_are_on(settings)
    cors_origins(settings)
    BlobStore.from_settings(settings)
