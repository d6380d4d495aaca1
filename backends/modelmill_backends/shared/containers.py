"""Decodes the sound of containers and codecs that libsndfile does not know, by PyAV (FFmpeg).

The demuxer is the one that our own recognition names: FFmpeg never guesses, so it opens no playlist and no
network. Only decoders of sound are allowed, so the pictures of a video are never decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill.errors import ErrorCode, MediaError
from modelmill.formats.frames import first_frame
from modelmill.formats.matroska import ends_inside
from modelmill.formats.sounds import SoundFormat
from modelmill.formats.window import Window
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.limits import process_limits
from modelmill_tasks.shared.audio import AudioHeader, damaged, invalid, max_frames, silent, too_long

if TYPE_CHECKING:
    from modelmill_backends.shared.audio import Samples

DEMUXERS = {
    SoundFormat.WAV: "wav",
    SoundFormat.FLAC: "flac",
    SoundFormat.OGG: "ogg",
    SoundFormat.MP3: "mp3",
    SoundFormat.AAC: "aac",
    SoundFormat.MP4: "mov",
    SoundFormat.MATROSKA: "matroska",
    SoundFormat.AMR: "amr",
    SoundFormat.AIFF: "aiff",
    SoundFormat.CAF: "caf",
    SoundFormat.AU: "au",
}
"""FFmpeg's names."""
DECODERS = (
    *("aac", "ac3", "eac3", "alac", "amrnb", "amrwb", "flac", "opus", "vorbis", "speex", "gsm", "gsm_ms"),
    *("mp1float", "mp2float", "mp3float", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms"),
    *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"),
    *("pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be"),
)
"""The decoders that may run."""
MAX_STREAMS = 64
MAX_PACKETS_PER_S, MORE_PACKETS = 500, 10_000
"""Packets for each second that was decoded, and more. A packet of a codec lasts at least 2.5 ms."""
INFLATION = 4
"""Matroska may compress packets once more. All together may have so many times the file's bytes."""
BAD_SHARE = 0.1
"""With a larger share of damaged packets, a recording is refused."""
STATED_SHARE, SLACK_S = 0.9, 0.5
"""The share of the stated length that must be there, but for some fractions of a second."""
ESTIMATED = (SoundFormat.MP3, SoundFormat.AAC, SoundFormat.FLAC, SoundFormat.OGG, SoundFormat.AMR)
"""The formats whose length FFmpeg may estimate from the bit rate."""
MAX_KINDS = 8
"""So often a recording may change its rate, channels or kind of sample."""
BLOCK = 65_536
"""Frames that are handed on at a time."""


@dataclass(slots=True)
class _Bounds:
    """What a recording may have."""

    frames: int
    bytes: int


def container_blocks(data: bytes, header: AudioHeader) -> tuple[int, Iterator[Samples]]:
    """The sampling rate, and the recording as blocks ``[frames, channels]``.

    Raises:
        MediaError: it is no sound that FFmpeg can decode, or it exceeds the limits.
    """
    import av

    if header.format == SoundFormat.AAC:
        first = first_frame(Window(io.BytesIO(data)))
        data = data[first[0] :] if first else data
    if header.format == SoundFormat.MATROSKA and header.seconds is None and ends_inside(io.BytesIO(data)):
        warn(
            WarningCode.SOUND_CUT,
            "The file ends in the middle of a packet; if it was cut, the model did not hear the rest.",
        )
    # What FFmpeg says may hold the file's content, so it never gets into a log.
    av.logging.set_level(None)
    options = {
        "codec_whitelist": ",".join(DECODERS),
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
    }
    try:
        container = av.open(
            io.BytesIO(data),
            format=DEMUXERS[header.format],
            container_options=options,
            metadata_errors="ignore",
        )
    except (av.FFmpegError, ValueError, OSError):
        raise damaged(header.format) from None
    try:
        stream = _track(container)
        rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
        if stream.codec_context.name not in DECODERS:
            raise invalid(
                f"The sound of this {header.format} file is of a codec that is not taken "
                f"({stream.codec_context.name})."
            )
        limits = process_limits()
        bounds = _Bounds(
            frames=max_frames(rate, channels, limits),
            bytes=INFLATION * len(data) + 1_000_000,
        )
    except BaseException:
        container.close()
        raise
    return rate, _blocks(container, stream, header, bounds)


def _track(container: Any) -> Any:
    """The track that is heard: the default one, or else the first. All others are skipped."""
    from av.stream import Disposition

    tracks = container.streams.audio
    if not tracks:
        raise silent()
    chosen = next((each for each in tracks if Disposition.default in each.disposition), tracks[0])
    if len(tracks) > 1:
        place = tracks.index(chosen) + 1
        warn(
            WarningCode.SOUND_CUT,
            f"The file has {len(tracks)} sound tracks; the model heard track {place} only.",
        )
    return chosen


def _blocks(container: Any, stream: Any, header: AudioHeader, bounds: _Bounds) -> Iterator[Samples]:
    """The decoded recording, in blocks of about ``BLOCK`` frames."""
    import numpy as np
    from av.stream import Discard

    with container:
        for each in container.streams:
            if each is not stream:
                each.discard = Discard.all
        rate, done, count = stream.codec_context.sample_rate, 0, 0
        held: list[Any] = []
        for part in _frames(container, stream, header.format, bounds):
            done += part.shape[1]
            if done > bounds.frames:
                raise too_long(bounds.frames / rate, header.seconds, rate, stream.codec_context.channels)
            held.append(part)
            count += part.shape[1]
            if count >= BLOCK:
                yield np.ascontiguousarray(np.concatenate(held, axis=1).T)
                held, count = [], 0
        if held:
            yield np.ascontiguousarray(np.concatenate(held, axis=1).T)
        if done < STATED_SHARE * (_stated_s(stream, header) - SLACK_S) * rate:
            raise damaged(header.format)


def _stated_s(stream: Any, header: AudioHeader) -> float:
    """The length of the track by the header, in seconds; 0 if the header does not state it."""
    if header.format in ESTIMATED:
        return (header.frames or 0) / header.rate if header.rate else 0.0
    if header.format == SoundFormat.MATROSKA:
        # The length is that of the longest track.
        return header.seconds or 0.0 if len(stream.container.streams) == 1 else 0.0
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


def _frames(container: Any, stream: Any, form: SoundFormat, bounds: _Bounds) -> Iterator[Any]:
    """The decoded frames, each ``[channels, frames]`` of floats, with the rate and channels of the stream."""
    import av

    context = stream.codec_context
    context.thread_count = 1
    layout, rate = context.layout, context.sample_rate
    # In the middle of a stream the form may change.
    resamplers: dict[tuple[str, str, int], Any] = {}
    try:
        for frame in _decoded(container, stream, form, bounds):
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if kind not in resamplers:
                if len(resamplers) == MAX_KINDS:
                    raise invalid("The sound changes its form too often.")
                resamplers[kind] = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            frame.pts = None
            for each in resamplers[kind].resample(frame):
                yield each.to_ndarray()
    except (av.FFmpegError, ValueError):
        raise damaged(form) from None


def _decoded(container: Any, stream: Any, form: SoundFormat, bounds: _Bounds) -> Iterator[Any]:
    """FFmpeg's frames. A few damaged packets are left out with a warning."""
    import av

    packets = size = bad = 0
    seconds = 0.0
    for packet in container.demux(stream):
        packets, size = packets + 1, size + packet.size
        if packets > MORE_PACKETS + MAX_PACKETS_PER_S * seconds or size > bounds.bytes:
            raise MediaError(ErrorCode.MEDIA_TOO_LARGE, "The file has too many packets of sound.")
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            continue
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            yield frame
    if bad > 1 + BAD_SHARE * packets:
        raise damaged(form)
    if bad:
        warn(WarningCode.SOUND_CUT, f"{bad} of {packets} packets of sound are damaged and were left out.")
