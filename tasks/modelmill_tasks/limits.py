"""Limits of the media that a request brings. They are checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from modelmill.settings import Settings, get_settings


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The largest media that are accepted."""

    max_image_pixels: int
    """Width times height."""
    max_audio_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> MediaLimits:
        return cls(settings.max_image_pixels, settings.max_audio_s)


def process_limits() -> MediaLimits:
    """The limits of this process's environment.

    They hold where no caller passes limits: when a runner decodes in a worker, and for models that
    ``modelmill.load`` runs without a server. The API passes its own to ``Task.parse``.
    """
    return MediaLimits.from_settings(get_settings())
