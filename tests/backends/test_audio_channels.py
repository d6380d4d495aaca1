"""From many channels to the one that a model hears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelmill.errors import MediaError
from modelmill_backends.shared.audio import open_audio
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from tests.fixtures.sounds import RATE, encoded, speech, tone


def mixed(*channels: Any) -> tuple[Any, list[WarningCode]]:
    found: list[ItemWarning] = []
    with collecting(found):
        samples = open_audio(encoded(np.stack(channels, axis=1), RATE, "WAV", "FLOAT"), RATE)
    return samples, [each.code for each in found]


def silence() -> Any:
    return np.zeros_like(speech())


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [
        ([speech(), speech()], speech()),
        ([speech(), silence()], speech() / 2),
        ([silence(), silence(), speech(), silence(), silence(), silence()], speech() / 6),
        ([speech(), tone(5)[: speech().size]], (speech() + tone(5)[: speech().size]) / 2),
        ([silence(), silence()], silence()),
    ],
    ids=["equal", "one is silent", "the middle of six", "two voices", "all silent"],
)
def test_channels_are_averaged(channels: list[Any], wanted: Any) -> None:
    samples, warnings = mixed(*channels)

    assert np.allclose(samples, wanted, atol=1e-6)
    assert warnings == []


@pytest.mark.parametrize(
    ("channels", "wanted"),
    [
        ([speech(), -speech()], speech()),
        ([speech() * 0.9, -speech()], -speech()),
        ([speech(), -speech() * 0.9], speech()),
        ([speech() + 0.1, 0.1 - speech() * 0.9], speech() + 0.1),
        ([speech(), -speech(), silence(), silence()], speech()),
    ],
    ids=["opposite", "the second is louder", "the first is louder", "with a constant", "two of four"],
)
def test_of_channels_that_cancel_each_other_the_loudest_is_heard(channels: list[Any], wanted: Any) -> None:
    samples, warnings = mixed(*channels)

    assert np.allclose(samples, wanted, atol=1e-6)
    assert warnings == []


def test_channels_that_cancel_each_other_for_a_while_are_heard_with_a_warning() -> None:
    rest = np.concatenate([speech(), speech()])

    samples, warnings = mixed(rest, np.concatenate([speech(), -speech()]))

    assert np.allclose(samples, rest, atol=1e-6)
    assert warnings == [WarningCode.CHANNELS_MIXED]


def test_stereo_that_is_no_number_is_refused() -> None:
    broken = speech().copy()
    broken[1000] = np.inf

    with pytest.raises(MediaError, match="finite"):
        mixed(speech(), broken)


def test_a_lossy_file_with_opposite_channels_is_heard() -> None:
    data = encoded(np.stack([speech(), -speech()], axis=1), RATE, "OGG", "VORBIS")

    found = open_audio(data, RATE)

    # Both channels are equally loud, so either may be heard.
    assert abs(np.corrcoef(found, speech())[0, 1]) > 0.9
