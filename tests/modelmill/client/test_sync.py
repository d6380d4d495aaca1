"""The blocking client, against the real API and against other servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
from starlette.responses import JSONResponse, Response

from modelmill import __version__, processes
from modelmill.client import (
    TERMINAL,
    ApiError,
    AuthenticationError,
    Client,
    ConnectionFailedError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)
from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill_tasks.shared.examples import CAT
from tests.support.client import INPUTS, TASK, Play
from tests.support.servers import ApiServer


def answering(play: Play, status: int, media_type: str, body: str) -> str:
    """The address of a server that answers everything in the same way."""
    return play(lambda _: Response(body, status, media_type=media_type)).url


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
    job = client.submit(TASK, "noop", INPUTS)

    again = client.job(job.id)
    assert (again.id, again.task, again.model, again.status) == (job.id, TASK, "noop", "starting")
    assert again.document["lane"] == "normal"


def test_a_batched_job_is_submitted_with_lists(client: Client) -> None:
    job = client.submit(TASK, "noop", {"image": [CAT, CAT], "classes": ["cat"]}, batched=True)

    assert job.refresh().document["items"] == 2


def test_fields_are_given_by_name_or_as_a_mapping_or_both(client: Client) -> None:
    job = client.submit(TASK, "noop", {"image": CAT, "classes": []}, classes=["cat"], lane="bulk")

    assert client.job(job.id).document["lane"] == "bulk"


def test_each_submit_is_a_job_of_its_own(client: Client) -> None:
    assert client.submit(TASK, "noop", INPUTS).id != client.submit(TASK, "noop", INPUTS).id


def test_submitting_again_with_the_same_key_gives_the_same_job(client: Client) -> None:
    first = client.submit(TASK, "noop", INPUTS, idempotency_key="mine")

    assert client.submit(TASK, "noop", INPUTS, idempotency_key="mine").id == first.id
    assert client.submit(TASK, "noop", INPUTS | {"idempotency_key": "mine"}).id == first.id
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(TASK, "noop", INPUTS | {"classes": ["bird"]}, idempotency_key="mine")
    assert caught.value.code is ErrorCode.IDEMPOTENCY_CONFLICT


def test_a_wrong_input_is_an_error_with_its_fields(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(TASK, "noop", {"image": CAT, "classes": [], "colour": 1})

    assert caught.value.status == 422
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
        (lambda c: c.job("0b5f1c0e-0000-4000-8000-000000000000"), ErrorCode.JOB_NOT_FOUND, "no such job"),
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
        with Client(server.url, max_retries=0) as client:
            client.submit(TASK, "noop", INPUTS)
            with pytest.raises(RateLimitError) as caught:
                client.submit(TASK, "noop", INPUTS)
    finally:
        server.close()

    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert caught.value.retry_after_s == 5


def test_the_client_knows_the_terminal_states() -> None:
    assert {status.value for status in Status if status.is_terminal} == TERMINAL


def test_a_server_that_is_not_there_says_how_to_start_one() -> None:
    url = f"http://127.0.0.1:{processes.free_port()}"

    with (
        Client(url, max_retries=1) as client,
        pytest.raises(ConnectionFailedError, match="modelmill up") as caught,
    ):
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
    play: Play, call: Callable[[Client], object], status: int, media_type: str, body: str
) -> None:
    url = answering(play, status, media_type, body)

    with Client(url, max_retries=1) as client, pytest.raises(ModelmillError) as caught:
        call(client)

    assert caught.value.code is ErrorCode.INTERNAL
    assert url in caught.value.message
    assert f"answered {status}" in caught.value.message
    assert "<html>" not in caught.value.message


def test_a_code_of_a_newer_server_is_still_an_error(play: Play) -> None:
    url = answering(
        play, 418, "application/problem+json", json.dumps({"code": "teapot", "detail": "I am a teapot."})
    )

    with Client(url) as client, pytest.raises(ModelmillError, match=r"I am a teapot\.") as caught:
        client.tasks()

    assert caught.value.code is ErrorCode.INTERNAL


def test_a_password_in_the_address_is_not_told() -> None:
    url = f"http://me:secret@127.0.0.1:{processes.free_port()}"

    with Client(url, max_retries=0) as client, pytest.raises(ConnectionFailedError) as caught:
        client.tasks()

    assert "secret" not in caught.value.message


def test_a_path_before_the_api_is_kept(play: Play) -> None:
    played = play(lambda _: JSONResponse(["a-task"]))

    with Client(f"{played.url}/behind/a/proxy/") as client:
        assert client.tasks() == ["a-task"]
    assert played.paths == ["GET /behind/a/proxy/api/tasks"]


def test_importing_the_client_loads_no_server() -> None:
    code = "import sys, json, modelmill.client; print(json.dumps(sorted(sys.modules)))"

    output = subprocess.run(processes.python("-c", code), capture_output=True, check=True, text=True).stdout

    # Not rich: httpx imports it for its own command line, if it is installed.
    heavy = {"redis", "celery", "kombu", "fastapi", "starlette", "typer", "PIL", "numpy", "torch", "pydantic"}
    assert heavy.isdisjoint(json.loads(output))


ONLY_THE_CLIENT = """
import importlib.abc, sys

PACKAGES = {"modelmill", "httpx", "httpx_sse"}
NEEDED_BY_HTTPX = {"anyio", "certifi", "h11", "httpcore", "idna", "sniffio", "typing_extensions"}


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in PACKAGES | NEEDED_BY_HTTPX | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)


sys.meta_path.insert(0, Blocker())
"""


def test_the_client_needs_no_other_packages_than_httpx_and_httpx_sse() -> None:
    code = (
        ONLY_THE_CLIENT + "import modelmill, modelmill.client, modelmill.client.backfill\n"
        "with modelmill.Client() as client: print(type(client).__name__)\n"
        "print(modelmill.AsyncClient().__class__.__name__)\n"
        "for name in ('pydantic', 'redis', 'celery', 'fastapi', 'typer', 'rich', 'PIL', 'numpy'):\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError: pass\n"
        "    else: sys.exit(f'{name} was not blocked')\n"
    )

    done = subprocess.run(processes.python("-c", code), capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Client", "AsyncClient"]


def test_importing_the_package_loads_no_client_and_has_one() -> None:
    code = (
        "import sys, modelmill; assert 'httpx' not in sys.modules; "
        "from modelmill import AsyncClient, Client; assert not hasattr(modelmill, 'Nothing')"
    )

    subprocess.run(processes.python("-c", code), check=True)


def test_the_environment_says_where_and_who(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    played = play(lambda _: JSONResponse([]))
    with monkeypatch.context() as patch:
        patch.setenv("MODELMILL_URL", played.url)
        with Client() as client:
            client.tasks()
        patch.setenv("MODELMILL_API_KEY", "mm_1_secret\n")
        with Client() as client:
            client.tasks()
            assert "secret" not in repr(client._connection)
        with Client(api_key="mm_2_other") as client:
            client.tasks()

    headers = [headers for _, _, headers, _ in played.seen]
    assert [given.get("authorization") for given in headers] == [
        None, "Bearer mm_1_secret", "Bearer mm_2_other"
    ]  # fmt: skip
    assert all(given["user-agent"] == f"modelmill-python/{__version__}" for given in headers)


def test_a_key_that_cannot_be_one_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="API key"):
        Client(api_key="mm_1_secret\r\nHost: elsewhere")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, InvalidRequestError),
        (413, InvalidRequestError),
        (429, RateLimitError),
        (500, ServerError),
    ],
)
def test_each_status_is_an_exception_of_its_own(play: Play, status: int, kind: type[ApiError]) -> None:
    body = {"code": "forbidden", "detail": "No.", "retryable": False}
    played = play(lambda _: JSONResponse(body, status, {"Retry-After": "7"}))

    with Client(played.url) as client, pytest.raises(kind) as caught:
        client.tasks()

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status) == (ErrorCode.FORBIDDEN, status)
    assert caught.value.retry_after_s == 7
    assert len(played.seen) == 1
