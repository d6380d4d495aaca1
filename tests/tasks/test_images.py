"""Images in requests: which are accepted, how they are decoded, and what refusing them costs."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL.Image import Image

from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.images import check_image, open_image
from modelmill_tasks.shared.sources import source_bytes
from tests.fixtures.image_files import (
    FORMATS,
    LOSSLESS,
    as_text,
    bmp_header,
    chunk,
    encoded,
    gif_header,
    noise,
    plain,
    png,
    webp_header,
)
from tests.support.exhaustive import exhaustive

ORIENTATION = 0x0112
XMP_ORIENTATION = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
SHOWN = {"WEBP": "WebP", "HEIF": "HEIC"}
CORNERS = {(0, 0): "red", (2, 0): "lime", (0, 1): "blue", (2, 1): "white"}


def refusal(source: str | bytes) -> MediaError:
    with pytest.raises(MediaError) as caught:
        open_image(source)
    return caught.value


class TestFormats:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_each_format_opens(self, kind: str) -> None:
        data = encoded(plain((40, 30)), kind)

        image = open_image(as_text(data))

        assert (image.mode, image.size) == ("RGB", (40, 30))
        assert image.getpixel((20, 15)) == pytest.approx((200, 100, 50), abs=3)

    def test_the_bytes_count_and_not_the_declared_type(self) -> None:
        data = encoded(plain(), "WEBP", lossless=True)

        assert open_image(f"data:image/jpeg;base64,{as_text(data)}").getpixel((0, 0)) == (200, 100, 50)

    def test_bytes_open_as_text_does(self) -> None:
        assert open_image(source_bytes(CAT)).tobytes() == open_image(CAT).tobytes()

    def test_an_image_is_only_converted(self) -> None:
        image = plain((3, 2), 77, "L")

        assert open_image(image).getpixel((0, 0)) == (77, 77, 77)

    @pytest.mark.parametrize(
        "data",
        [
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            b"<?xml version='1.0'?><svg/>",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            b"P6 1 1 255\nabc",
            b"hello, I am text",
            b"\x00",
            b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
            *(encoded(plain((16, 16)), name) for name in ("PDF", "ICO", "EPS", "PPM", "TGA", "PCX", "ICNS")),
        ],
        ids=lambda data: repr(data[:12]),
    )
    def test_other_formats_are_refused_though_pillow_could(self, data: bytes) -> None:
        error = refusal(data)

        assert error.code is ErrorCode.INVALID_MEDIA
        assert "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC" in error.message

    def test_of_an_animation_the_first_frame_counts(self) -> None:
        frames = [plain((8, 8), color) for color in ("red", "lime", "blue")]

        for kind, options in {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}.items():
            data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
            assert open_image(data).getpixel((4, 4)) == (255, 0, 0), kind

    def test_of_10_000_frames_the_first_is_read_and_no_other(self) -> None:
        start = encoded(plain((8, 8), "red"), "GIF").removesuffix(b";")
        frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0)
        # If a second frame were decoded, its data would be reported as damaged.
        data = start + (frame + b"\x08\x04" + b"\xff" * 4 + b"\x00") * 10_000 + b";"

        assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


class TestOrientation:
    def upright(self, orientation: int) -> tuple[Image, Image]:
        """An image, and the same image as a camera that is held in that way stores it."""
        image = plain((3, 2), "black")
        for place, color in CORNERS.items():
            image.putpixel(place, Pillow.new("RGB", (1, 1), color).getpixel((0, 0)))  # type: ignore[arg-type]
        # What undoes the camera's turn is its inverse; turns by a quarter are each other's.
        turns = [None, Pillow.Transpose.FLIP_LEFT_RIGHT, Pillow.Transpose.ROTATE_180]
        turns += [Pillow.Transpose.FLIP_TOP_BOTTOM, Pillow.Transpose.TRANSPOSE, Pillow.Transpose.ROTATE_90]
        turns += [Pillow.Transpose.TRANSVERSE, Pillow.Transpose.ROTATE_270]
        turn = turns[orientation - 1]
        return image, image if turn is None else image.transpose(turn)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_each_of_the_eight_is_applied_once(self, orientation: int, kind: str) -> None:
        image, stored = self.upright(orientation)
        exif = Pillow.Exif()
        exif[ORIENTATION] = orientation
        opened = open_image(encoded(stored, kind, exif=exif, **LOSSLESS.get(kind, {})))

        assert opened.size == (3, 2)
        assert opened.tobytes() == image.tobytes()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_photograph_is_turned_too(self, orientation: int) -> None:
        _, stored = self.upright(orientation)
        stored = stored.resize((stored.width * 16, stored.height * 16), Pillow.Resampling.NEAREST)
        exif = Pillow.Exif()
        exif[ORIENTATION] = orientation

        opened = open_image(encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0))

        assert opened.size == (48, 32)
        for (x, y), color in CORNERS.items():
            expected = Pillow.new("RGB", (1, 1), color).getpixel((0, 0))
            assert opened.getpixel((x * 16 + 8, y * 16 + 8)) == pytest.approx(expected, abs=16)

    @pytest.mark.parametrize("kind", ["WEBP", "JPEG"])
    def test_an_orientation_in_xmp_counts(self, kind: str) -> None:
        assert open_image(encoded(plain((3, 2)), kind, xmp=XMP_ORIENTATION)).size == (2, 3)

    def test_an_orientation_in_the_texts_of_a_png_counts(self) -> None:
        exif = Pillow.Exif()
        exif[ORIENTATION] = 6
        raw = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode() + b"\n"
        packed = b"Raw profile type exif\0\0" + zlib.compress(raw)
        xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_ORIENTATION

        for text in (chunk(b"zTXt", packed), chunk(b"iTXt", xmp)):
            assert open_image(png(3, 2, 8, 0, bytes(8), text)).size == (2, 3)

    @pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
    @pytest.mark.parametrize("orientation", [1, 3, 6, exhaustive(2), exhaustive(5), exhaustive(8)])
    def test_boxes_that_turn_count_once(self, orientation: int, kind: str) -> None:
        """Writers turn the EXIF orientation into boxes, and leave it in the EXIF data as well."""
        _, stored = self.upright(orientation)
        stored = stored.resize((stored.width * 32, stored.height * 32), Pillow.Resampling.NEAREST)
        exif = Pillow.Exif()
        exif[ORIENTATION] = orientation
        exif[0x010F] = "maker"

        opened = open_image(encoded(stored, kind, exif=exif.tobytes(), quality=90))

        assert opened.size == (96, 64)
        for (x, y), color in CORNERS.items():
            expected = Pillow.new("RGB", (1, 1), color).getpixel((0, 0))
            assert opened.getpixel((x * 32 + 16, y * 32 + 16)) == pytest.approx(expected, abs=24)

    @pytest.mark.parametrize("value", [0, 9, 255, 65535])
    def test_an_orientation_that_is_none_is_left_alone(self, value: int) -> None:
        exif = Pillow.Exif()
        exif[ORIENTATION] = value

        assert open_image(encoded(plain((3, 2)), "PNG", exif=exif)).size == (3, 2)

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\x00\x00not a TIFF header",
            b"Exif\x00\x00MM\x00\x00\x00\x00\x00\x08",
            b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff",
            b"Exif\x00\x00",
            # An entry whose type does not fit its value, and a valid orientation.
            b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x07\x00\x00\x00\x01\x06\x00\x00\x00\x00",
        ],
        ids=["no TIFF", "wrong TIFF", "cut", "empty", "wrong type"],
    )
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_broken_exif_does_not_spoil_a_sound_image(self, kind: str, exif: bytes) -> None:
        image = open_image(encoded(plain((32, 16)), kind, exif=exif))

        assert image.size == (32, 16)
        assert image.getpixel((16, 8)) == pytest.approx((200, 100, 50), abs=3)

    def test_exif_that_cannot_be_written_back_still_turns_the_image(self) -> None:
        # XResolution as the text "x": Pillow reads it, and fails to encode it as a rational.
        entries = struct.pack(">HHII", ORIENTATION, 3, 1, 6 << 16) + struct.pack(">HHI4s", 0x011A, 2, 2, b"x")
        exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + struct.pack(">H", 2) + entries + bytes(4)

        assert open_image(encoded(plain((32, 16)), "JPEG", exif=exif)).size == (16, 32)


class TestDamage:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_truncated_image_is_told_as_such(self, kind: str) -> None:
        data = encoded(noise(), kind)

        error = refusal(data[: len(data) // 2])

        assert error.code is ErrorCode.INVALID_MEDIA
        assert "truncated" in error.message

    @pytest.mark.parametrize("kind", FORMATS)
    def test_a_truncated_header_is_told_as_such(self, kind: str) -> None:
        error = refusal(encoded(noise(), kind)[:20])

        assert error.code is ErrorCode.INVALID_MEDIA
        assert "truncated" in error.message
        assert SHOWN.get(kind, kind) in error.message

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_the_header_of_a_truncated_image_passes(self, kind: str) -> None:
        """Missing pixels are found only when the worker decodes the image."""
        data = encoded(noise(), kind)

        check_image(as_text(data[: len(data) // 2]))

    def test_a_damaged_image_says_so(self) -> None:
        data = bytearray(encoded(noise(), "PNG"))
        data[len(data) // 2] ^= 0xFF

        assert "damaged" in refusal(bytes(data)).message


class TestSize:
    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(png(40_000, 40_000, 8, 2, b""), id="PNG"),
            pytest.param(gif_header(40_000, 40_000, 0), id="GIF"),
            pytest.param(bmp_header(40_000, 40_000), id="BMP"),
            pytest.param(bmp_header(40_000, -40_000), id="BMP top down"),
        ],
    )
    def test_too_many_pixels_are_refused_by_the_header_alone(self, data: bytes) -> None:
        check_image(CAT)  # This loads Pillow.
        tracemalloc.start()
        try:
            with pytest.raises(MediaError, match="40000 × 40000 pixels; at most 100000000") as caught:
                check_image(as_text(data))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

        assert caught.value.code is ErrorCode.MEDIA_TOO_LARGE
        assert peak < 1_000_000
        assert refusal(data).code is ErrorCode.MEDIA_TOO_LARGE

    @pytest.mark.parametrize(
        "data",
        [
            # Pillow fills the area of such a frame while it opens the file: 4 GiB for 60 bytes.
            pytest.param(gif_header(65_535, 65_535, 2), id="GIF with a frame to dispose of"),
            pytest.param(webp_header(16_383, 16_383), id="WebP with a canvas"),
        ],
    )
    def test_too_many_pixels_are_refused_before_memory_is_taken(self, data: bytes) -> None:
        check_image(CAT)
        before = resident_bytes()

        assert refusal(data).code is ErrorCode.MEDIA_TOO_LARGE
        assert resident_bytes() - before < 50_000_000

    def test_what_is_just_small_enough_is_taken(self) -> None:
        check_image(as_text(gif_header(10_000, 10_000, 0)))
        with pytest.raises(MediaError, match="10001 × 10000"):
            check_image(as_text(gif_header(10_001, 10_000, 0)))

    @pytest.mark.parametrize(
        "data", [png(0, 5, 8, 2, b""), gif_header(0, 5, 0), bmp_header(0, 5)], ids=["PNG", "GIF", "BMP"]
    )
    def test_an_image_without_pixels_is_none(self, data: bytes) -> None:
        assert refusal(data).code is ErrorCode.INVALID_MEDIA


def resident_bytes() -> int:
    """The peak memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_header_of_millions_of_parts_is_given_up_soon() -> None:
    started = time.process_time()
    never_anything_but_a_media_error(b"\xff\xd8" + b"\xff\xe1\x00\x02" * 2_000_000)

    assert time.process_time() - started < 5


def with_exif(kind: str) -> bytes:
    exif = Pillow.Exif()
    exif[ORIENTATION] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif.tobytes()}
    return encoded(noise((9, 7)), kind, **options)


HEADERS = {name: with_exif(name) for name in FORMATS}


def never_anything_but_a_media_error(data: bytes) -> None:
    for call in (lambda: check_image(as_text(data)), lambda: open_image(data)):
        try:
            call()
        except MediaError as error:
            assert error.code in {ErrorCode.INVALID_MEDIA, ErrorCode.MEDIA_TOO_LARGE}  # noqa: PT017


@pytest.mark.filterwarnings("ignore:::PIL")
class TestAnyBytes:
    @settings(max_examples=150, deadline=None)
    @given(st.sampled_from(sorted(HEADERS)), st.integers(0, 32), st.binary(max_size=200))
    @example("PNG", 0, b"")
    def test_random_bytes_are_refused_with_our_error(self, kind: str, kept: int, data: bytes) -> None:
        never_anything_but_a_media_error(HEADERS[kind][:kept] + data)

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from(sorted(HEADERS)),
        st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), min_size=1, max_size=8),
    )
    def test_changed_bytes_open_or_are_refused_with_our_error(
        self, kind: str, changes: list[tuple[int, int]]
    ) -> None:
        data = bytearray(HEADERS[kind])
        for place, value in changes:
            data[place % len(data)] = value

        never_anything_but_a_media_error(bytes(data))

    @settings(max_examples=200, deadline=None)
    @given(st.text(max_size=50) | st.text("abcdefAB+/=:;,\n data", max_size=50))
    def test_any_text_is_bytes_or_refused(self, value: str) -> None:
        with suppress(MediaError):
            assert source_bytes(value)


class TestInTheContract:
    task = find_task("zero-shot-image-classification")

    def body(self, image: object) -> str:
        return json.dumps({"image": image, "classes": ["cat"]})

    def test_an_image_is_checked_when_a_job_is_submitted(self) -> None:
        for image in ("", "bm9wZQ==", as_text(png(40_000, 40_000, 8, 2, b"")), "https://example.com"):
            with pytest.raises(ModelmillError) as caught:
                self.task.parse(self.body(image))
            assert [field.field for field in caught.value.fields] == ["image"]
            assert caught.value.message == "image: " + refusal(image).message
            assert caught.value.code is refusal(image).code

    def test_what_was_accepted_before_is_not_looked_at_again(self) -> None:
        request = self.task.parse(self.body("not an image"), trusted=True)

        assert request.model_dump()["image"] == "not an image"

    def test_even_then_it_must_be_text(self) -> None:
        with pytest.raises(ModelmillError, match="image: "):
            self.task.parse(self.body(7), trusted=True)
