"""Which proxy and which certificates a client uses, by the variables of its environment."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from modelmill.client import AsyncClient, Client, ConnectionFailedError
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError
from modelmill.http_client import checked_url, is_this_machine, make_client, proxy_for, tls_context
from tests.fixtures.outbound import certificate

PROXY = "http://127.0.0.1:9"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Recorder:
    """A server that answers every request with an empty list, and keeps the lines of the requests."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                recorder.lines.append(self.requestline)
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"[]")

            def do_CONNECT(self) -> None:
                recorder.lines.append(self.requestline)
                self.send_error(502)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    found = Recorder()
    yield found
    found.server.shutdown()
    found.server.server_close()


BAD_FOR_OTHERS = [
    {"HTTP_PROXY": PROXY},
    {"http_proxy": PROXY},
    {"HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY},
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"all_proxy": "socks4://127.0.0.1:9"},
    {"HTTP_PROXY": "127.0.0.1:9"},
    {"HTTP_PROXY": "http://"},
    {"HTTP_PROXY": "http://[::1"},
    {"HTTP_PROXY": "not a proxy"},
    {"HTTP_PROXY": PROXY, "NO_PROXY": "localhost,::1/128"},
    {"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8 [::1]:x,:::,*.example.com,"},
    {"SSL_CERT_FILE": "/gone"},
    {"SSL_CERT_DIR": "/gone"},
    {"REQUESTS_CA_BUNDLE": "/gone"},
    {"SSL_CERT_FILE": "/etc/hostname"},
]


@pytest.mark.parametrize("environment", BAD_FOR_OTHERS, ids=str)
def test_a_server_on_this_machine_is_called_directly(
    environment: dict[str, str], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    for host in ("127.0.0.1", "localhost"):
        with Client(recorder.url.replace("127.0.0.1", host), max_retries=0) as client:
            assert client.tasks() == []

    assert recorder.lines == ["GET /api/tasks HTTP/1.1"] * 2


@pytest.mark.anyio
async def test_the_other_clients_keep_to_the_same_rules(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelmill.client.backfill.bulk_api import Backoff, BulkApi

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost,::1/128")
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")

    async with AsyncClient(recorder.url, max_retries=0) as client:
        assert await client.tasks() == []
    async with BulkApi(Connection.make(recorder.url, timeout_s=5), Backoff(1)) as bulk:
        assert await bulk.get("/openapi.json") == []


def test_this_machine_has_several_names() -> None:
    for host in ("localhost", "LOCALHOST.", "mill.localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0"):
        assert is_this_machine(host), host
    assert is_this_machine("::ffff:127.0.0.1")
    assert is_this_machine(socket.gethostname())
    for host in ("example.com", "localhost.example.com", "192.0.2.1", "2001:db8::1", "8.8.8.8", ""):
        assert not is_this_machine(host), host


def test_a_server_elsewhere_is_called_through_the_proxy(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", recorder.url)

    with Client("http://mill.example:8000", max_retries=0) as client:
        assert client.tasks() == []
    with Client("http://mill.example:8000/mill/", max_retries=0) as client:
        assert client.tasks() == []

    assert recorder.lines == [
        "GET http://mill.example:8000/api/tasks HTTP/1.1",
        "GET http://mill.example:8000/mill/api/tasks HTTP/1.1",
    ]


def test_a_proxy_without_a_scheme_is_an_http_proxy(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", recorder.url.removeprefix("http://"))

    with make_client("https://mill.example") as client, pytest.raises(httpx.ProxyError):
        client.get("/")

    assert recorder.lines == ["CONNECT mill.example:443 HTTP/1.1"]


def test_a_proxy_that_is_away_is_named_and_its_password_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:hunter2@127.0.0.1:9")

    client = Client("http://mill.example", max_retries=0)
    with client, pytest.raises(ConnectionFailedError, match="the proxy that HTTP_PROXY names") as caught:
        client.tasks()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"HTTP_PROXY": "http://"}, "HTTP_PROXY"),
        ({"http_proxy": "not a proxy"}, "http_proxy"),
        ({"ALL_PROXY": "ftp://proxy:21"}, "ALL_PROXY"),
        ({"ALL_PROXY": "http://proxy:port"}, "ALL_PROXY"),
        ({"ALL_PROXY": "http://[::1"}, "ALL_PROXY"),
    ],
    ids=str,
)
def test_a_variable_that_is_no_proxy_is_told_when_it_counts(
    environment: dict[str, str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=f"^{variable} is not the URL of a proxy"):
        Client("http://mill.example")


def test_a_socks_proxy_needs_a_package_and_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:9")

    with pytest.raises(ConfigError, match=r"^ALL_PROXY names a SOCKS proxy.*pip install 'httpx\[socks\]'"):
        Client("https://mill.example")


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "http://mill.example", True),
        ("other.example, *", "http://mill.example", True),
        ("mill.example", "http://mill.example:8000", True),
        ("MILL.example", "http://mill.Example", True),
        (".example", "http://mill.example", True),
        ("*.example", "http://mill.example", True),
        ("example", "http://mill.example", True),
        (".mill.example", "http://mill.example", True),
        ("ill.example", "http://mill.example", False),
        ("mill.example.com", "http://mill.example", False),
        ("other.example mill.example", "http://mill.example", True),
        ("mill.example:8000", "http://mill.example:8000", True),
        ("mill.example:8000", "http://mill.example:8001", False),
        ("mill.example:443", "https://mill.example", True),
        ("http://mill.example", "http://mill.example", True),
        ("192.0.2.1", "http://192.0.2.1", True),
        ("192.0.2.0/24", "http://192.0.2.77", True),
        ("192.0.2.0/24", "http://192.0.3.77", False),
        ("192.0.2.7/24", "http://192.0.2.77", True),
        ("192.0.2.0/99", "http://192.0.2.77", False),
        ("2001:db8::/32", "http://[2001:db8::1]", True),
        ("2001:db8::1", "http://[2001:db8::1]:8000", True),
        ("[2001:db8::1]:8000", "http://[2001:db8::1]:8000", True),
        ("localhost,::1/128", "http://mill.example", False),
        ("", "http://mill.example", False),
        (" , ,", "http://mill.example", False),
        (".", "http://mill.example", False),
    ],
)
def test_no_proxy_is_read_as_others_read_it(
    no_proxy: str, url: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (proxy_for(httpx.URL(url)) is None) == is_direct


@pytest.mark.parametrize(
    ("environment", "url", "variable"),
    [
        ({"HTTP_PROXY": PROXY}, "http://mill.example", "HTTP_PROXY"),
        ({"HTTP_PROXY": PROXY}, "https://mill.example", None),
        ({"HTTP_PROXY": PROXY, "ALL_PROXY": PROXY}, "https://mill.example", "ALL_PROXY"),
        ({"HTTP_PROXY": PROXY, "http_proxy": PROXY}, "http://mill.example", "http_proxy"),
        ({"HTTP_PROXY": PROXY, "http_proxy": ""}, "http://mill.example", None),
        ({"HTTP_PROXY": "", "ALL_PROXY": ""}, "http://mill.example", None),
    ],
    ids=str,
)
def test_which_variable_counts(
    environment: dict[str, str], url: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    found = proxy_for(httpx.URL(url))

    assert (found and found.variable) == variable


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_certificates_that_are_gone_are_told_when_they_count(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/gone")

    with pytest.raises(ConfigError, match=rf"^{variable} names /gone, .*No such file or directory"):
        Client("https://mill.example")


def test_a_file_without_certificates_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "empty.pem"
    file.write_text("nothing\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    with pytest.raises(ConfigError, match="it holds no certificates"):
        Client("https://127.0.0.1:1")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_authorities_of_the_environment_are_trusted_and_a_final_newline_does_not_count(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, _ = certificate(tmp_path, "mill.example")
    monkeypatch.setenv(variable, f"{path}\n")

    assert tls_context().cert_store_stats()["x509"] == 1


@pytest.mark.parametrize(
    "text",
    ["http://", "http://a b", "ftp://mill", "http://mill:port", "http://[::1", "http://mill/?x=1", "://x"],
)
def test_text_that_is_no_url_of_a_server_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_URL", text)

    with pytest.raises(ConfigError, match=r"^MODELMILL_URL is not a URL of a server"):
        Client()


@pytest.mark.parametrize("text", ["localhost:8000", "127.0.0.1", "mill.example/api", "http:/mill"])
def test_a_url_without_a_scheme_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^The URL of the server needs http:// or https://"):
        Client(text)


def test_space_and_slashes_around_a_url_do_not_count(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked_url(" http://mill:8000//\n", "x") == "http://mill:8000"
    monkeypatch.setenv("MODELMILL_URL", f"{recorder.url}/\n")
    monkeypatch.setenv("MODELMILL_API_KEY", "mm_key\n")

    with Client() as client:
        assert client.tasks() == []

    assert recorder.lines == ["GET /api/tasks HTTP/1.1"]
    assert "MODELMILL_URL" in os.environ


def test_a_key_of_the_environment_that_cannot_be_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_API_KEY", "cl\u00e9")

    with pytest.raises(ConfigError, match=r"^MODELMILL_API_KEY holds a character"):
        Client()
