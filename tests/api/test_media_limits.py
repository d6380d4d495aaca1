"""Limits of media: those of the settings that ``create_app`` is given."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill_tasks.shared.examples import CAT, SPEECH
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.sources import source_bytes
from tests.support.api import JOBS
from tests.support.servers import ApiServer

WIDTH, HEIGHT = open_image(CAT).size
PIXELS = WIDTH * HEIGHT
SPEECH_JOBS = "/api/tasks/automatic-speech-recognition/pocketsphinx-en/jobs"


def image(text: str) -> dict[str, Any]:
    return {"image": text, "classes": ["cat", "dog"]}


def upload(client: httpx.Client, text: str) -> str:
    return str(client.post("/api/files", files={"file": source_bytes(text)}).raise_for_status().json()["id"])


@pytest.mark.parametrize("small_first", [True, False], ids=["small first", "large first"])
def test_two_apps_in_one_process_have_limits_of_their_own(settings: Settings, small_first: bool) -> None:
    small = settings.model_copy(update={"max_image_pixels": PIXELS - 1, "max_audio_s": 1.0})
    large = settings.model_copy(update={"max_image_pixels": PIXELS, "max_audio_s": 60.0})
    order = [small, large] if small_first else [large, small]

    with ApiServer(order[0]) as one, ApiServer(order[1]) as other:
        refused: dict[str, httpx.Response] = {}
        accepted: dict[str, httpx.Response] = {}
        for found, server in zip(order, (one, other), strict=True):
            answers = refused if found is small else accepted
            with httpx.Client(base_url=server.url) as client:
                answers["image"] = client.post(JOBS, json=image(CAT))
                answers["image file"] = client.post(JOBS, json=image(upload(client, CAT)))
                answers["audio"] = client.post(SPEECH_JOBS, json={"audio": SPEECH})
                answers["audio file"] = client.post(SPEECH_JOBS, json={"audio": upload(client, SPEECH)})

    assert {name: answer.status_code for name, answer in accepted.items()} == dict.fromkeys(accepted, 202)
    problems = {name: answer.json() for name, answer in refused.items()}
    assert {name: problem["code"] for name, problem in problems.items()} == dict.fromkeys(
        refused, "media_too_large"
    )
    assert f"at most {PIXELS - 1} pixels" in problems["image"]["detail"]
    assert "at most 1 s" in problems["audio"]["detail"]
