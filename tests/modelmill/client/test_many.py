"""Submitting many jobs in one request, collecting them, and files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelmill.client import (
    Client,
    ConnectionFailedError,
    File,
    InvalidRequestError,
    Job,
    NotFoundError,
    RateLimitError,
    ServerError,
    many,
)
from modelmill.client.flows import Uploadable
from modelmill.errors import ErrorCode
from modelmill.store import WorkerStore
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.sources import source_bytes
from tests.support.api import finish
from tests.support.client import TASK, Play, broken_stream

NDJSON = "application/x-ndjson"


def test_many_are_submitted_in_few_requests(
    client: Client, store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "MAX_BULK_LINES", 4)
    paths: list[str] = []
    client._wire.http.event_hooks["request"].append(lambda request: paths.append(request.url.path))
    rows = [{"classes": ["a"] * (number + 1)} for number in range(9)]

    jobs = client.submit_many(TASK, "noop", iter(rows), image=source_bytes(CAT), lane="bulk")

    assert paths == [f"/api/tasks/{TASK}/noop/jobs:bulk"] * 3
    assert all(isinstance(job, Job) for job in jobs)
    ids = [job.id for job in jobs if isinstance(job, Job)]
    assert len(set(ids)) == 9
    assert client.job(ids[0]).document["lane"] == "bulk"
    assert client.collect(ids, wait_s=0) == []
    finish(store)
    assert {document["id"] for document in client.collect(ids)} == set(ids)
    assert client.submit_many(TASK, "noop", []) == []


def test_a_row_that_is_refused_is_an_error_in_its_place(client: Client) -> None:
    good, bad, other = client.submit_many(
        TASK, "noop", [{"classes": ["a"]}, {"classes": []}, {"classes": ["b"]}], image=CAT
    )

    assert isinstance(good, Job)
    assert isinstance(other, Job)
    assert isinstance(bad, InvalidRequestError)
    assert bad.code is ErrorCode.INVALID_INPUT
    assert "classes" in bad.message


def test_a_row_with_a_key_of_its_own_is_one_job(client: Client) -> None:
    row = {"image": CAT, "classes": ["a"], "idempotency_key": "row-1"}

    first, again = (client.submit_many(TASK, "noop", [row])[0] for _ in range(2))

    assert isinstance(first, Job)
    assert isinstance(again, Job)
    assert first.id == again.id


def test_jobs_that_do_not_exist_say_so(client: Client) -> None:
    unknown = "0b5f1c0e-0000-4000-8000-000000000000"

    [document] = client.collect([unknown], wait_s=0)

    assert (document["id"], document["status"]) == (unknown, None)
    assert document["error"]["code"] == "job_not_found"
    assert client.collect([]) == []
    with pytest.raises(ValueError, match="1000"):
        client.collect([unknown] * 1001)


def test_collected_jobs_are_deleted(client: Client) -> None:
    job = client.submit(TASK, "noop", image=CAT, classes=["a"])

    assert client.collect([job.id], delete=True) == []

    with pytest.raises(NotFoundError):
        job.refresh()


def lines(*ids: str) -> bytes:
    return b"".join(json.dumps({"id": id_, "status": "starting"}).encode() + b"\n" for id_ in ids)


def test_lines_whose_answers_were_lost_are_sent_again(play: Play) -> None:
    answers = iter(
        [
            Response("", 503),
            broken_stream(lines("a", "b") + b'{"id": "c"', media_type=NDJSON),
            Response(b"", media_type=NDJSON),
            Response(lines("c"), media_type=NDJSON),
            broken_stream(media_type=NDJSON),
            Response(lines("d"), media_type=NDJSON),
        ]
    )
    played = play(lambda _: next(answers))

    with Client(played.url) as client:
        jobs = client.submit_many("t", "m", [{"n": number} for number in range(4)])

    assert [job.id for job in jobs if isinstance(job, Job)] == ["a", "b", "c", "d"]
    sent = [[json.loads(line) for line in body.splitlines()] for _, _, _, body in played.seen]
    assert [[row["n"] for row in rows] for rows in sent] == [
        [0, 1, 2, 3], [0, 1, 2, 3], [2, 3], [2, 3], [3], [3]
    ]  # fmt: skip
    assert len({row["idempotency_key"] for rows in sent for row in rows}) == 4
    assert all(headers["transfer-encoding"] == "chunked" for _, _, headers, _ in played.seen)


def test_a_server_that_answers_no_line_is_given_up(play: Play) -> None:
    for answer, kind in (
        (lambda _: broken_stream(media_type=NDJSON), ConnectionFailedError),
        (lambda _: Response("", 503), ServerError),
    ):
        played = play(answer)
        with Client(played.url, max_retries=1) as client, pytest.raises(kind):
            client.submit_many("t", "m", [{"n": 1}])
        assert len(played.seen) == 2


def test_a_refused_line_says_when_to_come_back(play: Play) -> None:
    error = {"code": "quota_exceeded", "message": "Too many.", "retryable": True, "retry_after_s": 3}
    played = play(lambda _: Response(json.dumps({"error": error}) + "\n", media_type=NDJSON))

    with Client(played.url) as client:
        [refused] = client.submit_many("t", "m", [{"n": 1}])

    assert isinstance(refused, RateLimitError)
    assert (refused.code, refused.retry_after_s) == (ErrorCode.QUOTA_EXCEEDED, 3)
    assert len(played.seen) == 1


def test_lines_are_cut_by_number_and_size() -> None:
    cut = many.Lines()

    assert [cut.add(b"x" * size) for size in (5_000_000, 3_000_000)] == [[], []]
    assert [len(line) for line in cut.add(b"x" * 1_000_000)] == [5_000_000, 3_000_000]
    assert [len(line) for line in cut.add(b"x" * 20_000_000)] == [1_000_000]
    assert [len(line) for line in cut.rest()] == [20_000_000]
    assert cut.rest() == []


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_a_file_is_uploaded_and_used(client: Client, store: WorkerStore, tmp_path: Path, kind: str) -> None:
    content = source_bytes(CAT)
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    sources: dict[str, Uploadable] = {"path": path, "bytes": content, "file": io.BytesIO(content)}

    file = client.upload(sources[kind], None if kind == "path" else "cat.jpg")

    assert str(file).startswith("file:")
    assert (file.bytes, file.name) == (len(content), "cat.jpg")
    assert client.download(file) == client.download(str(file)) == content
    job = client.submit(TASK, "noop", image=file, classes=["cat"])
    finish(store)
    assert job.wait().status == "complete"
    client.delete_file(file)
    with pytest.raises(NotFoundError) as caught:
        client.download(file)
    assert caught.value.code is ErrorCode.FILE_NOT_FOUND


def test_large_media_are_uploaded_by_themselves(client: Client) -> None:
    client._flows = type(client._flows)(client._wire.policy, upload_over_bytes=100)

    job = client.submit(TASK, "noop", image=source_bytes(CAT), classes=["cat"])

    assert job.status == "starting"


def test_an_upload_is_sent_again_from_its_start(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"content" * 1000)

    def answer(request: Request) -> Response:
        return Response("", 503) if len(played.seen) == 1 else JSONResponse({"id": "file:1"}, 201)

    played = play(answer)
    with Client(played.url) as client, path.open("rb") as file:
        assert client.upload(file) == File("file:1")
        assert not file.closed

    assert all(b"content" * 1000 in body for _, _, _, body in played.seen)
