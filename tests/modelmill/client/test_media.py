"""Python values as media on the wire."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelmill import processes
from modelmill.client import Client, File, InvalidRequestError, data_url
from modelmill.client.media import path_hint
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.sources import source_bytes
from tests.support.client import INPUTS, JOB_ID, TASK, Play, Played

PIXELS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)


@pytest.fixture
def taking(play: Play) -> Played:
    """A server that takes every job and every file."""

    def answer(request: Request) -> Response:
        if request.url.path == "/api/files":
            return JSONResponse({"id": f"file:{len(played.seen)}", "bytes": 1, "unknown": 1}, 201)
        return JSONResponse({"id": JOB_ID, "status": "starting"}, 202)

    played = play(answer)
    return played


def sent(taking: Played, **fields: Any) -> dict[str, Any]:
    """The body that arrives at the server."""
    with Client(taking.url, upload_over_bytes=1000) as client:
        client.submit(TASK, "noop", **fields)
    body: dict[str, Any] = json.loads(taking.seen[-1][3])
    return body


def pixels_of(url: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(source_bytes(url))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_a_file_becomes_a_data_url_that_the_server_reads(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(bytes(range(256)))

    assert source_bytes(data_url(path)) == path.read_bytes()


def test_paths_bytes_and_open_files_are_sent_as_they_are(taking: Played, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"pixels")
    with path.open("rb") as file:
        file.read(3)
        body = sent(
            taking,
            image=path,
            nested={"list": [b"bytes", bytearray(b"array"), (memoryview(b"view"), io.BytesIO(b"file"))]},
            file=file,
        )

    assert body["image"].startswith("data:image/jpeg;base64,")
    assert source_bytes(body["image"]) == b"pixels"
    one, two, [three, four] = body["nested"]["list"]
    assert [source_bytes(url) for url in (one, two, three, four)] == [b"bytes", b"array", b"view", b"file"]
    assert source_bytes(body["file"]) == b"pixels"


def test_strings_and_numbers_go_as_they_are(taking: Played, tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    fields = {"image": str(path), "url": "https://example.com/a.jpg", "n": [1, 2.5, None, True, "\u2028"]}

    assert sent(taking, **fields) == fields
    assert sent(taking, scale=np.float32(0.5), count=np.int64(3)) == {"scale": 0.5, "count": 3}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P", "CMYK"])
def test_an_image_of_pillow_is_sent_without_loss(taking: Played, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)

    body = sent(taking, image=image)

    expected = image.convert("RGB") if mode == "CMYK" else image
    assert np.array_equal(pixels_of(body["image"]), np.asarray(expected))


def test_an_image_that_lies_on_its_side_is_turned_as_its_file_would_be(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "cat.jpg"
    Image.fromarray(PIXELS).save(path, exif=exif)

    with Image.open(path) as image:
        from modelmill.client.media import payload_of

        turned = open_image(source_bytes(payload_of(image).data_url()))
    assert turned.size == open_image(path.read_bytes()).size == (5, 4)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_an_array_is_sent_as_an_image(taking: Played, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)

    body = sent(taking, image=array)

    assert np.array_equal(pixels_of(body["image"]), array[:, :, 0] if shape[2:] == (1,) else array)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 4), np.float32), r"images\.1: .*float32 of 4 × 4.*tolist"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"images\.1: .*uint8 of 2 × 4 × 4 × 3"),
        (object(), r"images\.1: A object cannot be sent"),
        (io.StringIO("text"), r"images\.1: Open files in binary mode"),
    ],
)
def test_what_cannot_be_sent_is_named(taking: Played, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        sent(taking, images=[b"first", value])
    assert taking.seen == []


def test_a_picture_of_floats_is_not_changed_silently(taking: Played) -> None:
    with pytest.raises(TypeError, match="mode F"):
        sent(taking, image=Image.new("F", (2, 2)))


def test_large_values_are_uploaded_once_and_named(taking: Played, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(b"x" * 1001)

    body = sent(taking, audio=path, again=[path], small=b"y" * 1000)

    assert body["audio"] == body["again"][0] == "file:1"
    assert source_bytes(body["small"]) == b"y" * 1000
    assert taking.paths[:-1] == ["POST /api/files"]
    headers, upload = taking.seen[0][2:]
    assert headers["content-type"].startswith("multipart/form-data")
    assert b'name="file"; filename="long.wav"' in upload
    assert path.read_bytes() in upload


def test_what_is_too_much_together_is_uploaded_too(taking: Played) -> None:
    body = sent(taking, images=[bytes([number]) * 900 for number in range(4)])

    assert [value.startswith("data:") for value in body["images"]] == [True, True, False, False]


def test_a_stream_of_unknown_length_is_sent(taking: Played) -> None:
    class Pipe(io.RawIOBase):
        left = 1500

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            count = min(len(buffer), self.left)
            buffer[:count] = b"z" * count
            self.left -= count
            return count

    assert sent(taking, audio=Pipe()) == {"audio": "file:1"}


def test_an_uploaded_file_is_its_id(taking: Played) -> None:
    with Client(taking.url) as client:
        file = client.upload(b"bytes", "name.bin")

    assert str(file) == file.id == "file:1"
    assert sent(taking, image=file, images=[File("file:2")]) == {"image": "file:1", "images": ["file:2"]}


def test_a_refused_string_that_looks_like_a_path_comes_with_a_hint(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match=r"neither.*pass pathlib\.Path"):
        client.submit(TASK, "noop", INPUTS | {"image": "photos/cat.jpg"})
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(TASK, "noop", INPUTS | {"image": "not base64!"})
    assert "pathlib" not in caught.value.message


@pytest.mark.parametrize(
    ("value", "hinted"),
    [
        ("cat.jpg", True),
        ("/data/cats/cat.1.jpeg", True),
        ("C:\\cats\\cat.png", True),
        ("https://example.com/cat.jpg", False),
        ("data:image/png;base64,a.b", False),
        (base64.b64encode(bytes(200)).decode(), False),
        ("a sentence. with\na line", False),
        ("x" * 2000 + ".jpg", False),
        (7, False),
    ],
)
def test_only_the_text_of_a_path_is_hinted_at(value: object, hinted: bool) -> None:
    assert bool(path_hint({"messages": [{"image": value}]}, "messages.0.image")) is hinted
    assert path_hint({"messages": []}, "messages.0.image") == ""


def test_looking_for_images_imports_neither_pillow_nor_numpy() -> None:
    code = (
        "import sys; from modelmill.client.media import media_in, payload_of; "
        "[payload_of(value) for _, value in media_in({'a': [b'x', 1, 'y']})]; "
        "assert not {'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run(processes.python("-c", code), check=True)
