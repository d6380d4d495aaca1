"""Of a file with several frames or pages, the model sees the first, and the caller is told."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from modelmill_tasks.shared.images import open_image
from tests.fixtures.image_files import encoded, plain, tiff


def opened(data: bytes) -> tuple[Any, list[ItemWarning]]:
    found: list[ItemWarning] = []
    with collecting(found):
        return open_image(data), found


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_the_first_counts_and_the_others_are_told(kind: str) -> None:
    frames = [plain((8, 8), color) for color in ("red", "lime", "blue")]

    image, found = opened(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))

    assert image.getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=6)
    what = "pages" if kind == "TIFF" else "frames"
    assert found == [
        ItemWarning(WarningCode.FRAMES_LEFT_OUT, f"The file has 3 {what}; the model saw the first.")
    ]


def test_a_heic_with_several_images_shows_its_primary_one(tmp_path: Path) -> None:
    import pillow_heif

    file = pillow_heif.from_pillow(plain((64, 64), "red"))
    file.add_from_pillow(plain((64, 64), "blue"))
    file.save(tmp_path / "two.heic", primary_index=1)

    image, found = opened((tmp_path / "two.heic").read_bytes())

    assert image.getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=6)
    assert [warning.code for warning in found] == [WarningCode.FRAMES_LEFT_OUT]


def test_many_pages_are_counted_within_a_bound() -> None:
    _, found = opened(tiff(bytes(1), pages=5000, t256=1, t257=1, t278=1))

    assert "more than 1000 pages" in found[0].message


def test_smaller_copies_and_masks_are_no_pages() -> None:
    page: dict[str, Any] = {"t256": 1, "t257": 1, "t278": 1}

    for kind in (1, 4, 5):
        data = bytearray(tiff(bytes(1), pages=2, t254=("I", [0]), **page))
        second = data.rindex(struct.pack("<HHI", 254, 4, 1))
        data[second + 8] = kind
        assert opened(bytes(data))[1] == []


def test_pages_in_a_circle_are_counted_once() -> None:
    data = bytearray(tiff(bytes(2), pages=2, t256=1, t257=1, t278=1))
    data[-4:] = data[4:8]

    assert "2 pages" in opened(bytes(data))[1][0].message
