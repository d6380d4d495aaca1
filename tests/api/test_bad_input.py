"""The answer to bad input: a problem that names what is wrong and echoes nothing."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill_tasks.shared.examples import CAT
from tests.support.api import TASK
from tests.support.servers import ApiServer

MARK = "MARK" * 2000


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that claims a size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 1000) + b"IDAT" + bytes(100)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:modelmill:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert "MARKMARK" not in response.text
    return body


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"image": encoded(b"this is text, not an image " + MARK.encode())}, "image", "invalid_media"),
        ({"image": MARK + "!"}, "image", "invalid_media"),
        ({"image": ""}, "image", "invalid_media"),
        ({"image": encoded(png_header(40_000, 40_000))}, "image", "media_too_large"),
        ({"image": "http://example.com/cat.jpg"}, "image", "media_source_refused"),
        ({"image": "file:abc"}, "image", "media_not_found"),
        ({"image": [CAT]}, "image", "invalid_input"),
        ({"classes": []}, "classes", "invalid_input"),
        ({"classes": ["cat", ""]}, "classes.1", "invalid_input"),
        ({"classes": [MARK]}, "classes.0", "invalid_input"),
        ({"classes": "cat"}, "classes", "invalid_input"),
        ({"classes": {MARK: 1}}, "classes", "invalid_input"),
        ({"colour": MARK}, "colour", "invalid_input"),
        ({"config": {"top_k": MARK}}, "config.top_k", "invalid_input"),
        ({"config": {"hypothesis_template": MARK}}, "config.hypothesis_template", "invalid_input"),
        ({"lane": MARK}, "lane", "invalid_input"),
        ({"expires_in": 0}, "expires_in", "invalid_input"),
        ({"expires_in": -1}, "expires_in", "invalid_input"),
        ({"expires_in": 30 * 86_400 + 1}, "expires_in", "invalid_input"),
        ({"expires_in": "5"}, "expires_in", "invalid_input"),
        ({"expires_in": True}, "expires_in", "invalid_input"),
    ],
)
def test_a_wrong_field_is_named(api: httpx.Client, change: dict[str, Any], field: str, code: str) -> None:
    response = api.post(f"{TASK}/noop/jobs", json={"image": CAT, "classes": ["cat", "dog"]} | change)
    assert [error["field"] for error in problem(response, 422, code)["errors"]] == [field]


def test_the_size_of_an_image_that_is_too_large_is_told(api: httpx.Client) -> None:
    body = {"image": encoded(png_header(40_000, 40_000)), "classes": ["cat"]}
    detail = problem(api.post(f"{TASK}/noop/jobs", json=body), 422, "media_too_large")["detail"]
    assert "40000 × 40000" in detail


def test_a_missing_field_is_named(api: httpx.Client) -> None:
    response = api.post(f"{TASK}/noop/jobs", json={"image": CAT})
    assert problem(response, 422, "invalid_input")["errors"] == [
        {"field": "classes", "message": "Field required"}
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        MARK.encode(),
        b'{"image": NaN}',
        b'{"expires_in": NaN}',
    ],
)
def test_a_body_that_is_no_object_is_refused(api: httpx.Client, body: bytes) -> None:
    problem(api.post(f"{TASK}/noop/jobs", content=body), 422, "invalid_input")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"classes": [["cat"], ["dog"]]}, "classes"),
        ({"config": [{}]}, "config"),
        ({"image": CAT}, "image"),
        ({"image": []}, "image"),
        ({"image": [CAT, CAT, "!"]}, "image.2"),
        ({"image": [CAT] * 1025}, "image"),
    ],
)
def test_a_batched_job_names_the_list_that_is_wrong(
    api: httpx.Client, change: dict[str, Any], field: str
) -> None:
    body = {"image": [CAT, CAT, CAT], "classes": ["cat", "dog"]} | change
    response = api.post(f"{TASK}/batched/noop/jobs", json=body)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_an_unknown_task_names_the_nearest(api: httpx.Client) -> None:
    for address in (
        "/api/tasks/image-clasification/noop/jobs",
        "/api/tasks/image-clasification/batched/noop/jobs",
    ):
        body = problem(api.post(address, json={}), 404, "task_not_found")
        assert "Did you mean image-classification or " in body["detail"]
    problem(api.get("/api/tasks/nothing-like-it/jobs/x"), 404, "task_not_found")


def test_an_unknown_model_names_the_nearest(api: httpx.Client) -> None:
    body = problem(api.post(f"{TASK}/conse-lite/jobs", json={}), 404, "model_not_found")
    assert "Did you mean conse-lite0" in body["detail"]
    for reserved in ("batched", "jobs", "models"):
        problem(api.post(f"{TASK}/{reserved}/jobs", json={}), 404, "model_not_found")
    problem(api.post(f"{TASK}/{'M' * 5000}/jobs", json={}), 404, "model_not_found")


def test_a_model_of_another_task_says_what_it_answers(api: httpx.Client) -> None:
    body = problem(api.post(f"{TASK}/minilm/jobs", json={}), 404, "task_not_supported")
    assert "text-embedding" in body["detail"]
    assert "conse-lite0" in body["detail"]


def test_a_body_over_the_limit_is_a_413_however_it_is_sent(settings: Settings) -> None:
    limit = 100_000
    server = ApiServer(settings.model_copy(update={"max_body_bytes": limit}))

    def stream() -> Any:
        for _ in range(1000):
            yield b"x" * 10_000

    try:
        with httpx.Client(base_url=server.url) as client:
            for content in (b"x" * (limit + 1), stream()):
                response = client.post(f"{TASK}/noop/jobs", content=content)
                assert str(limit) in problem(response, 413, "body_too_large")["detail"]
            # At the limit the body is read, and it is not JSON.
            problem(client.post(f"{TASK}/noop/jobs", content=b"x" * limit), 422, "invalid_input")
    finally:
        server.close()


def test_a_truncated_image_passes_its_header_and_is_accepted(api: httpx.Client) -> None:
    # Only decoding shows it, and only the worker decodes: this job will fail there.
    from PIL import Image

    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(buffer, "JPEG")
    body = {"image": encoded(buffer.getvalue()[:-2000]), "classes": ["cat"]}
    assert api.post(f"{TASK}/noop/jobs", json=body).status_code == 202


def test_a_wrong_header_is_a_problem_too(api: httpx.Client) -> None:
    response = api.post(f"{TASK}/noop/jobs", json={}, headers={"Idempotency-Key": "a b"})
    assert "idempotency-key" in problem(response, 422, "invalid_input")["detail"]


def test_an_unknown_address_points_to_the_documentation(api: httpx.Client) -> None:
    assert "/docs" in problem(api.get("/api/nothing"), 404, "not_found")["detail"]
