"""Decodes sound files by soundfile (libsndfile)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelmill.formats.ogg import read_pages
from modelmill.formats.sizes import is_streamed_au, with_unknown_size
from modelmill.formats.sounds import SoundFormat
from modelmill.formats.wav import read_wav
from modelmill_backends.shared.mp3 import prepared
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.limits import process_limits
from modelmill_tasks.shared.audio import UNKNOWN_FRAMES, AudioHeader, Clamped, damaged, max_frames, too_long

if TYPE_CHECKING:
    from modelmill_backends.shared.audio import Samples

BLOCK = 65_536
"""Frames that are decoded at a time."""
SHARE = 0.9
"""Share of its announced frames that an MP3 must give: encoders count the frames at both ends differently."""
STATING = (SoundFormat.MP3, SoundFormat.FLAC)
"""Formats of which libsndfile reads as many frames as the header states, although more may follow."""
READ_SHARE = 0.9
"""Share of the bytes of such a file that must have been read."""


class UnreadableError(Exception):
    """libsndfile cannot read this file, but another decoder may."""


def sound_file_blocks(data: bytes, header: AudioHeader) -> tuple[int, Iterator[Samples]]:
    """The sampling rate, and the recording as blocks ``[frames, channels]``.

    Raises:
        UnreadableError: libsndfile does not know the codec, or does not find the file's end.
        MediaError: the file is damaged or truncated, or exceeds the limits.
    """
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        """Reads from front to back only: a seek after each block would damage an MP3's next block."""

        def seekable(self) -> bool:
            return False

    buffer = Clamped(io.BytesIO(_readable(data, header.format)))
    try:
        file = Stream(buffer)
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        raise UnreadableError from None
    if file.samplerate <= 0 or file.channels <= 0:
        raise damaged(header.format)
    return file.samplerate, _blocks(file, buffer, header)


def _blocks(file: Any, buffer: Clamped, header: AudioHeader) -> Iterator[Samples]:
    import soundfile

    form = header.format
    most = max_frames(file.samplerate, file.channels, process_limits())
    stated = file.frames if 0 <= file.frames < UNKNOWN_FRAMES else 0
    done = read = 0
    try:
        with file:
            # To ask for more frames than a FLAC states is to search the rest of the file for them.
            ends = form == SoundFormat.FLAC and stated > 0
            while not ends or done < stated:
                wanted = min(BLOCK, stated - done) if ends else BLOCK
                block = file.read(wanted, dtype="float32", always_2d=True)
                if not len(block):
                    break
                done += len(block)
                if done > most:
                    raise too_long(most / file.samplerate, header.seconds, file.samplerate, file.channels)
                read = buffer.tell()
                yield block
    except (soundfile.LibsndfileError, RuntimeError):
        raise (UnreadableError if form == SoundFormat.MP3 else damaged(form)) from None
    exact = header.frames is not None and form != SoundFormat.MP3
    if done < (1 if exact else SHARE) * stated:
        raise damaged(form)
    if form in STATING and read < READ_SHARE * buffer.size:
        # It states too short a length, as a file that was joined from several.
        raise UnreadableError


def _readable(data: bytes, form: SoundFormat) -> bytes:
    """The file as libsndfile reads all of it.

    Raises:
        UnreadableError: libsndfile would not read it to its end.
        MediaError: its end is missing.
    """
    if form == SoundFormat.MP3:
        return prepared(data)
    if form == SoundFormat.OGG:
        _check_ogg(data)
    elif form == SoundFormat.AU and is_streamed_au(data[:12]):
        return with_unknown_size(data)
    elif form == SoundFormat.WAV:
        wav = read_wav(io.BytesIO(data))
        if wav is None:
            raise damaged(form)
        if wav.several:
            warn(WarningCode.SOUND_CUT, "The file holds several WAV recordings; the model heard the first.")
        if wav.doubtful:
            warn(
                WarningCode.SOUND_CUT,
                f"The WAV's header states {wav.stated} bytes of sound, and {wav.data_bytes} are there; "
                "the model heard these.",
            )
        return data if wav.as_stated else wav.repaired(data)
    return data


def _check_ogg(data: bytes) -> None:
    pages = read_pages(data)
    if pages.cut:
        raise damaged(SoundFormat.OGG)
    if not pages.ended:
        warn(
            WarningCode.SOUND_CUT,
            "The Ogg file has no mark of its end; if it was cut, the model did not hear the rest.",
        )
    if not pages.ended or pages.chained:
        # libsndfile would leave out the last page, or all recordings but the first.
        raise UnreadableError
