"""Media that a request names instead of holding: a ``file:`` id, or a URL.

What they name is looked up by whoever parses the request: the API, which asks for all of them at once, and
the worker, which reads them when they are needed. Validators of media fields call ``checked`` for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.contract import Sources, field_problem
from modelmill_tasks.limits import MediaLimits

URL_SCHEMES = ("http://", "https://")
FILE_SCHEME = "file:"


def is_url(value: str) -> bool:
    return value[:8].lower().startswith(URL_SCHEMES)


def is_reference(value: str) -> bool:
    """Whether a media field's text names its media, and does not hold them."""
    return is_url(value) or value[:5].lower() == FILE_SCHEME


class MediaText(str):
    """A media field's text that names something, with the way to its bytes."""

    __slots__ = ("read",)

    read: Callable[[], bytes]

    def __deepcopy__(self, memo: object) -> MediaText:
        return self  # a text like any other; what reads it is not to be copied


class WantedSources:
    """Collects what a request names, and says in a second pass what became of it.

    Each is wanted as something, ``image`` or ``audio``, since a file can be right for one and not the other.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], MediaError | None] = {}
        """(text, kind) → why it cannot be used; None, it can, or nobody has looked yet."""

    def take(self, value: str, kind: str) -> str:
        """Notes ``value`` down; raises ``MediaError`` where it is known to be no good."""
        error = self.answers.setdefault((value, kind), None)
        if error is not None:
            raise error
        return value


class OpenedSources:
    """Gives what an accepted request names a way to its bytes.

    Args:
        readers: Texts of the request → what reads the bytes.
    """

    def __init__(self, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self._readers = readers

    def take(self, value: str, kind: str) -> str:
        """``value`` with its bytes behind it; as it is, where nothing was stored for it."""
        if value not in self._readers:
            return value
        text = MediaText(value)
        text.read = self._readers[value]
        return text


def checked(
    value: str, info: ValidationInfo, kind: str, check: Callable[[str, MediaLimits | None], object]
) -> str:
    """For validators of media fields: ``value``, if ``check`` or the request's sources accept it.

    Args:
        value: The field's text.
        info: Holds the context that ``Task.parse`` gives.
        kind: ``image`` or ``audio``.
        check: Raises ``MediaError`` for a text that it refuses. Its second argument is the request's limits.
    """
    context = info.context or {}
    sources: Sources | None = context.get("sources")
    try:
        if sources is not None and is_reference(value):
            return sources.take(value, kind)
        if not context.get("trusted"):
            check(value, context.get("limits"))
    except MediaError as error:
        raise field_problem(error.code, error.message) from None
    return value


def refused(value: str) -> MediaError | None:
    """Why ``value`` cannot be read by somebody who has only the text; None if it is no reference."""
    if not is_reference(value):
        return None
    if is_url(value):
        message = (
            "This server does not fetch URLs, unless its setting fetch_hosts names their hosts. "
            "Send the file itself, as a data URL or base64."
        )
    else:
        message = "There are no uploaded files here. Send the file itself, as a data URL or base64."
    return MediaError(ErrorCode.MEDIA_SOURCE_REFUSED, message)
