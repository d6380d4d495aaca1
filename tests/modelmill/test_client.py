from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from modelmill import processes
from modelmill.client import TERMINAL, Client, data_url
from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from tasks.examples import CAT
from tasks.media import source_bytes
from tests.conftest import ApiServer

TASK = "zero-shot-image-classification"
INPUTS = {"image": CAT, "classes": ["cat", "dog"]}

StartServer = Callable[[int, str, str], str]


@pytest.fixture
def client(api: httpx.Client) -> Iterator[Client]:
    with Client(str(api.base_url)) as connected:
        yield connected


@pytest.fixture
def answering() -> Iterator[StartServer]:
    """Starts a server, not ours, that answers everything with one status, media type and body."""
    with ExitStack() as cleanup:

        def start(status: int, media_type: str, body: str) -> str:
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    self.send_response(status)
                    self.send_header("Content-Type", media_type)
                    self.send_header("Content-Length", str(len(body.encode())))
                    self.end_headers()
                    self.wfile.write(body.encode())

                do_POST = do_GET  # noqa: N815

                def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                    pass

            server = HTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            cleanup.callback(server.server_close)
            cleanup.callback(thread.join)
            cleanup.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def test_tasks_and_models_are_listed(client: Client) -> None:
    assert TASK in client.tasks()
    assert {"noop", "conse-lite0"} <= set(client.models())
    assert "noop" in client.models(TASK)
    assert "noop" not in client.models("text-embedding")
    assert client.model_tasks("noop") == [TASK]


def test_a_model_nobody_serves_has_a_status_too(client: Client) -> None:
    assert client.model_status("noop")["status"] in {"uninitialized", "stopped"}
    assert client.ready()["models"] == {}


def test_a_submitted_job_can_be_read_by_its_id(client: Client) -> None:
    job_id = client.submit(TASK, "noop", INPUTS)

    document = client.job(job_id)
    assert document["id"] == job_id
    assert document["status"] == "starting"
    assert document["model"] == "noop"


def test_a_batched_job_is_submitted_with_lists(client: Client) -> None:
    job_id = client.submit(TASK, "noop", {"image": [CAT, CAT], "classes": ["cat"]}, batched=True)

    assert client.job(job_id)["status"] == "starting"


def test_each_submit_is_a_job_of_its_own(client: Client) -> None:
    assert client.submit(TASK, "noop", INPUTS) != client.submit(TASK, "noop", INPUTS)


def test_submitting_again_with_the_same_key_gives_the_same_job(client: Client) -> None:
    first = client.submit(TASK, "noop", INPUTS, idempotency_key="mine")

    assert client.submit(TASK, "noop", INPUTS, idempotency_key="mine") == first
    with pytest.raises(ModelmillError) as caught:
        client.submit(TASK, "noop", INPUTS | {"classes": ["bird"]}, idempotency_key="mine")
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


def test_a_wrong_input_is_an_error_with_its_fields(client: Client) -> None:
    with pytest.raises(ModelmillError) as caught:
        client.submit(TASK, "noop", {"image": CAT, "classes": [], "colour": 1})

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert [field.field for field in caught.value.fields] == ["classes", "colour"]
    assert all(isinstance(field, FieldError) and field.message for field in caught.value.fields)


@pytest.mark.parametrize(
    ("call", "code", "hint"),
    [
        (lambda c: c.submit(TASK, "noop-1", INPUTS), ErrorCode.MODEL_NOT_FOUND, "noop"),
        (lambda c: c.submit("zero-shot", "noop", INPUTS), ErrorCode.TASK_NOT_FOUND, TASK),
        (lambda c: c.submit(TASK, "minilm", {}), ErrorCode.TASK_NOT_SUPPORTED, "text-embedding"),
        (lambda c: c.models("zero-shot"), ErrorCode.TASK_NOT_FOUND, TASK),
        (lambda c: c.model_tasks("nope"), ErrorCode.MODEL_NOT_FOUND, "nope"),
        (lambda c: c.job("0b5f1c0e-0000-4000-8000-000000000000"), ErrorCode.JOB_NOT_FOUND, "24 hours"),
        (lambda c: c.run(TASK, "noop", {"image": CAT}), ErrorCode.INVALID_INPUT, "classes"),
    ],
)
def test_a_refusal_is_an_error_with_its_code_and_sentence(
    client: Client, call: Callable[[Client], object], code: ErrorCode, hint: str
) -> None:
    with pytest.raises(ModelmillError) as caught:
        call(client)

    assert caught.value.code is code
    assert hint in caught.value.message


def test_a_full_queue_says_when_to_come_back(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"max_queue_depth": 1}))
    try:
        with Client(server.url) as client:
            client.submit(TASK, "noop", INPUTS)
            with pytest.raises(ModelmillError) as caught:
                client.submit(TASK, "noop", INPUTS)
    finally:
        server.close()

    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert caught.value.retry_after_s == 5


def test_waiting_ends_when_the_time_is_over(client: Client) -> None:
    job_id = client.submit(TASK, "noop", INPUTS)

    with pytest.raises(TimeoutError, match=rf"job {job_id} is still starting after 0\.05 s"):
        client.wait(job_id, timeout_s=0.05)
    with pytest.raises(TimeoutError):
        client.run(TASK, "noop", INPUTS, timeout_s=0.05)


def test_waiting_ends_with_the_job_whatever_its_end(client: Client, api: httpx.Client) -> None:
    job_id = client.submit(TASK, "noop", INPUTS)
    api.post(f"/api/tasks/{TASK}/jobs/{job_id}/cancel").raise_for_status()

    document = client.wait(job_id)

    assert document["status"] == "canceled"
    assert document["id"] == job_id


def test_the_client_knows_the_terminal_states() -> None:
    assert {status.value for status in Status if status.is_terminal} == TERMINAL


def test_a_server_that_is_not_there_says_how_to_start_one() -> None:
    url = f"http://127.0.0.1:{processes.free_port()}"

    with Client(url) as client, pytest.raises(ModelmillError, match="modelmill up") as caught:
        client.tasks()

    assert url in caught.value.message


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (502, "text/html", "<html><body>Bad Gateway</body></html>"),
        (502, "text/html", ""),
        (503, "application/json", '["not", "ours"]'),
        (503, "application/json", '"no"'),
        (500, "application/json", "null"),
        (422, "application/json", '{"detail": [{"loc": ["body"], "msg": "no"}]}'),
        (422, "application/json", '{"code": "invalid_input", "detail": "x", "errors": ["no"]}'),
        (301, "text/html", "moved"),
        (200, "text/html", "<html><body>Log in to the network</body></html>"),
    ],
)
@pytest.mark.parametrize(
    "call", [Client.tasks, lambda client: client.submit(TASK, "noop", INPUTS)], ids=["read", "submit"]
)
def test_an_answer_that_is_not_ours_is_told_as_such(
    answering: StartServer, call: Callable[[Client], object], status: int, media_type: str, body: str
) -> None:
    url = answering(status, media_type, body)

    with Client(url) as client, pytest.raises(ModelmillError) as caught:
        call(client)

    assert caught.value.code is ErrorCode.INTERNAL
    assert url in caught.value.message
    assert f"answered {status}" in caught.value.message
    assert "<html>" not in caught.value.message


def test_a_code_of_a_newer_server_is_still_an_error(answering: StartServer) -> None:
    url = answering(
        418, "application/problem+json", json.dumps({"code": "teapot", "detail": "I am a teapot."})
    )

    with Client(url) as client, pytest.raises(ModelmillError, match=r"I am a teapot\.") as caught:
        client.tasks()

    assert caught.value.code is ErrorCode.INTERNAL


def test_a_path_before_the_api_is_kept(answering: StartServer) -> None:
    url = answering(200, "application/json", '["a-task"]')

    with Client(f"{url}/behind/a/proxy/") as client:
        assert client.tasks() == ["a-task"]
        assert str(client._http.build_request("GET", "/api/tasks").url) == f"{url}/behind/a/proxy/api/tasks"


def test_a_file_becomes_a_data_url_that_the_server_reads(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(bytes(range(256)))

    assert source_bytes(data_url(path)) == path.read_bytes()


def test_importing_the_client_loads_no_server() -> None:
    code = "import sys, json, modelmill.client; print(json.dumps(sorted(sys.modules)))"

    output = subprocess.run(processes.python("-c", code), capture_output=True, check=True, text=True).stdout

    # rich is there where httpx finds it, for a command line of its own.
    heavy = {"redis", "celery", "kombu", "fastapi", "starlette", "typer", "PIL", "numpy", "torch", "pydantic"}
    assert heavy.isdisjoint(json.loads(output))
