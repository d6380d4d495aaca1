"""What a worker checks before its first child starts, so that an error is one sentence and no restart."""

from __future__ import annotations

import logging

from modelmill.blobs import BlobStore
from modelmill.errors import ConfigError
from modelmill.folders import (
    ensure_temporary_folder,
    is_temporary_cache,
    keep_weights_beside,
    make_folder,
)
from modelmill.settings import Settings
from modelmill.start_checks import is_first

logger = logging.getLogger(__name__)


def check_settings(settings: Settings) -> None:
    """Checks the settings and folders that only a worker uses.

    Raises:
        ConfigError: one of them cannot be used.
    """
    ensure_temporary_folder(settings.cache_dir, settings.data_dir)
    try:
        make_folder(settings.cache_dir, "MODELMILL_CACHE_DIR")
    except ConfigError as error:
        # An image may hold all that its models need, in a folder that cannot be written.
        if not settings.cache_dir.is_dir():
            raise
        logger.warning("%s Models that must be converted cannot be loaded.", error)
    if is_temporary_cache(settings.cache_dir) and is_first("cache"):
        logger.warning(
            "This user has no home folder that can be written, so converted models are kept in %s and may "
            "be lost. Name a folder with MODELMILL_CACHE_DIR.",
            settings.cache_dir,
        )
    keep_weights_beside(settings.cache_dir)
    BlobStore.from_settings(settings)
