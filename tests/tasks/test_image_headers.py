"""Headers of images: what must not matter, what is refused by counting, and what a small file may cost."""

from __future__ import annotations

import base64
import json
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.images import check_image, check_image_file, open_image
from tests.fixtures.image_files import (
    as_text,
    box,
    chunk,
    encoded,
    gif_header,
    iso_image,
    jpeg_with_scans,
    noise,
    plain,
    png,
    riff,
    run_length_bmp,
    tiff,
)

MIB = 2**20
GREY_ROW = b"\0\x4d"
TRACK = (b"stbl", b"minf", b"mdia", b"trak", b"moov")
PAGE: dict[str, Any] = {"t256": 1, "t257": 1, "t278": 1}


def refusal(data: bytes, max_pixels: int | None = None) -> MediaError:
    """The error of the header check, which is the worker's as well."""
    limits = None if max_pixels is None else MediaLimits(max_image_pixels=max_pixels, max_audio_s=1)
    found = []
    for call in (lambda: check_image(as_text(data), limits), lambda: open_image(data, limits)):
        with pytest.raises(MediaError) as caught:
            call()
        found.append((caught.value.code, caught.value.message))
    assert found[0] == found[1]
    return MediaError(*found[0])


def nested(inner: bytes, *kinds: bytes) -> bytes:
    """A box in boxes, the innermost first."""
    for kind in kinds:
        inner = box(kind, inner)
    return inner


def meta(inner: bytes) -> bytes:
    return box(b"meta", bytes(4), inner)


class TestMetadata:
    """Texts, profiles and other parts that make no pixel are left out, also broken ones."""

    @pytest.mark.parametrize(
        "extra",
        [
            chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 * MIB))),
            chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3 * MIB))),
            chunk(b"tEXt", b"k\0" + bytes(3 * MIB)),
            chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000))) * 80,
            chunk(b"zTXt", b"k\0\0no zlib"),
            chunk(b"iTXt", b"\xff\xfe"),
            chunk(b"iCCP", b"name\0\0no zlib"),
            chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(3 * MIB))),
            chunk(b"eXIf", b"no EXIF"),
            chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(2 * MIB)),
            chunk(b"tEXt", b"k\0text")[:-4] + b"\0\0\0\0",
            chunk(b"pHYs", b"short"),
            chunk(b"acTL", b""),
            chunk(b"prVt", b"private") * 1000,
            chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(3 * MIB))),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 * MIB))),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"x" * 3 * MIB)),
        ],
        ids=lambda extra: f"{extra[4:8].decode()} {len(extra)}",
    )
    def test_chunks_of_a_png_do_not_matter(self, extra: bytes) -> None:
        for data in (png(1, 1, 8, 0, GREY_ROW, extra), png(1, 1, 8, 0, GREY_ROW, after=extra)):
            check_image(as_text(data))
            assert open_image(data).getpixel((0, 0)) == (77, 77, 77)

    def test_a_wrong_checksum_of_transparency_does_not_matter(self) -> None:
        broken = chunk(b"tRNS", b"\0\x4d")[:-4] + b"\0\0\0\0"

        assert open_image(png(1, 1, 8, 0, GREY_ROW, broken)).getpixel((0, 0)) == (255, 255, 255)

    def test_what_follows_the_end_does_not_matter(self) -> None:
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
            data = encoded(plain((8, 8)), kind)
            assert open_image(data + b"trailing bytes" * 1000).size == (8, 8), kind

    @pytest.mark.parametrize(
        "segment",
        [
            b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + bytes(65519),
            b"\xff\xe1\0\x0eExif\0\0junk12",
            b"\xff\xe1\xff\xffhttp://ns.adobe.com/xmp/extension/\0" + bytes(65498),
            b"\xff\xed\0\x18Photoshop 3.0\0" + b"8BIM\x04\x04\0\0",
            b"\xff\xfe\0\x06text",
            b"\xff\xe2\0\x08MPF\0ab",
            b"garbage",
            b"\xff\xff\xff",
        ],
        ids=["ICC", "EXIF", "XMP", "Photoshop", "comment", "MPF", "garbage", "fill"],
    )
    def test_segments_of_a_jpeg_do_not_matter(self, segment: bytes) -> None:
        plain_file = encoded(plain((16, 16)), "JPEG")
        data = plain_file[:20] + segment * 100 + plain_file[20:]

        check_image(as_text(data))
        assert open_image(data).tobytes() == open_image(plain_file).tobytes()

    def test_a_large_profile_and_xmp_do_not_matter(self) -> None:
        for kind in ("WEBP", "AVIF", "HEIF", "TIFF"):
            data = encoded(plain((32, 32)), kind, xmp=b" " * 3 * MIB, icc_profile=bytes(MIB))
            check_image(as_text(data))
            assert open_image(data).getpixel((5, 5)) == pytest.approx((200, 100, 50), abs=4), kind

    def test_odd_tags_of_a_tiff_do_not_matter(self) -> None:
        odd: dict[str, Any] = {"t270": b"\xff" * 200, "t34665": ("I", [3]), "t40000": b"x" * 70_000}
        odd |= {"t33432": ("I", [1, 2]), "t34377": b"8BIM", "t700": b"<x", "t34675": b"no profile"}

        forms: list[dict[str, Any]] = [{}, {"is_big": True}, {"big_endian": True}]
        for form in forms:
            assert open_image(tiff(b"\x4d", **form, **PAGE, **odd)).getpixel((0, 0)) == (77, 77, 77)

    def test_a_few_missing_bytes_are_told(self) -> None:
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF"):
            data = encoded(noise(), kind)
            with pytest.raises(MediaError, match="truncated") as caught:
                open_image(data[: len(data) - len(data) // 10])
            assert caught.value.code is ErrorCode.INVALID_MEDIA, kind


class TestCounts:
    """Parts that cost a decoder much more than their bytes are counted before it sees the file."""

    @pytest.mark.parametrize("form", [{}, {"is_big": True}, {"big_endian": True}], ids=str)
    def test_strips_and_tiles(self, form: dict[str, Any]) -> None:
        many = ("I", [8] * 100_001)

        strips = refusal(tiff(b"a", t273=many, t279=many, **PAGE, **form))
        tiles = refusal(
            tiff(b"a", **PAGE, **form, t273=None, t279=None, t322=16, t323=16, t324=many, t325=many)
        )

        assert strips.message == "The TIFF image has 100001 strips; at most 100000 are accepted."
        assert tiles.message == "The TIFF image has 100001 tiles; at most 100000 are accepted."
        assert strips.code is tiles.code is ErrorCode.MEDIA_TOO_LARGE

    @pytest.mark.parametrize(
        ("tags", "said"),
        [
            ({"t256": ("I", [1]), "t257": ("I", [200_000]), "t278": 1}, "strips"),
            ({"t256": 10_000, "t257": 10_000, "t322": 1, "t323": 1, "t324": 8, "t325": 1}, "tiles"),
            ({"t256": 9, "t257": 9, "t322": 60_000, "t323": 60_000, "t324": 8, "t325": 1}, "tiles of 60000"),
            ({**PAGE, "t258": [8] * 2000}, "values of tag 258"),
            ({**PAGE, "t338": [0] * 2000}, "values of tag 338"),
        ],
    )
    def test_what_a_tiff_would_need(self, tags: dict[str, Any], said: str) -> None:
        strips: dict[str, Any] = {"t273": None, "t279": None} if "t324" in tags else {}

        assert said in refusal(tiff(b"a", **strips, **tags)).message

    def test_tags(self) -> None:
        tags: dict[str, Any] = {f"t{number}": 1 for number in range(1000, 5100)}

        assert "tags" in refusal(tiff(b"a", **PAGE, **tags)).message

    @pytest.mark.parametrize("tags", [{"t50706": b"\1\4\0\0"}, {"t254": ("I", [1]), "t330": ("I", [8])}])
    def test_a_preview_of_a_raw_photo_is_not_taken_for_it(self, tags: dict[str, Any]) -> None:
        error = refusal(tiff(b"a", **PAGE, **tags))

        assert (error.code, "RAW photo" in error.message) == (ErrorCode.INVALID_MEDIA, True)

    def test_scans(self) -> None:
        open_image(jpeg_with_scans((32, 32), 100))
        error = refusal(jpeg_with_scans((32, 32), 101))

        assert error.code is ErrorCode.MEDIA_TOO_LARGE
        assert "more than 100 scans" in error.message

    def test_scans_of_large_images(self) -> None:
        """The time is that of all scans together, so a large image may have fewer."""
        error = refusal(jpeg_with_scans((64, 64), 31), max_pixels=64 * 64)

        assert "more than 30 scans" in error.message

    def test_scans_of_a_baseline_image_that_has_one_for_each_color(self) -> None:
        """It needs all scans as well, so the decoder reads as many as there are."""
        data = encoded(plain((32, 32)), "JPEG")
        start = data.index(b"\xff\xda")
        scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0" + b"\x00" * 8

        assert "scans" in refusal(data[:start] + scan * 200 + b"\xff\xd9").message

    def test_what_looks_like_a_scan_in_a_segment_is_none(self) -> None:
        data = encoded(plain((32, 32)), "JPEG", progressive=True)
        end = data.rindex(b"\xff\xda")
        comment = b"\xff\xfe" + struct.pack(">H", 2 + 600) + b"\xff\xda" * 300

        assert open_image(data[:end] + comment + data[end:]).size == (32, 32)

    @pytest.mark.parametrize(("marker", "said"), [(0xC3, "lossless"), (0xC5, "hierarchical")])
    def test_unusual_jpegs_are_named(self, marker: int, said: str) -> None:
        data = encoded(plain((16, 16)), "JPEG").replace(b"\xff\xc0", bytes([0xFF, marker]))

        assert said in refusal(data).message

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"\xff\xd8" + b"\xff\xe1\0\2" * 100_001, "segments"),
            (b"\xff\xd8" + b"\xff\xdb\0\x43\0" + bytes(64) + b"\xff\xdb\xff\xff" + bytes(65533), "tables"),
            (png(1, 1, 8, 0, GREY_ROW, after=chunk(b"tEXt", b"") * 100_001), "chunks"),
            (gif_header(1, 1, 0)[:19] + b"\x21\xfe" + b"\1a" * 100_001 + b"\0", "blocks"),
            (riff(b"VP8X\x0a\0\0\0" + bytes(10) + b"ABCD\0\0\0\0" * 100_001), "chunks"),
        ],
        ids=["JPEG", "JPEG tables", "PNG", "GIF", "WebP"],
    )
    def test_other_parts(self, data: bytes, said: str) -> None:
        assert said in refusal(data).message

    @pytest.mark.parametrize(("size", "runs"), [((8000, 8000), b"\0\1"), ((10, 10), b"\0\2\0\0" * 1_100_000)])
    def test_run_lengths_of_a_bitmap(self, size: tuple[int, int], runs: bytes) -> None:
        assert "run lengths" in refusal(run_length_bmp(*size, runs)).message


class TestBoxes:
    """AVIF and HEIC without a decoder."""

    @pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
    @pytest.mark.parametrize("size", [(64, 64), (1000, 704), (2000, 64)])
    def test_the_size_of_a_real_file_is_found(self, kind: str, size: tuple[int, int]) -> None:
        data = encoded(plain(size), kind)

        check_image(as_text(data), MediaLimits(size[0] * size[1], 1))
        with pytest.raises(MediaError, match=f"{size[0]} × {size[1]} pixels"):
            check_image(as_text(data), MediaLimits(size[0] * size[1] - 1, 1))

    def test_a_grid_has_the_size_of_the_whole(self) -> None:
        items = {1: b"grid"} | dict.fromkeys(range(2, 14), b"hvc1")
        sizes = {1: (2000, 1500)} | dict.fromkeys(range(2, 14), (512, 512))
        data = iso_image(items, sizes, brand=b"heic", parts={1: list(range(2, 14))})

        check_image(as_text(data), MediaLimits(3_000_000, 1))
        with pytest.raises(MediaError, match="2000 × 1500"):
            check_image(as_text(data), MediaLimits(2_999_999, 1))

    @pytest.mark.parametrize(
        ("items", "sizes", "parts", "said"),
        [
            # A grid of thousands of tiles, as one list and as grids of grids.
            ({1: b"grid", 2: b"av01"}, {1: (9, 9), 2: (9, 9)}, {1: [2] * 1025}, "1024 tiles"),
            (
                {1: b"grid", 2: b"grid", 3: b"av01"},
                {1: (9, 9), 2: (9, 9), 3: (9, 9)},
                {1: [2] * 100, 2: [3] * 100},
                "1024 tiles",
            ),
            # One large picture, many times.
            ({1: b"iovl", 2: b"av01"}, {1: (9, 9), 2: (900, 900)}, {1: [2] * 4}, "more than 2000000 pixels"),
            # A circle.
            ({1: b"iden", 2: b"iden"}, {1: (9, 9), 2: (9, 9)}, {1: [2], 2: [1]}, "1024 tiles"),
            ({1: b"av01", 2: b"av01"}, {1: (9, 9), 2: (1001, 1000)}, {}, "1001 × 1000"),
            ({1: b"av01"}, {1: (0, 9)}, {}, "no pixels"),
            ({1: b"av01"}, {}, {}, "damaged"),
            ({1: b"grid"}, {1: (9, 9)}, {1: [7]}, "damaged"),
        ],
    )
    def test_what_would_cost_too_much_is_refused(
        self,
        items: dict[int, bytes],
        sizes: dict[int, tuple[int, int]],
        parts: dict[int, list[int]],
        said: str,
    ) -> None:
        assert said in refusal(iso_image(items, sizes, parts=parts), 1_000_000).message

    @pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
    def test_a_size_that_the_boxes_hide_is_found(self, kind: str) -> None:
        """The boxes say 64 × 64, and what is coded is larger."""
        data = bytearray(encoded(plain((640, 640)), kind))
        place = -1
        while (place := data.find(b"ispe", place + 1)) >= 0:
            data[place + 8 : place + 16] = struct.pack(">II", 64, 64)

        assert "is coded with 640 × 640" in refusal(bytes(data), 100_000).message

    @pytest.mark.parametrize(
        ("brand", "kind", "unit"),
        [(b"avif", b"av01", b"\x32\1\0"), (b"heic", b"hvc1", b"\0\0\0\3\x02\1\xff")],
    )
    def test_a_picture_that_is_a_film_is_refused(self, brand: bytes, kind: bytes, unit: bytes) -> None:
        def film(frames: int) -> bytes:
            payload = unit * frames
            return iso_image(
                {1: kind}, {1: (64, 64)}, brand=brand, places={1: (0, len(payload))}, payload=payload
            )

        check_image(as_text(film(8)))
        assert "more than 8 pictures" in refusal(film(9)).message

    @pytest.mark.parametrize(
        ("boxes", "said"),
        [
            (box(b"free") * 10_001, "boxes"),
            (meta(box(b"iloc", struct.pack(">IHH", 0, 0x4400, 65535))), "items"),
            (meta(box(b"iloc", struct.pack(">IHHHHH", 0, 0x4400, 1, 1, 0, 65535))), "extents"),
            (nested(box(b"stsz", bytes(8), b"\xff" * 4), *TRACK), "frames"),
            (box(b"moov", box(b"trak") * 17), "tracks"),
            (nested(b"", *[b"mdia"] * 3000, b"trak", b"moov"), "damaged"),
            (b"\xff\xff\xff\xffmeta", "damaged"),
            (struct.pack(">I4sQ", 1, b"meta", 2**63), "damaged"),
            (struct.pack(">I4s", 3, b"meta"), "damaged"),
            (b"", "damaged"),
        ],
    )
    def test_counts_of_boxes(self, boxes: bytes, said: str) -> None:
        assert said in refusal(box(b"ftyp", b"avif", bytes(4), b"mif1") + boxes).message

    def test_a_worker_without_the_library_for_heic_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        data = encoded_heic()

        check_image(as_text(data))
        with pytest.raises(MediaError, match=r"pip install 'modelmill\[heic\]'") as caught:
            open_image(data)

        assert caught.value.code is ErrorCode.INVALID_MEDIA


def encoded_heic() -> bytes:
    """A file that needs no encoder here, which the test above takes away."""
    return iso_image({1: b"hvc1"}, {1: (64, 64)}, brand=b"heic")


def test_a_large_upload_is_read_where_it_lies() -> None:
    data = encoded(plain((64, 48)), "BMP") + bytes(3 * MIB)
    with tempfile.SpooledTemporaryFile(MIB) as file:
        file.write(data)

        check_image_file(file)  # type: ignore[arg-type]
        with pytest.raises(MediaError, match="64 × 48"):
            check_image_file(file, MediaLimits(100, 1))  # type: ignore[arg-type]


TEXT_OF_A_MIB = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(MIB)))
MANY_TAGS: dict[str, Any] = {f"t{number}": b"x" * 4000 for number in range(40_000, 43_000)}

BOMBS: dict[str, Callable[[], bytes]] = {
    "TIFF strips": lambda: tiff(b"a", **PAGE, t273=("I", [8] * 500_000)),
    "JPEG scans": lambda: jpeg_with_scans((1000, 1000), 3000),
    "JPEG fill": lambda: b"\xff\xd8" + b"\xff" * 8_000_000,
    "JPEG EXIF": lambda: (
        b"\xff\xd8" + (b"\xff\xe1\1\2Exif\0\0" + bytes(250)) * 30_000 + encoded(plain(), "JPEG")[2:]
    ),
    "JPEG comments among scans": lambda: (
        encoded(plain(), "JPEG", progressive=True)[:-2] + b"\xff\xfe\0\2" * 2_000_000 + b"\xff\xd9"
    ),
    "PNG texts": lambda: png(1, 1, 8, 0, GREY_ROW, TEXT_OF_A_MIB * 2000),
    "PNG pixels": lambda: png(1, 1, 8, 0, bytes(50_000_000)),
    "GIF blocks": lambda: gif_header(1, 1, 0)[:-5] + b"\x02" + b"\1\x04" * 4_000_000 + b"\0;",
    "WebP EXIF": lambda: riff(
        encoded(plain(), "WEBP")[12:] + b"EXIF" + struct.pack("<I", 8_000_000) + overlapping_tags(8_000_000)
    ),
    "PNG EXIF": lambda: png(1, 1, 8, 0, GREY_ROW, chunk(b"eXIf", overlapping_tags(8_000_000))),
    "TIFF tags": lambda: tiff(b"a", **PAGE, **MANY_TAGS),
    "TIFF pages": lambda: tiff(b"a", pages=10_000, **PAGE),
    "AVIF hidden size": lambda: encoded(plain((4000, 4000)), "AVIF", speed=10).replace(
        struct.pack(">II", 4000, 4000), struct.pack(">II", 64, 64)
    ),
}
"""Files of a few megabytes at most that once took seconds, or gigabytes, to look at or to decode."""

READ_ALL = """
import base64, json, sys
from modelmill.errors import MediaError
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.images import check_image, open_image
for line in sys.stdin:
    name, data = json.loads(line)
    for call in (lambda: check_image(data, LIMITS), lambda: open_image(data, LIMITS)):
        try:
            call()
        except MediaError as error:
            assert error.code != "internal"
    print(name, flush=True)
""".replace("LIMITS", "MediaLimits(10_000_000, 1)")


def overlapping_tags(length: int) -> bytes:
    """A directory whose entries all claim the same bytes."""
    entry = struct.pack("<HHII", 40_000, 7, length - 16, 8)
    return (b"II*\0\x08\0\0\0\xff\xff" + entry * 65_535).ljust(length, b"\0")[:length]


def test_small_files_cost_little() -> None:
    """All of them together take less than ten seconds of one processor, and less than a gigabyte."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        resource.setrlimit(resource.RLIMIT_AS, (1024 * MIB, 1024 * MIB))

    lines = [json.dumps([name, base64.b64encode(make()).decode()]) for name, make in BOMBS.items()]
    result = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == list(BOMBS)
