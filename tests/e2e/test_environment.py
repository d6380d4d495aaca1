"""The whole system in environments that others get wrong, and settings that stop it before it starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import redis

from modelmill import processes
from modelmill.client import Client
from modelmill.errors import ModelmillError
from tests.support.cli import modelmill, modelmill_here
from tests.support.exhaustive import exhaustive
from tests.support.paths import NOOP_MODELS, REPOSITORY
from tests.support.processes import wait_until
from tests.support.servers import Valkey
from tests.support.system import AWKWARD, PROXY, start_up

PHOTO = REPOSITORY / "modelmill" / "data" / "chelsea.jpg"
TASK = "zero-shot-image-classification"
WRONG = "redis://:hunter#2@127.0.0.1:6379/0"
TOLD = "MODELMILL_REDIS_URL: it holds a character that ends the host; percent-encode the password"


@pytest.mark.parametrize(
    "environment",
    [
        exhaustive(AWKWARD, id="all together"),
        exhaustive(PROXY, id="HTTP_PROXY"),
        exhaustive({"ALL_PROXY": "socks5://127.0.0.1:9"}, id="SOCKS"),
        exhaustive(PROXY | {"NO_PROXY": "localhost,::1/128"}, id="NO_PROXY"),
        exhaustive({"SSL_CERT_FILE": "/gone"}, id="SSL_CERT_FILE"),
        exhaustive({"SSL_CERT_DIR": "/gone", "REQUESTS_CA_BUNDLE": "/gone"}, id="SSL_CERT_DIR"),
        exhaustive({"HOME": ""}, id="no HOME"),
        exhaustive({"HOME": "/proc"}, id="a home that cannot be written"),
        exhaustive({"LANG": "C"}, id="LANG=C"),
        exhaustive({"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii:strict"}, id="ASCII"),
        exhaustive({"TMPDIR": "/proc"}, id="TMPDIR"),
    ],
)
def test_up_and_a_submit_work_in_an_awkward_environment(
    environment: dict[str, str], tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    started = start_up(tmp_path, cache_dir, "--devices", "cpu", "--models-file", str(NOOP_MODELS))

    image = tmp_path / "photo \u4e2d.jpg"
    shutil.copy(PHOTO, image)
    submitted = modelmill(
        "submit",
        TASK,
        "noop",
        "--image",
        str(image),
        "--classes",
        "chat,caf\u00e9 \u4e2d",
        "--wait",
        MODELMILL_URL=started.url,
    )
    with Client(started.url) as client:
        result = client.run(TASK, "noop", image=image, classes=["cat", "dog"])

    assert submitted.returncode == 0, submitted.stderr
    assert '"probabilities"' in submitted.stdout
    assert result == {"probabilities": [0.5, 0.5]}
    os.kill(started.process.pid, signal.SIGINT)
    assert started.process.wait(timeout=40) == 0, started.log.read_text()
    assert "Traceback" not in started.log.read_text()


@pytest.mark.parametrize(
    "command",
    [
        ("api", "--port", "0"),
        ("worker", "--devices", "cpu"),
        ("up", "--port", "0"),
        ("keys", "list"),
        ("models",),
    ],
    ids=" ".join,
)
def test_every_command_tells_a_wrong_setting_in_one_sentence(command: tuple[str, ...]) -> None:
    ended = modelmill_here(*command, MODELMILL_REDIS_URL=WRONG)

    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert TOLD in line
    assert "hunter" not in line


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["uvicorn", "--factory", "modelmill_api.app:create_app"], id="uvicorn"),
        pytest.param(["celery", "-A", "modelmill_worker.app", "worker"], id="celery"),
        exhaustive(["uvicorn", "--factory", "modelmill_api.app:create_app", "--workers", "2"], id="uvicorns"),
        exhaustive(["modelmill_worker.node"], id="node"),
        exhaustive(["modelmill_worker.health"], id="health"),
    ],
)
def test_other_ways_to_start_a_process_tell_it_too_and_end(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"MODELMILL_REDIS_URL": WRONG}

    ended = subprocess.run(
        processes.python("-m", *command), capture_output=True, text=True, env=environment, timeout=60
    )

    lines = [line for line in ended.stderr.splitlines() if "INFO" not in line]
    assert lines
    assert all(TOLD in line for line in lines), ended.stderr
    assert "hunter" not in ended.stdout + ended.stderr
    if "--workers" not in command:
        assert (len(lines), ended.returncode) == (1, 1 if "health" in command[0] else 2)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MODELMILL_HOST", "nowhere.invalid", "The API cannot listen at nowhere.invalid, port "),
        ("MODELMILL_CORS_ORIGINS", "example.com", "MODELMILL_CORS_ORIGINS: 'example.com' is not an origin"),
        ("MODELMILL_BLOB_URL", "/proc/blobs", "MODELMILL_BLOB_URL: the folder /proc/blobs cannot be used"),
        ("MODELMILL_MODELS_FILE", "/gone.toml", "/gone.toml: the models file cannot be read"),
        ("MODELMILL_MODELS_FILE", "/proc", "/proc: the models file cannot be read"),
        ("MODELMILL_AUTH", "perhaps", "MODELMILL_AUTH: it must be 'on' or 'off'"),
    ],
)
def test_what_the_api_cannot_use_is_told_before_it_starts(variable: str, value: str, told: str) -> None:
    ended = modelmill_here(
        "api", "--port", "0", **{variable: value, "MODELMILL_REDIS_URL": "redis://[::1]:1"}
    )

    assert ended.returncode == 1
    assert told in ended.stderr.splitlines()[-1]


def test_an_api_on_a_taken_port_says_so(own_valkey: Valkey) -> None:
    ended = modelmill_here("api", "--port", str(own_valkey.port), MODELMILL_REDIS_URL=own_valkey.url)

    assert ended.stderr.splitlines() == [
        f"error: Port {own_valkey.port} is taken. Choose another with --port."
    ]


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MODELMILL_CACHE_DIR", "/proc/cache", "The folder /proc/cache cannot be written"),
        ("MODELMILL_BLOB_URL", "/proc/blobs", "MODELMILL_BLOB_URL: the folder /proc/blobs cannot be used"),
        ("MODELMILL_WORKER_MODELS", "nope", "MODELMILL_WORKER_MODELS names unknown models: nope"),
    ],
)
@pytest.mark.exhaustive
def test_what_a_worker_cannot_use_is_told_and_ends_it(variable: str, value: str, told: str) -> None:
    ended = modelmill("worker", "--devices", "cpu", **{variable: value, "OMP_NUM_THREADS": "1"})

    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 1


def test_a_store_that_evicts_is_refused_and_a_misspelt_setting_is_told(own_valkey: Valkey) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")

    for command in (("api", "--port", "0"), ("worker", "--devices", "cpu")):
        ended = modelmill_here(*command, MODELMILL_REDIS_URL=own_valkey.url, MODELMILL_RESULT_TTLS="60")

        assert ended.returncode == 1
        first, *_, last = ended.stderr.splitlines()
        assert first == (
            "warning: The variable MODELMILL_RESULT_TTLS has no effect. Did you mean MODELMILL_RESULT_TTL_S?"
        )
        assert last.startswith("error: The job store has maxmemory-policy allkeys-lru")
        assert "MODELMILL_ALLOW_EVICTION=true" in last


@pytest.mark.exhaustive
def test_a_node_on_a_store_that_evicts_ends_its_supervisor(own_valkey: Valkey, tmp_path: Path) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    environment = {"MODELMILL_REDIS_URL": own_valkey.url, "MODELMILL_ALLOW_EVICTION": "false"}
    log = tmp_path / "node.log"

    with log.open("wb") as output:
        node = processes.start(processes.python("-m", "modelmill_worker.node"), environment, output)

    assert node.wait(timeout=60) == 2, log.read_text()
    assert "maxmemory-policy allkeys-lru" in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.exhaustive
def test_no_log_of_a_worker_shows_the_password_of_a_store_that_refuses_it(
    own_valkey: Valkey, tmp_path: Path
) -> None:
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("requirepass", "another")
    log = tmp_path / "worker.log"
    command = processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu")
    for url in (own_valkey.url, "redis://127.0.0.1:1/0"):
        environment = {"MODELMILL_REDIS_URL": url.replace("//", "//:hunt%23er2@")}
        with log.open("ab") as output:
            worker = processes.start(command, environment, output)
        wait_until(lambda: "consumer: Cannot connect" in log.read_text(), 60, "the broker's error")
        processes.stop(worker, 40)

    assert "hunt" not in log.read_text()


def answers(client: Client) -> bool:
    try:
        return bool(client.ready()["models"])
    except ModelmillError:
        return False


@pytest.mark.exhaustive
def test_a_store_behind_a_socket_with_a_password_works(tmp_path: Path, cache_dir: Path) -> None:
    socket = tmp_path / "redis.sock"
    server = Valkey(tmp_path, "--unixsocket", str(socket))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "p;w#1")
    environment = {
        "MODELMILL_REDIS_URL": f"unix://:p%3Bw%231@{socket}?db=2\n",
        "MODELMILL_MODELS_FILE": str(NOOP_MODELS),
        "MODELMILL_CACHE_DIR": str(cache_dir),
    }
    port, log = processes.free_port(), tmp_path / "log"
    with log.open("ab") as output:
        started = [
            processes.start(processes.python("-m", "modelmill_cli", *command), environment, output)
            for command in (("api", "--port", str(port)), ("worker", "--devices", "cpu"))
        ]
    try:
        with Client(f"http://127.0.0.1:{port}") as client_of_api:
            wait_until(lambda: answers(client_of_api), 60, "the worker")
            result = client_of_api.run(TASK, "noop", image=PHOTO, classes=["cat"], timeout_s=60)
        assert result == {"probabilities": [1.0]}, log.read_text()
    finally:
        for process in started:
            processes.stop(process, 40)
        server.stop()
