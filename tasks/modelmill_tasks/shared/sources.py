"""Sources of media: where the bytes behind a media field come from.

A media field is text on the wire. It holds the media, as a data URL or bare base64, or it names them, by a
``file:`` id or a URL. The process that parses the request looks named media up: the API asks for all of them
at once, and the worker reads each when it needs it. Validators of media fields call ``checked`` in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pybase64
from pydantic import ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.contract import Sources, field_problem
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.base64_text import read_loosely

URL_SCHEMES = ("http://", "https://")
FILE_SCHEME = "file:"
MAX_REFERENCE = 8192
"""Characters of a URL or id that may have spaces around it."""


def is_url(value: str) -> bool:
    return value[:8].lower().startswith(URL_SCHEMES)


def is_reference(value: str) -> bool:
    """Whether a media field's text names its media instead of holding them."""
    return is_url(value) or value[:5].lower() == FILE_SCHEME


class MediaText(str):
    """A media field's text that names a file or a URL, with a function that reads its bytes."""

    __slots__ = ("read",)

    read: Callable[[], bytes]

    def __deepcopy__(self, memo: object) -> MediaText:
        return self  # its reader must not be copied


class WantedSources:
    """Collects the names of media in a first pass over a request; in a second pass, raises their errors.

    Each name is kept with its kind, ``image`` or ``audio``, since a file may be usable as only one of them.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], MediaError | None] = {}
        """(text, kind) → why it cannot be used; None if it can be used or was not looked up yet."""

    def take(self, value: str, kind: str) -> str:
        """Notes ``value``; raises ``MediaError`` if it is known that it cannot be used."""
        error = self.answers.setdefault((value, kind), None)
        if error is not None:
            raise error
        return value


class OpenedSources:
    """Gives each name in an accepted request a function that reads its bytes.

    Args:
        readers: Text in the request → the function that reads its bytes.
    """

    def __init__(self, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self._readers = readers

    def take(self, value: str, kind: str) -> str:
        """``value`` as a ``MediaText``; unchanged if there is no reader for it."""
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
    if len(value) <= MAX_REFERENCE and value != (trimmed := value.strip()) and is_reference(trimmed):
        value = trimmed  # a line of a file or of a shell's output, with its end
    sources: Sources | None = context.get("sources")
    try:
        if sources is not None and is_reference(value):
            return sources.take(value, kind)
        if not context.get("trusted"):
            check(value, context.get("limits"))
    except MediaError as error:
        raise field_problem(error.code, error.message) from None
    return value


def source_bytes(value: str) -> bytes:
    """The bytes behind a media field.

    Args:
        value: ``data:image/jpeg;base64,…``, bare base64, or a ``MediaText``, which reads its own bytes.

    Raises:
        MediaError: ``media_source_refused`` for other URLs and file ids, ``invalid_media`` for the rest;
            ``media_not_found`` when a file is gone.
    """
    if isinstance(value, MediaText):
        return value.read()
    if (error := refused(value)) is not None:
        raise error
    text = value
    if value[:5].lower() == "data:":
        header, comma, text = value.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            text = "%"  # a data URL of another form, which is no base64
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:  # as binascii.Error, and as the error for text outside of ASCII
        data = read_loosely(value)
    if not data:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The media are empty.")
    return data


def refused(value: str) -> MediaError | None:
    """Why the text alone is not enough to read ``value``; None if it is not a reference."""
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
