"""Models get RGB, also from pictures that are transparent, deep, or of many frames."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from modelmill_tasks.shared.images import open_image
from tests.fixtures.image_files import chunk, encoded, plain, png, run_length_bmp, tiff

WHITE, RED, BLACK = (255, 255, 255), (255, 0, 0), (0, 0, 0)


def opened(data: bytes | Any) -> tuple[Any, list[ItemWarning]]:
    found: list[ItemWarning] = []
    with collecting(found):
        image = open_image(data)
    assert image.mode == "RGB"
    return image, found


def values(data: bytes) -> list[int]:
    """The greys of the first row. There is no warning."""
    image, found = opened(data)
    assert found == []
    array = np.asarray(image)
    assert (array == array[:, :, :1]).all()
    return [int(value) for value in array[0, :, 0]]


def drawing(color: tuple[int, ...], mode: str = "RGBA") -> Any:
    """A square on a ground that is transparent, and black below."""
    image = Pillow.new(mode, (32, 32))
    ImageDraw.Draw(image).rectangle((8, 8, 23, 23), fill=color)
    return image


class TestTransparency:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "HEIF", "GIF"])
    def test_a_drawing_lies_on_white(self, kind: str) -> None:
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}

        image, found = opened(encoded(drawing((255, 0, 0, 255)), kind, **options))

        assert image.getpixel((1, 1)) == pytest.approx(WHITE, abs=2)
        assert image.getpixel((16, 16)) == pytest.approx(RED, abs=12)
        assert found == []

    @pytest.mark.parametrize("alpha", [1, 64, 128, 254])
    def test_a_pixel_is_mixed_with_white_by_its_alpha(self, alpha: int) -> None:
        image, _ = opened(encoded(drawing((200, 100, 0, alpha)), "PNG"))

        expected = [round((value * alpha + 255 * (255 - alpha)) / 255) for value in (200, 100, 0)]
        assert image.getpixel((16, 16)) == pytest.approx(expected, abs=1)

    def test_edges_have_no_fringe_of_the_hidden_color(self) -> None:
        """An edge between red and transparent lies between red and white, although black is stored below."""
        soft = drawing((255, 0, 0, 255)).resize((37, 37), Pillow.Resampling.BICUBIC)

        image, _ = opened(encoded(soft, "PNG"))

        array = np.asarray(image).astype(int)
        assert array[:, :, 0].min() >= 250
        assert np.abs(array[:, :, 1] - array[:, :, 2]).max() <= 1

    @pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBa", "RGBA"])
    def test_every_mode_with_alpha_is_laid_on_white(self, mode: str) -> None:
        source = drawing((255, 0, 0, 255)).convert("LA") if mode[0] in "LP" else drawing((255, 0, 0, 255))
        source = source.convert("RGBA").convert("PA") if mode == "PA" else source.convert(mode)

        image, _ = opened(source)

        assert image.getpixel((1, 1)) == WHITE
        assert image.getpixel((16, 16)) == (RED if mode[0] == "R" else (76, 76, 76))

    @pytest.mark.parametrize("transparency", [0, bytes([0, 128])], ids=["one", "each"])
    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_a_palette_may_be_transparent(self, transparency: int | bytes, kind: str) -> None:
        if kind == "GIF":
            transparency = 0
        image = Pillow.new("P", (2, 1))
        image.putpalette([200, 100, 50, 1, 2, 3])
        image.putpixel((1, 0), 1)

        result, _ = opened(encoded(image, kind, transparency=transparency))

        second = (1, 2, 3) if transparency == 0 else (128, 128, 129)
        assert [result.getpixel((x, 0)) for x in range(2)] == [WHITE, second]

    def test_a_palette_without_transparency_gives_its_colors(self) -> None:
        image = Pillow.new("P", (2, 1))
        image.putpalette([200, 100, 50, 1, 2, 3])
        image.putpixel((1, 0), 1)

        for kind in ("PNG", "GIF", "TIFF", "BMP"):
            result, _ = opened(encoded(image, kind))
            assert [result.getpixel((x, 0)) for x in range(2)] == [(200, 100, 50), (1, 2, 3)], kind

    @pytest.mark.parametrize(
        ("depth", "rows", "key", "expected"),
        [
            (1, b"\0\x40", 1, [0, 255]),
            (2, b"\0\x60", 2, [85, 255]),
            (4, b"\0\x37", 7, [51, 255]),
            (8, b"\0\x33\x77", 0x77, [51, 255]),
            (16, b"\0\x33\x33\x77\x77", 0x7777, [51, 255]),
        ],
    )
    def test_a_grey_that_is_transparent_is_white(
        self, depth: int, rows: bytes, key: int, expected: list[int]
    ) -> None:
        assert values(png(2, 1, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", key)))) == expected

    @pytest.mark.parametrize("depth", [8, 16])
    def test_a_color_that_is_transparent_is_white(self, depth: int) -> None:
        pixels = [(200, 100, 50), (1, 2, 3)]
        wide = depth // 8
        rows = b"\0" + b"".join(bytes([value]) * wide for pixel in pixels for value in pixel)
        scale = 1 if depth == 8 else 257
        key = struct.pack(">HHH", *(value * scale for value in pixels[1]))

        image, _ = opened(png(2, 1, depth, 2, rows, chunk(b"tRNS", key)))

        assert [image.getpixel((x, 0)) for x in range(2)] == [pixels[0], WHITE]

    @pytest.mark.parametrize(("color", "expected"), [(4, (100, 100, 100)), (6, (100, 50, 25))])
    def test_16_bits_with_alpha_are_laid_on_white(self, color: int, expected: tuple[int, ...]) -> None:
        samples = expected[:1] if color == 4 else expected
        seen = b"".join(bytes([value, value]) for value in samples) + b"\xff\xff"
        hidden = bytes(2 * len(samples)) + b"\0\0"

        image, _ = opened(png(2, 1, 16, color, b"\0" + seen + hidden))

        assert [image.getpixel((x, 0)) for x in range(2)] == [expected, WHITE]

    def test_alpha_of_a_tiff_may_be_associated(self) -> None:
        """Half-transparent red, stored as half of red."""
        tags: dict[str, Any] = {"t256": 1, "t257": 1, "t258": (8, 8, 8, 8), "t262": 2, "t277": 4, "t278": 1}

        associated, _ = opened(tiff(bytes([128, 0, 0, 128]), t338=1, **tags))
        straight, _ = opened(tiff(bytes([255, 0, 0, 128]), t338=2, **tags))
        unrelated, _ = opened(tiff(bytes([255, 0, 0, 128]), t338=0, **tags))

        assert associated.getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
        assert straight.getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
        assert unrelated.getpixel((0, 0)) == RED

    def test_a_gif_frame_that_covers_a_part_of_the_screen_lies_on_white(self) -> None:
        control = b"\x21\xf9\x04\x01\0\0\0\0"
        screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes([0, 0, 0, 255, 0, 0])
        # One red pixel at (1, 1). The first color of the palette is transparent.
        frame = b"\x2c" + struct.pack("<HHHHB", 1, 1, 1, 1, 0) + b"\x02\x02\x4c\x01\x00;"

        image, _ = opened(screen + control + frame)

        assert image.getpixel((1, 1)) == RED
        assert image.getpixel((3, 3)) == WHITE

    @pytest.mark.parametrize("color", [(255, 255, 255, 255), (230, 240, 250, 255)])
    def test_a_white_drawing_lies_on_black_with_a_warning(self, color: tuple[int, ...]) -> None:
        image, found = opened(encoded(drawing(color), "PNG"))

        assert image.getpixel((1, 1)) == BLACK
        assert image.getpixel((16, 16)) == color[:3]
        assert [warning.code for warning in found] == [WarningCode.COLORS_CHANGED]
        assert "black" in found[0].message

    def test_white_letters_can_be_read(self) -> None:
        page = Pillow.new("RGBA", (120, 30))
        ImageDraw.Draw(page).text((5, 5), "visible", fill=WHITE, font_size=18)

        image, _ = opened(encoded(page, "PNG"))

        assert np.ptp(np.asarray(image.convert("L"))) > 200

    def test_what_is_transparent_everywhere_is_white_with_a_warning(self) -> None:
        image, found = opened(encoded(plain((4, 4), (10, 200, 30, 0), "RGBA"), "PNG"))

        assert image.getextrema() == ((255, 255),) * 3
        assert [warning.code for warning in found] == [WarningCode.COLORS_CHANGED]

    def test_a_bitmap_whose_alpha_was_never_written_is_opaque(self) -> None:
        data = bytearray(encoded(plain((4, 4), (200, 100, 50, 7), "RGBA"), "BMP"))
        start = int.from_bytes(data[10:14], "little")
        for place in range(start + 3, len(data), 4):
            data[place] = 0

        image, found = opened(bytes(data))

        assert (image.getpixel((1, 1)), found) == ((200, 100, 50), [])

    def test_an_opaque_picture_keeps_its_pixels(self) -> None:
        source = plain((5, 4), (255, 255, 255, 255), "RGBA")
        source.putpixel((2, 2), (1, 2, 3, 255))

        image, found = opened(encoded(source, "PNG"))

        assert image.tobytes() == source.convert("RGB").tobytes()
        assert found == []


class TestGreys:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "AVIF", "HEIF"])
    def test_grey_stays_grey(self, kind: str) -> None:
        r, g, b = np.asarray(open_image(encoded(plain((16, 16), 77, "L"), kind)))[8, 8]

        assert (r, g, b) == pytest.approx((77, 77, 77), abs=2)

    def test_black_and_white_are_black_and_white(self) -> None:
        assert open_image(encoded(plain((3, 2), 1, "1"), "PNG")).getpixel((0, 0)) == WHITE
        assert open_image(encoded(plain((3, 2), 0, "1"), "PNG")).getpixel((0, 0)) == BLACK

    @pytest.mark.parametrize("extra", [b"", chunk(b"tRNS", b"\xff\xff")], ids=["plain", "transparent"])
    def test_16_bits_are_scaled_and_not_clipped(self, extra: bytes) -> None:
        greys = [0, 257, 128 * 257, 254 * 257, 65535]
        rows = b"\x00" + b"".join(value.to_bytes(2, "big") for value in greys)

        assert values(png(5, 1, 16, 0, rows, extra)) == [0, 1, 128, 254, 255]

    @pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16B", ">u2")])
    def test_16_bits_are_scaled_in_either_byte_order(self, mode: str, dtype: str) -> None:
        raw = np.array([0, 32896, 65535], dtype=dtype).tobytes()

        assert values(encoded(Pillow.frombytes(mode, (3, 1), raw), "TIFF")) == [0, 128, 255]
        assert values(Pillow.frombytes(mode, (3, 1), raw)) == [0, 128, 255]  # type: ignore[arg-type]

    def test_16_bits_of_which_12_are_used_are_made_visible_with_a_warning(self) -> None:
        raw = np.array([0, 2048, 4095], dtype="<u2").tobytes()

        image, found = opened(encoded(Pillow.frombytes("I;16", (3, 1), raw), "TIFF"))

        assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]
        assert [warning.code for warning in found] == [WarningCode.COLORS_CHANGED]
        assert "16 bits" in found[0].message

    def test_12_bits_are_12_bits(self) -> None:
        """0, 2048 and 4095 and 0, packed."""
        packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00])

        assert values(tiff(packed, t256=4, t257=1, t258=12, t278=1)) == [0, 128, 255, 0]

    @pytest.mark.parametrize(("bits", "letter"), [(8, "B"), (16, "H"), (32, "f")])
    def test_zero_may_be_white(self, bits: int, letter: str) -> None:
        top = {"B": 255, "H": 65535, "f": 1.0}[letter]
        raw = struct.pack(f"<3{letter}", 0, type(top)(top * 0.2), top)

        greys = values(tiff(raw, t256=3, t257=1, t258=bits, t262=0, t278=1, t339=3 if letter == "f" else 1))

        assert greys == [255, 204, 0]

    @pytest.mark.parametrize(
        ("numbers", "expected"),
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.25, 0.5, 0.75], [64, 128, 191]),
            ([0.0, 128.0, 255.0], [0, 128, 255]),
            ([0.0, 32896.0, 65535.0], [0, 128, 255]),
            ([0.0, 0.0, 0.0], [0, 0, 0]),
        ],
    )
    @pytest.mark.parametrize("big_endian", [False, True])
    def test_floats_are_scaled_by_their_range(
        self, numbers: list[float], expected: list[int], big_endian: bool
    ) -> None:
        raw = np.array(numbers, dtype=">f4" if big_endian else "<f4").tobytes()

        greys = values(tiff(raw, big_endian=big_endian, t256=3, t257=1, t258=32, t278=1, t339=3))

        assert greys == expected

    @pytest.mark.parametrize("numbers", [[-1.0, 0.0, 1.0], [0.0, 1e6, 2e6], [0.0, 1.5, 3.0]])
    def test_floats_of_another_range_are_stretched_with_a_warning(self, numbers: list[float]) -> None:
        raw = np.array(numbers, dtype="<f4").tobytes()

        image, found = opened(tiff(raw, t256=3, t257=1, t258=32, t278=1, t339=3))

        assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]
        assert [warning.code for warning in found] == [WarningCode.COLORS_CHANGED]

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_what_is_no_number_is_refused(self, wrong: float, place: int) -> None:
        numbers = np.array([0.1, 0.2, 0.3], dtype="<f4")
        numbers[place] = wrong

        with pytest.raises(MediaError, match="NaN") as caught:
            open_image(tiff(numbers.tobytes(), t256=3, t257=1, t258=32, t278=1, t339=3))

        assert caught.value.code is ErrorCode.INVALID_MEDIA

    def test_32_bits_are_read_as_what_they_hold(self) -> None:
        for numbers in ([0, 128, 255], [0, 32896, 65535]):
            raw = np.array(numbers, dtype="<u4").tobytes()
            assert values(tiff(raw, t256=3, t257=1, t258=32, t278=1)) == [0, 128, 255]
        image, found = opened(
            tiff(np.array([0, 10**6, 2 * 10**6], "<u4").tobytes(), t256=3, t257=1, t258=32, t278=1)
        )
        assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]
        assert len(found) == 1
        with pytest.raises(MediaError, match="2147483647"):
            open_image(tiff(np.array([0, 1, 2**31 + 5], "<u4").tobytes(), t256=3, t257=1, t258=32, t278=1))

    def test_values_below_zero_are_moved_up(self) -> None:
        for dtype, bits in (("<i2", 16), ("<i4", 32), ("i1", 8)):
            raw = np.array([-100, 0, 100], dtype).tobytes()
            image, found = opened(tiff(raw, t256=3, t257=1, t258=bits, t278=1, t339=2))
            dark, middle, light = np.asarray(image)[0, :, 0].tolist()
            assert middle == pytest.approx(128, abs=1)
            assert dark < middle < light
            assert [warning.code for warning in found] == [WarningCode.COLORS_CHANGED]


class TestColors:
    def test_16_bits_keep_their_upper_half(self) -> None:
        rows = b"\x00" + b"".join(value.to_bytes(2, "big") for value in (200 * 257, 100 * 257, 50 * 257))

        image, found = opened(png(1, 1, 16, 2, rows))

        assert (image.getpixel((0, 0)), found) == ((200, 100, 50), [])

    def test_cmyk_becomes_rgb(self) -> None:
        """Also as Adobe stores it, inverted, which is how Pillow writes it."""
        for kind in ("JPEG", "TIFF"):
            image, _ = opened(encoded(plain((16, 16), (0, 255, 255, 0), "CMYK"), kind))
            assert image.getpixel((8, 8)) == pytest.approx(RED, abs=3)

    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]
    )
    def test_every_mode_that_tiff_can_hold_becomes_rgb(self, mode: str) -> None:
        assert open_image(encoded(Pillow.new(mode, (4, 4)), "TIFF")).mode == "RGB"

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd", "lzma"])
    def test_compressed_tiffs_open(self, compression: str) -> None:
        image, _ = opened(encoded(plain((40, 30)), "TIFF", compression=compression))

        assert image.getpixel((20, 15)) == pytest.approx((200, 100, 50), abs=3)

    def test_a_fax_opens(self) -> None:
        page = plain((40, 30), 1, "1")
        page.putpixel((3, 4), 0)

        for compression in ("group3", "group4"):
            image, _ = opened(encoded(page, "TIFF", compression=compression))
            assert (image.getpixel((3, 4)), image.getpixel((4, 4))) == (BLACK, WHITE)

    def test_tiles_and_bigtiff_open(self) -> None:
        raw = bytes(range(256))

        tiles = tiff(raw, t256=16, t257=16, t273=None, t279=None, t322=16, t323=16, t324=8, t325=256)
        big = tiff(raw, is_big=True, t256=16, t257=16, t278=16)

        assert values(tiles) == values(big) == list(range(16))

    def test_run_lengths_of_a_bitmap_open(self) -> None:
        image, _ = opened(run_length_bmp(4, 2, b"\2\x64\2\xc8\0\0\4\x0a\0\1"))

        assert np.asarray(image)[:, :, 0].tolist() == [[10] * 4, [100, 100, 200, 200]]
