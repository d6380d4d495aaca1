"""Optical character recognition by RapidOCR's networks: real weights on drawn text and on photos."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from modelmill_backends.rapidocr.networks import PASS_WIDTH, _chunks, _padded_width
from modelmill_backends.rapidocr.reading import Piece, in_reading_order, text_of
from modelmill_tasks.registry import find_task
from tests.fixtures.photos import data_url, photo
from tests.fixtures.specimens.ocr import rapidocr
from tests.support.exhaustive import exhaustive

TASK = "optical-character-recognition"
LINES = [
    "Valley Mill Bakery",
    "Rye bread, 750 g: 4.20",
    "Open from 7 to 18 o'clock",
    "Closed on Sundays and holidays",
]


@pytest.fixture(scope="module")
def model(context_of: Callable[..., LoadContext]) -> Iterator[LoadedModel]:
    # With real networks on ONNX Runtime, two threads help.
    with LoadedModel(context_of("rapidocr", Device("cpu", 2))).load() as loaded:
        yield loaded


def page(
    lines: list[str], size: int = 24, places: list[tuple[int, int]] | None = None, width: int = 480
) -> tuple[Any, list[tuple[float, float, float, float]]]:
    """Black text on white, and the box of each line's ink: left, top, right, bottom."""
    places = places or [(20, 20 + index * 2 * size) for index in range(len(lines))]
    image = Image.new("RGB", (width, max(top for _, top in places) + 3 * size), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for line, place in zip(lines, places, strict=True):
        draw.text(place, line, font=font, fill="black")
    return image, [draw.textbbox(place, line, font=font) for line, place in zip(lines, places, strict=True)]


def accented_font() -> Any:
    """A common font of the system, because Pillow's own font has no accents."""
    for name in ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"):
        try:
            return ImageFont.truetype(name, 36)
        except OSError:
            continue
    pytest.skip("no font with accents is installed")


def read(model: LoadedModel, *images: Any, **config: Any) -> list[dict[str, Any]]:
    items = [{"image": data_url(image, "PNG"), "config": config} for image in images]
    return [output.model_dump() for output in model.answer(TASK, *items)]


def overlap(box: dict[str, float], ink: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    right, bottom = box["left"] + box["width"], box["top"] + box["height"]
    across = min(right, ink[2]) - max(box["left"], ink[0])
    down = min(bottom, ink[3]) - max(box["top"], ink[1])
    common = max(0.0, across) * max(0.0, down)
    return common / (box["width"] * box["height"] + (ink[2] - ink[0]) * (ink[3] - ink[1]) - common)


def test_a_page_is_read_line_by_line(model: LoadedModel) -> None:
    image, inks = page(LINES)

    (found,) = read(model, image)

    assert found["text"] == "\n".join(LINES)
    assert [piece["text"] for piece in found["objects"]] == LINES
    for piece, ink in zip(found["objects"], inks, strict=True):
        assert overlap(piece["box"], ink) > 0.5
        assert piece["score"] > 0.95


def test_pieces_of_one_line_are_read_from_left_to_right(model: LoadedModel) -> None:
    image, inks = page(
        ["Total", "27.50", "Date", "3 May 1998"], places=[(20, 20), (340, 24), (20, 100), (300, 96)]
    )

    (found,) = read(model, image)

    assert found["text"] == "Total 27.50\nDate 3 May 1998"
    for piece, ink in zip(found["objects"], inks, strict=True):
        assert overlap(piece["box"], ink) > 0.5


def test_a_page_of_two_columns_is_read_column_by_column(model: LoadedModel) -> None:
    left = [
        "The old mill stood still",
        "for forty years, until one",
        "spring its wheel was",
        "mended and turned again.",
    ]
    right = [
        "By autumn the first sack",
        "of flour was sold to a",
        "baker in Ravensburg for",
        "eleven marks and a pie.",
    ]
    places = [(20, 100 + 40 * row) for row in range(4)] + [(380, 112 + 40 * row) for row in range(4)]
    image, _ = page(
        ["The mill in the valley and its second life", *left, *right], 24, [(80, 20), *places], 720
    )

    (found,) = read(model, image)

    assert found["text"].splitlines() == ["The mill in the valley and its second life", *left, *right]


def test_boxes_are_in_pixels_of_an_image_that_is_read_smaller(model: LoadedModel) -> None:
    image, inks = page(LINES[:2], size=160, width=3000)

    (found,) = read(model, image)

    assert found["text"] == "\n".join(LINES[:2])
    assert image.width > 2000
    for piece, ink in zip(found["objects"], inks, strict=True):
        # Letters of this size are found in a smaller picture, which makes their boxes higher.
        assert overlap(piece["box"], ink) > 0.4


@pytest.mark.parametrize("tall", [exhaustive(False, id="a strip"), pytest.param(True, id="a tall strip")])
def test_a_narrow_strip_is_read_with_its_padding_taken_off(model: LoadedModel, tall: bool) -> None:
    image, (ink,) = page([LINES[2]], width=900)
    image = image.crop((0, 0, 900, 60))
    if tall:
        image, ink = image.rotate(90, expand=True), (ink[1], 900 - ink[2], ink[3], 900 - ink[0])

    (found,) = read(model, image)

    assert found["text"] == LINES[2]
    # Boxes are a little larger than the ink.
    assert overlap(found["objects"][0]["box"], ink) > 0.4


def test_text_upside_down_is_read(model: LoadedModel) -> None:
    image, _ = page(["Open from 7 to 18 o'clock"])

    (found,) = read(model, image.rotate(180))

    assert found["text"] == "Open from 7 to 18 o'clock"


def test_the_camera_held_sideways_is_seen_in_the_file(model: LoadedModel) -> None:
    image, inks = page(LINES)
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = image.transpose(Image.Transpose.ROTATE_90)

    (output,) = model.answer(TASK, {"image": data_url(sideways, "PNG", exif=exif)})

    found = output.model_dump()
    assert found["text"] == "\n".join(LINES)
    assert overlap(found["objects"][0]["box"], inks[0]) > 0.5


def test_a_photographed_page_is_read(model: LoadedModel) -> None:
    # scikit-image's photo of a printed page. The fifth of its seven lines is too blurred for this model.
    (found,) = read(model, photo("page"))

    lines = found["text"].splitlines()
    assert lines[:4] == [
        "Region-based segmentation",
        "Let us first determine markers of the coins and the",
        "background. These markers are pixels that we can label",
        "unambiguously as either object or background. Here,",
    ]
    assert lines[5] == "histogram of grey values:"
    assert "np.zeros" in lines[6]


def test_text_on_a_photo_is_read_askew_and_in_noise(model: LoadedModel) -> None:
    sign, _ = page(["PLATFORM 12", "Ravensburg 17:42"], size=40)
    noise = np.random.default_rng(0).normal(0, 12, (sign.height, sign.width, 3))
    sign = Image.fromarray(np.clip(np.asarray(sign) * 0.8 + noise, 0, 255).astype(np.uint8))
    street = photo("china.jpg")
    turned = sign.convert("RGBA").rotate(7, expand=True, resample=Image.Resampling.BICUBIC)
    street.paste(turned, (80, 120), turned)

    (found,) = read(model, street)

    assert found["text"] == "PLATFORM 12\nRavensburg 17:42"
    assert found["objects"][0]["box"]["top"] > 120


@pytest.mark.parametrize("name", ["rocket", exhaustive("flower.jpg"), exhaustive("astronaut")])
def test_a_photo_without_text_has_none(model: LoadedModel, name: str) -> None:
    assert read(model, photo(name)) == [{"text": "", "objects": []}]


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (400, 5), exhaustive((2600, 40)), (40, 2600)])
def test_empty_images_of_odd_sizes_have_no_text(model: LoadedModel, size: tuple[int, int]) -> None:
    assert read(model, Image.new("RGB", size, "white"))[0]["text"] == ""


def words(count: int, seed: int) -> list[str]:
    """Lines of unlike words, none of which is like another line."""
    rng = random.Random(seed)
    known = "mill stood forty years until spring wheel was mended and turned again autumn flour sold"
    return [f"{number} {' '.join(rng.sample(known.split(), 4))}" for number in range(100, 100 + count)]


def drawn(size: tuple[int, int], count: int, *, letters: int = 24, seed: int = 1) -> tuple[Any, list[str]]:
    """A page of that many lines from top to bottom."""
    lines = words(count, seed)
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(letters)
    for index, line in enumerate(lines):
        draw.text((20, 20 + index * (size[1] - 40) // count), line, font=font, fill="black")
    return image, lines


def share(wanted: Sequence[str], text: str) -> float:
    """The share of lines that are read exactly, spaces apart, and in order."""
    found = [line.replace(" ", "") for line in text.split("\n")]
    matcher = SequenceMatcher(None, [line.replace(" ", "") for line in wanted], found, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(wanted)


@pytest.mark.parametrize(
    ("size", "count", "letters"),
    [
        ((600, 3000), 36, 24),
        exhaustive((600, 10000), 110, 24, id="a long page"),
        exhaustive((1080, 20000), 180, 30, id="a very long page"),
        exhaustive((3000, 3000), 60, 16, id="small print on a large page"),
    ],
)
def test_every_line_of_a_long_page_is_read(
    model: LoadedModel, size: tuple[int, int], count: int, letters: int
) -> None:
    image, lines = drawn(size, count, letters=letters)

    (found,) = read(model, image)

    assert share(lines, found["text"]) >= 0.95


@pytest.mark.parametrize("degrees", [exhaustive(90, id="90"), 180, 270])
def test_a_page_that_was_turned_is_read_in_its_own_order(model: LoadedModel, degrees: int) -> None:
    image, lines = drawn((700, 600), 9)

    (found,) = read(model, image.rotate(degrees, expand=True))

    assert found["text"].split("\n") == lines


@pytest.mark.parametrize(
    "texts", [["Open from 7 to 18 o'clock"], ["SOS NOON"], ["80 16 99"], ["Exit", "Gate 12", "Please ring"]]
)
def test_an_upright_page_is_not_turned(model: LoadedModel, texts: list[str]) -> None:
    image, _ = page(texts, size=40)

    (found,) = read(model, image)

    assert share(texts, found["text"]) == 1


def test_a_strip_a_hundred_times_longer_than_high_is_read(model: LoadedModel) -> None:
    wide = " ".join(words(14, 2))
    image = Image.new("RGB", (8000, 60), "white")
    ImageDraw.Draw(image).text((10, 8), wide, font=ImageFont.load_default(36), fill="black")

    (found,) = read(model, image)

    assert found["text"].replace(" ", "") == wide.replace(" ", "")


@pytest.mark.parametrize("ink", ["black", "white"])
def test_a_transparent_page_is_read_as_a_viewer_shows_it(model: LoadedModel, ink: str) -> None:
    image, lines = drawn((700, 500), 7)
    alpha = ImageOps.invert(image.convert("L"))
    transparent = Image.merge("RGBA", [*Image.new("RGB", image.size, ink).split(), alpha])

    (found,) = read(model, transparent)

    assert found["text"].split("\n") == lines


@pytest.mark.parametrize("letter", ["A", "8", "g"])
def test_a_single_large_letter_is_read(model: LoadedModel, letter: str) -> None:
    image = Image.new("RGB", (400, 400), "white")
    font = ImageFont.load_default(320)
    ImageDraw.Draw(image).text((200, 200), letter, font=font, fill="black", anchor="mm")

    (found,) = read(model, image)

    assert found["text"] == letter


def test_an_empty_strip_has_no_text(model: LoadedModel) -> None:
    (found,) = read(model, Image.new("RGB", (4000, 20), "white"))

    assert found["text"] == ""


@pytest.mark.parametrize(
    ("text", "language"),
    [("größere Straßen üben", "de"), ("le garçon préfère être à Paris", "fr"), ("mañana señor", "es")],
)
def test_other_languages_of_latin_script_are_read(model: LoadedModel, text: str, language: str) -> None:
    font = accented_font()
    image = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(image).text((30, 30), text, font=font, fill="black")

    (found,) = read(model, image, languages=[language])

    assert found["text"].replace(" ", "") == text.replace(" ", "")


@pytest.fixture(scope="module")
def read_plainly(model: LoadedModel) -> list[dict[str, Any]]:
    return read(model, page(LINES[:1])[0])


@pytest.mark.parametrize(
    "languages", [exhaustive(["en"]), ["DE", "en-GB"], exhaustive(["zh-Hant"]), exhaustive(["sr_Latn"])]
)
def test_a_language_that_the_model_reads_changes_nothing(
    model: LoadedModel, read_plainly: list[dict[str, Any]], languages: list[str]
) -> None:
    assert read(model, page(LINES[:1])[0], languages=languages) == read_plainly


@pytest.mark.parametrize("language", ["ru", "ar", "sr", "sr-Cyrl", "uz-Cyrl", "eng"])
def test_a_language_that_it_does_not_read_is_refused(model: LoadedModel, language: str) -> None:
    image, _ = page(LINES[:1])

    with pytest.raises(ModelmillError, match=f"does not read '{language}'; it reads: zh, en, ja") as caught:
        read(model, image, languages=["en", language])

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert caught.value.fields[0].field == "config.languages"


def test_a_batch_reads_the_texts_of_all_pages_together(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = model.runner(TASK).weights
    passes: list[int] = []
    original = networks._recognise

    def watching(crops: Any) -> Any:
        passes.append(len(crops))
        return original(crops)

    monkeypatch.setattr(networks, "_recognise", watching)
    pages = [page(LINES[:count])[0] for count in (1, 4, 2)] + [photo("rocket")]

    together = read(model, *pages)

    assert passes == [7]
    assert [len(found["objects"]) for found in together] == [1, 4, 2, 0]
    for image, found in zip(pages, together, strict=True):
        (alone,) = read(model, image)
        assert found["text"] == alone["text"]
        assert [piece["score"] for piece in found["objects"]] == pytest.approx(
            [piece["score"] for piece in alone["objects"]], abs=1e-4
        )


def test_scores_and_boxes_are_near_the_librarys(model: LoadedModel) -> None:
    image, _ = page(LINES)

    wanted = rapidocr()(np.asarray(image)[:, :, ::-1])

    (found,) = read(model, image)
    assert [piece["text"] for piece in found["objects"]] == list(wanted.txts)
    assert [piece["score"] for piece in found["objects"]] == pytest.approx(list(wanted.scores), abs=0.03)
    for piece, quad in zip(found["objects"], wanted.boxes, strict=True):
        (left, top), (right, bottom) = quad.min(axis=0).tolist(), quad.max(axis=0).tolist()
        assert overlap(piece["box"], (left, top, right, bottom)) > 0.5


def test_texts_are_padded_to_few_widths_and_read_in_bounded_passes() -> None:
    widths = [_padded_width(np.zeros((48, width, 3), dtype=np.uint8)) for width in (10, 320, 321, 384, 1000)]

    assert widths == [320, 320, 384, 384, 1024]
    assert [len(rows) for rows in _chunks(range(60), 320)] == [25, 25, 10]
    assert [len(rows) for rows in _chunks(range(2), 2 * PASS_WIDTH)] == [1, 1]


def test_a_file_that_is_not_there_is_named(context_of: Callable[..., LoadContext]) -> None:
    entry = context_of("rapidocr").entry.model_copy(update={"options": {"recognizer": "greek.onnx"}})

    with pytest.raises(ModelmillError, match=r"holds no greek\.onnx") as caught:
        LoadedModel(context_of(entry)).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED


def test_a_recognizer_without_characters_is_refused(context_of: Callable[..., LoadContext]) -> None:
    options = {"recognizer": "PP-OCRv6_det_small.onnx"}
    entry = context_of("rapidocr").entry.model_copy(update={"options": options})

    with pytest.raises(ModelmillError, match="do not list its characters"):
        LoadedModel(context_of(entry)).load()


def test_a_lower_bound_of_scores_and_no_turner_can_be_set(context_of: Callable[..., LoadContext]) -> None:
    entry = context_of("rapidocr").entry.model_copy(update={"options": {"turner": None, "min_score": 1.0}})
    strict = LoadedModel(context_of(entry)).load()

    assert read(strict, page(LINES)[0].rotate(180)) == [{"text": "", "objects": []}]
    strict.close()


def test_reading_is_silent_fetches_nothing_and_imports_no_torch(model: LoadedModel) -> None:
    code = """
import json, socket, sys

def refuse(*_):
    raise OSError("no network here")

socket.socket.connect = refuse
from modelmill_backends.loader import load
from modelmill_tasks.registry import find_task

model = load("rapidocr")
task = find_task("optical-character-recognition")
model.answer(task.name, task.example.input)
print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
"""
    root = Path(__file__).parents[2]

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )

    assert json.loads(done.stdout) == []
    assert done.stderr == ""


class TestReadingOrder:
    def order(self, *boxes: Any) -> str:
        return text_of(in_reading_order([Piece(text, 1.0, *box) for text, *box in boxes]))

    def test_lines_go_down_and_pieces_to_the_right(self) -> None:
        found = self.order(
            ("d", 200, 52, 260, 72),
            ("a", 10, 10, 90, 30),
            ("c", 10, 50, 90, 70),
            ("b", 200, 8, 260, 28),
        )

        assert found == "a b\nc d"

    def test_a_line_may_lean(self) -> None:
        slope = math.tan(math.radians(4))
        rows = [
            (f"{row}{column}", left, row * 30 + left * slope, left + 80, row * 30 + 20 + left * slope)
            for row in range(3)
            for column, left in enumerate(range(0, 1000, 100))
        ]

        found = self.order(*reversed(rows))

        assert found.splitlines() == [" ".join(f"{row}{column}" for column in range(10)) for row in range(3)]

    def test_a_tall_letter_does_not_join_two_lines(self) -> None:
        found = self.order(("one", 50, 0, 150, 20), ("two", 50, 24, 150, 44), ("A", 0, 0, 40, 44))

        assert sorted(found.splitlines()) == sorted(["A one", "two"])

    def test_columns_of_prose_are_read_one_after_the_other(self) -> None:
        # The right column is half a line lower; a title and a caption span both columns.
        found = self.order(
            ("title", 0, 0, 800, 30),
            *((f"right{row}", 420, 60 + 30 * row, 790, 80 + 30 * row) for row in range(4)),
            *((f"left{row}", 0, 50 + 30 * row, 390, 70 + 30 * row) for row in range(5)),
            ("caption", 50, 210, 700, 230),
            *((f"below{row}", 420, 250 + 30 * row, 790, 270 + 30 * row) for row in range(3)),
        )

        assert found.split() == [
            "title",
            *(f"left{row}" for row in range(5)),
            *(f"right{row}" for row in range(4)),
            "caption",
            *(f"below{row}" for row in range(3)),
        ]

    def test_three_columns_are_read_from_left_to_right(self) -> None:
        columns = [
            (f"{name}{row}", left, 30 * row, left + 200, 30 * row + 20)
            for name, left in (("c", 500), ("a", 0), ("b", 250))
            for row in range(4)
        ]

        assert self.order(*columns).split() == [f"{name}{row}" for name in "abc" for row in range(4)]

    def test_a_table_is_read_row_by_row(self) -> None:
        cells = [
            (f"{name}{row}", left, 30 * row, left + width, 30 * row + 20)
            for name, left, width in (("item", 0, 150), ("price", 400, 60))
            for row in range(6)
        ]

        assert self.order(*cells).splitlines() == [f"item{row} price{row}" for row in range(6)]

    def test_nothing_is_an_empty_text(self) -> None:
        assert self.order() == ""


def test_the_sample_pages_are_unlike() -> None:
    items = list(find_task(TASK).samples(8))  # type: ignore[misc]

    assert len({item["image"] for item in items}) == 8
