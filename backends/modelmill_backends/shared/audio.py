"""Decodes audio into the input of speech models: one channel of floats at the model's sampling rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill.formats.sounds import SoundFormat
from modelmill_backends.failures import module_missing
from modelmill_backends.shared.channels import ALL, SOME, Mixer
from modelmill_backends.shared.containers import container_blocks
from modelmill_backends.shared.sound_files import UnreadableError, sound_file_blocks
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.shared.audio import AudioHeader, invalid, read_header
from modelmill_tasks.shared.sources import source_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    Decoder = Callable[[bytes, AudioHeader], tuple[int, Iterator[Samples]]]

BY_CONTAINERS = (SoundFormat.MP4, SoundFormat.MATROSKA, SoundFormat.AAC, SoundFormat.AMR)
"""The formats that libsndfile never reads. It reads the others, but for rare codecs."""
HOT = 1.25
"""Decoders and resampling exceed the full scale by less. A recording with larger values has another scale."""
QUIET_S = 0.1
"""A quiet place is the quietest stretch of this length, in seconds."""


def require_codecs(entry: ModelEntry) -> None:
    """For ``load`` of a runner: checks that the packages that decode audio are installed.

    Raises:
        ModelmillError: ``model_load_failed``, naming the missing package.
    """
    for module in ("soundfile", "soxr", "av"):
        if find_spec(module) is None:
            raise module_missing(entry, module)


def open_audio(source: str | bytes, rate: int) -> Samples:
    """Decodes all of an audio file: one channel, resampled; values are −1 to 1.

    Channels are averaged, unless that would be silence (see ``shared.channels``). If the audio exceeds the
    limits of ``modelmill_tasks.shared.audio``, decoding stops, even if the header states less.

    Args:
        source: A media field's text, or an encoded file's bytes.
        rate: Samples per second that the model needs.

    Returns:
        ``[samples]``, at least one sample.

    Raises:
        MediaError: it is not audio, or it is truncated, empty or too long.
    """
    import numpy as np

    data = source_bytes(source) if isinstance(source, str) else source
    header = read_header(data)
    decoders: list[Decoder] = [container_blocks]
    if header.format not in BY_CONTAINERS:
        decoders.insert(0, sound_file_blocks)
    for decode in decoders:
        try:
            samples = _mono(decode, data, header, rate)
            break
        except UnreadableError:
            continue
    if not samples.size:
        raise invalid("The audio is empty.")
    peak = max(float(samples.max()), -float(samples.min()))
    if not np.isfinite(peak):
        raise invalid("The audio holds values that are not finite numbers.")
    if peak > HOT:
        # As of a file of floats that holds whole numbers: cutting them off would leave noise.
        samples /= peak
    return np.clip(samples, -1.0, 1.0, out=samples)


def pieces(samples: Samples, rate: int, longest_s: float) -> list[tuple[int, Samples]]:
    """Cuts a recording into pieces of at most ``longest_s``, each at the quietest place of its last third.

    Returns:
        For each piece the index of its first sample, and its samples.
    """
    longest = int(longest_s * rate)
    found, start = [], 0
    while samples.size - start > longest:
        # The last piece has at least a quarter of the full length: short fragments are hard to recognise.
        length = min(longest, samples.size - start - longest // 4)
        end = start + _quietest(samples[start : start + length], rate)
        found.append((start, samples[start:end]))
        start = end
    return [*found, (start, samples[start:])]


def _quietest(samples: Samples, rate: int) -> int:
    import numpy as np

    begin = samples.size * 2 // 3
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples[begin:], dtype=np.float64))])
    width = max(1, min(int(QUIET_S * rate), (samples.size - begin) // 2))
    return begin + int(np.argmin(energy[width:] - energy[:-width])) + width // 2


def _mono(decode: Decoder, data: bytes, header: AudioHeader, rate: int) -> Samples:
    mixer = Mixer()
    own, blocks = decode(data, header)
    samples = _joined(_resampled((mixer.average(block) for block in blocks), own, rate))
    if mixer.lost < SOME:
        return samples
    # It is decoded twice, so that other recordings need not be held with all their channels.
    del samples
    channel = mixer.loudest
    if mixer.lost < ALL:
        warn(
            WarningCode.CHANNELS_MIXED,
            "In a part of the recording its channels cancel each other; the model heard channel "
            f"{channel + 1} only.",
        )
    own, blocks = decode(data, header)
    return _joined(_resampled((block[:, channel] for block in blocks), own, rate))


def _joined(parts: Iterator[Samples]) -> Samples:
    import numpy as np

    found = list(parts)
    joined: Samples = np.concatenate(found) if found else np.zeros(0, np.float32)
    return joined


def _resampled(blocks: Iterator[Samples], own: int, wanted: int) -> Iterator[Samples]:
    import numpy as np

    if own == wanted:
        yield from blocks
        return
    import soxr

    # Block by block, so that a high sampling rate does not fill the memory.
    stream: Any = soxr.ResampleStream(own, wanted, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
