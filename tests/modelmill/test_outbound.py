"""The guard for URLs of callers. Public addresses are played by servers of the test; no packet leaves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import httpcore
import httpx
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.hosts import Hosts, Networks
from modelmill.outbound import MAX_REDIRECTS, Guard, RefusedError, Resolver, UnreachableError
from modelmill.settings import Settings
from tests.fixtures.outbound import (
    PUBLIC,
    Answer,
    Listener,
    Network,
    certificate,
    dripping,
    endless,
    endless_header,
    nonsense,
    redirecting,
    replying,
    silence,
)

T = TypeVar("T")


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    seen = Network()
    dial = httpcore.AnyIOBackend.connect_tcp

    async def connect_tcp(
        self: httpcore.AnyIOBackend, host: str, port: int, *more: Any
    ) -> httpcore.AsyncNetworkStream:
        seen.dialled.append(host)
        if host in seen.ports:
            host, port = "127.0.0.1", seen.ports[host]
        return await dial(self, host, port, *more)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    # Proxies of the environment are for the operator's own requests.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    yield seen
    assert not [host for host in seen.dialled if host not in (PUBLIC, "127.0.0.1", "::1")]


@cache
def usual_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def guard_of(
    hosts: str = "*",
    private: str = "",
    resolve: Resolver | None = None,
    tls: ssl.SSLContext | None = None,
    **more: Any,
) -> Guard:
    tls = tls or usual_authorities()
    return Guard(Hosts(hosts, "fetch_hosts"), Networks(private), resolve=resolve, tls=tls, **more)


def run(main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(main)


async def fetched(guard: Guard, url: str, limit_bytes: int = 100_000, timeout_s: float = 10.0) -> bytes:
    try:
        return await guard.fetch(url, limit_bytes, timeout_s)
    finally:
        await guard.close()


LOOPBACK = ["127.0.0.1", "127.8.9.10", "0.0.0.0", "::", "::1"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "fec0::1"]
LINK_LOCAL = ["169.254.1.1", "fe80::1"]
METADATA = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"]
NOBODY = ["192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1"]
NOBODY_6 = ["2001:db8::1", "3fff::1", "100::1", "5f00::1"]
MAPPED = ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::8.8.8.8"]
SIX_TO_FOUR = ["2002:7f00:1::", "2002:a00:1::1", "2002:808:808::"]
TEREDO = ["2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe"]
NAT64 = ["64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8"]
ADDRESSES = [*LOOPBACK, *PRIVATE, *LINK_LOCAL, *METADATA, *NOBODY, *NOBODY_6]
ADDRESSES += [*MAPPED, *SIX_TO_FOUR, *TEREDO, *NAT64]
"""Where no request goes."""

NUMBERS = ["2130706433", "017700000001", "0x7f000001", "2852039166", "0xa9fea9fe"]
PARTS = ["0177.0.0.1", "0177.1", "0x7f.0.0.1", "0x7f.1", "127.1", "127.0.1", "127.0.0.1.", "127.0.0.01"]
LETTERS = ["127。0。0。1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "%31%32%37.0.0.1", "localhost", "LOCALHOST."]
BRACKETS = ["[::1%25lo]", "[fe80::1%25eth0]", "[0:0:0:0:0:ffff:7f00:1]"]
SPELLINGS = [*NUMBERS, *PARTS, *LETTERS, *BRACKETS]
"""Other ways to write some of them. What a resolver would make of them does not come into it."""

FORMS = [
    "ftp://images.example.com/cat.jpg",
    "file:///etc/passwd",
    "gopher://images.example.com/",
    "unix:///var/run/docker.sock",
    "//images.example.com/cat.jpg",
    "images.example.com/cat.jpg",
    "http:///cat.jpg",
    "http://",
    "",
    "http://user@images.example.com/",
    "http://user:secret@images.example.com/",
    "http://images.example.com@127.0.0.1/",
    "http://images.example.com\\@127.0.0.1/",
    "http://images.example.com:0/",
    "http://images.example.com:65536/",
    "http://images.example.com:port/",
    "http://images..example.com/",
    "http://-images.example.com/",
    "http://images example.com/",
    "http://images.example.com\x00.evil.example/",
    "http://images.example.com/\r\nHost:%20evil",
    "http://" + "a." * 130 + "example.com/",
    "http://images.example.com/" + "a" * 9000,
]


def bad_urls(port: int) -> list[str]:
    literals = [f"[{address}]" if ":" in address else address for address in ADDRESSES]
    return [f"http://{host}:{port}/cat.jpg" for host in [*literals, *SPELLINGS]]


async def refusals(guard: Guard, urls: Sequence[str]) -> list[str]:
    """The URLs that were not refused as they should."""
    wrong = []
    for url in urls:
        try:
            await guard.fetch(url, 1000, 5)
            wrong.append(f"{url[:100]}: answered")
        except ModelmillError as error:
            if error.code is not ErrorCode.MEDIA_SOURCE_REFUSED:
                wrong.append(f"{url[:100]}: {error.code} {error.message}")
    await guard.close()
    return wrong


def test_no_request_goes_to_what_is_not_public(network: Network) -> None:
    async def main() -> None:
        async with Listener() as listener:
            # All hosts may be named, so only the address speaks against them.
            assert await refusals(guard_of(), bad_urls(listener.port)) == []
            assert listener.connections == 0

    run(main())
    assert network.dialled == []


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("more", [(), (PUBLIC,)], ids=["alone", "with a public one"])
def test_a_name_that_leads_to_what_is_not_public_is_refused(
    network: Network, address: str, more: tuple[str, ...]
) -> None:
    guard = guard_of(resolve=network.resolver([*more, address]))
    with pytest.raises(RefusedError) as raised:
        run(fetched(guard, "http://images.example.com/cat.jpg"))
    assert raised.value.code is ErrorCode.MEDIA_SOURCE_REFUSED
    assert "images.example.com" in raised.value.message
    assert address not in raised.value.message
    assert (network.asked, network.dialled) == (["images.example.com"], [])


def test_a_scoped_address_of_a_name_is_refused(network: Network) -> None:
    with pytest.raises(RefusedError):
        run(fetched(guard_of(resolve=network.resolver(["2606:4700::1111%2"])), "http://images.example.com/"))
    assert network.dialled == []


def test_a_redirect_to_what_is_not_public_is_refused(network: Network) -> None:
    async def main() -> None:
        async with Listener() as listener:
            for url in [*bad_urls(listener.port), *FORMS[:4], "http://user:secret@images.example.com/"]:
                if url.startswith("//"):
                    continue  # relative, and so a good address
                at_once = redirecting(url.encode("ascii", "xmlcharrefreplace").decode())
                async with network.serving(at_once):
                    guard = guard_of(resolve=network.resolver([PUBLIC]))
                    if "localhost" in url.lower():
                        guard = guard_of(resolve=_by_name)
                    with pytest.raises(RefusedError):
                        await fetched(guard, "http://images.example.com/cat.jpg")
            assert listener.connections == 0

    async def _by_name(host: str, port: int) -> Sequence[str]:
        return [PUBLIC] if host == "images.example.com" else ["127.0.0.1", "::1"]

    run(main())
    assert set(network.dialled) == {PUBLIC}


def test_a_redirect_to_a_host_that_is_not_listed_is_refused(network: Network) -> None:
    async def main() -> None:
        async with network.serving(redirecting("https://elsewhere.example.org/cat.jpg")):
            guard = guard_of("*.example.com", resolve=network.resolver([PUBLIC]))
            with pytest.raises(RefusedError, match=r"elsewhere\.example\.org"):
                await fetched(guard, "http://images.example.com/cat.jpg")

    run(main())
    assert network.asked == ["images.example.com"]


def test_a_name_is_resolved_once_and_that_address_is_dialled(network: Network) -> None:
    """DNS rebinding: public when looked at, private when dialled."""

    async def main() -> None:
        async with network.serving(replying(b"picture")):
            guard = guard_of(resolve=network.resolver([PUBLIC], ["127.0.0.1"]))
            assert await guard.fetch("http://images.example.com/", 100, 5) == b"picture"
            assert (network.asked, network.dialled) == (["images.example.com"], [PUBLIC])
            with pytest.raises(RefusedError):
                await fetched(guard, "http://images.example.com/")
            assert network.dialled == [PUBLIC]

    run(main())


def test_metadata_services_stay_refused_within_a_private_network_that_is_allowed(network: Network) -> None:
    everything = "0.0.0.0/0, ::/0"
    for address in (
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "100.100.100.200",
        "fe80::1",
    ):
        guard = guard_of(private=everything, resolve=network.resolver([address]))
        with pytest.raises(RefusedError):
            run(fetched(guard, "http://images.example.com/"))
    assert network.dialled == []


def test_urls_of_other_forms_are_refused_without_a_look_at_the_network(network: Network) -> None:
    async def main() -> list[str]:
        return await refusals(guard_of(private="127.0.0.0/8", resolve=network.resolver([PUBLIC])), FORMS)

    assert run(main()) == []
    assert (network.asked, network.dialled) == ([], [])


def test_the_guard_of_webhooks_says_that_the_input_is_invalid() -> None:
    async def main() -> None:
        guard = Guard.for_webhooks(Settings(webhook_hosts="*.example.com"))
        with pytest.raises(RefusedError) as raised:
            guard.check_url("https://elsewhere.example.org/hook")
        assert raised.value.code is ErrorCode.INVALID_INPUT
        await guard.close()
        media = Guard.for_media(Settings())
        assert (guard.allows_any, media.allows_any) == (True, False)
        await media.close()

    run(main())


def test_media_of_an_allowed_private_network_are_fetched(network: Network) -> None:
    async def main() -> None:
        async with network.serving(replying(b"picture")) as port:
            guard = guard_of("localhost, 127.0.0.1", "127.0.0.0/8, ::1/128")
            assert await guard.fetch(f"http://localhost:{port}/a%20b?c=d#e", 7, 5) == b"picture"
            assert await fetched(guard, f"http://127.0.0.1:{port}", 7) == b"picture"

    run(main())
    first, second = (request.decode().lower() for request in network.requests)
    assert first.startswith("get /a%20b?c=d http/1.1\r\n")
    assert second.startswith("get / http/1.1\r\n")
    assert "accept-encoding: identity" in first
    for header in ("cookie", "authorization", "proxy"):
        assert header not in first


def test_redirects_are_followed_a_few_times_and_forget_headers(network: Network) -> None:
    async def hop(head: bytes, writer: asyncio.StreamWriter) -> None:
        number = int(head.split(b" ")[1].removeprefix(b"/"))
        if number == 0:
            return await replying()(head, writer)
        return await replying(b"", "307 Temporary Redirect", Location=number - 1, Set_Cookie="a=b")(
            head, writer
        )

    async def main() -> None:
        async with network.serving(hop) as port:
            guard = guard_of("127.0.0.1", "127.0.0.0/8")
            assert await guard.fetch(f"http://127.0.0.1:{port}/{MAX_REDIRECTS}", 100, 5) == b"picture"
            with pytest.raises(UnreachableError, match="redirects more than"):
                await fetched(guard, f"http://127.0.0.1:{port}/{MAX_REDIRECTS + 1}")

    run(main())
    assert all(b"cookie" not in request.lower() for request in network.requests)


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (endless, ErrorCode.MEDIA_TOO_LARGE, "more than the allowed 50000 bytes"),
        (replying(bytes(50_001)), ErrorCode.MEDIA_TOO_LARGE, "more than"),
        (replying(b"", Content_Length=10**15), ErrorCode.MEDIA_TOO_LARGE, "more than"),
        (dripping, ErrorCode.MEDIA_FETCH_FAILED, r"longer than 0\.3 s"),
        (silence, ErrorCode.MEDIA_FETCH_FAILED, r"longer than 0\.3 s"),
        (endless_header, ErrorCode.MEDIA_FETCH_FAILED, "the connection failed"),
        (nonsense, ErrorCode.MEDIA_FETCH_FAILED, "the connection failed"),
        (replying(b"short", Content_Length=10), ErrorCode.MEDIA_FETCH_FAILED, "the connection failed"),
        (replying(Content_Encoding="gzip"), ErrorCode.MEDIA_FETCH_FAILED, "compressed"),
        (replying(status="404 Not Found"), ErrorCode.MEDIA_FETCH_FAILED, "status 404"),
        (replying(status="206 Partial Content"), ErrorCode.MEDIA_FETCH_FAILED, "status 206"),
        (replying(status="302 Found"), ErrorCode.MEDIA_FETCH_FAILED, "status 302"),
        (replying(b"", Content_Length=10**30), ErrorCode.MEDIA_FETCH_FAILED, "the connection failed"),
        (redirecting("http://[/"), ErrorCode.MEDIA_SOURCE_REFUSED, "not a URL"),
    ],
)
def test_what_is_no_good_answer_is_an_error_within_its_bounds(
    network: Network, answer: Answer, code: ErrorCode, words: str
) -> None:
    async def main() -> None:
        async with network.serving(answer) as port:
            guard = guard_of("127.0.0.1", "127.0.0.0/8")
            timeout_s = 0.3 if answer in (dripping, silence) else 10.0
            with pytest.raises(ModelmillError, match=words) as raised:
                await fetched(guard, f"http://127.0.0.1:{port}/secret-path", 50_000, timeout_s)
            assert raised.value.code is code
            assert "secret-path" not in raised.value.message

    run(main())


def test_hosts_that_are_not_there_are_errors(network: Network) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError

    with pytest.raises(UnreachableError, match="no host images"):
        run(fetched(guard_of(resolve=unknown), "http://images.example.com/"))
    with pytest.raises(UnreachableError, match="no host images"):
        run(fetched(guard_of(resolve=network.resolver([])), "http://images.example.com/"))
    network.ports[PUBLIC] = 1
    with pytest.raises(UnreachableError, match="could not be reached"):
        run(fetched(guard_of(resolve=network.resolver([PUBLIC])), "http://images.example.com/"))


def test_only_so_many_requests_run_at_once_and_none_waits_for_ever(network: Network) -> None:
    async def main() -> None:
        two_are_there = asyncio.Event()

        async def hang(head: bytes, writer: asyncio.StreamWriter) -> None:
            if len(network.requests) == 2:
                two_are_there.set()
            await silence(head, writer)

        async with network.serving(hang) as port:
            guard = guard_of("127.0.0.1", "127.0.0.0/8", concurrency=2)
            url = f"http://127.0.0.1:{port}/"
            long = [asyncio.create_task(guard.fetch(url, 100, 60)) for _ in range(2)]
            await two_are_there.wait()
            with pytest.raises(UnreachableError, match="longer than"):
                await guard.fetch(url, 100, 0.1)
            for task in long:
                task.cancel()
            await asyncio.wait(long)
            await guard.close()

    run(main())
    assert len(network.dialled) == 2


def test_a_webhook_is_posted_and_its_answer_thrown_away(network: Network) -> None:
    async def main() -> None:
        guard = guard_of("127.0.0.1", "127.0.0.0/8")
        async with network.serving(replying(status="204 No Content")) as port:
            headers = {"Content-Type": "application/json", "webhook-id": "msg_1"}
            assert await guard.post(f"http://127.0.0.1:{port}/hook", b"{}", headers, 5) == 204
        async with network.serving(redirecting("http://127.0.0.1/elsewhere")) as port:
            assert await guard.post(f"http://127.0.0.1:{port}/", b"{}", {}, 5) == 302
        async with network.serving(endless) as port:
            assert await guard.post(f"http://127.0.0.1:{port}/", b"{}", {}, 5) == 200
        async with network.serving(dripping) as port:
            with pytest.raises(UnreachableError):
                await guard.post(f"http://127.0.0.1:{port}/", b"{}", {}, 0.3)
        with pytest.raises(RefusedError):
            await guard.post("http://10.0.0.1/", b"{}", {}, 5)
        await guard.close()

    run(main())
    head = network.requests[0].decode().lower()
    assert head.startswith("post /hook ")
    assert "content-length: 2" in head
    assert "webhook-id: msg_1" in head
    assert "host: 127.0.0.1:" in head


def test_certificates_must_be_for_the_name_and_from_a_trusted_authority(
    network: Network, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path, "images.example.com")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(cert, key)
    trusting: Mapping[str, Any] = {"tls": ssl.create_default_context(cafile=str(cert))}

    async def main() -> None:
        async with network.serving(replying(b"picture"), serving):
            resolve = network.resolver([PUBLIC])
            good = guard_of(resolve=resolve, **trusting)
            assert await fetched(good, "https://images.example.com/") == b"picture"
            for guard, host in (
                (guard_of(resolve=resolve), "images.example.com"),
                (guard_of(resolve=resolve, **trusting), "other.example.com"),
                (guard_of(resolve=resolve, **trusting), PUBLIC),
            ):
                with pytest.raises(UnreachableError, match="certificate was refused"):
                    await fetched(guard, f"https://{host}/")

    run(main())
    assert network.dialled == [PUBLIC] * 4


def test_authorities_that_are_gone_stop_https_and_nothing_else(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificate(tmp_path, "images.example.com")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(cert, key)
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    guard = Guard(Hosts("*", "fetch_hosts"), Networks(""), resolve=network.resolver([PUBLIC]))

    async def main() -> None:
        async with network.serving(replying(b"picture")):
            assert await fetched(guard, "http://images.example.com/") == b"picture"
        async with network.serving(replying(b"picture"), serving):
            with pytest.raises(UnreachableError, match="certificate was refused"):
                await fetched(guard, "https://images.example.com/")

    run(main())
    assert "cannot use HTTPS: SSL_CERT_FILE names /gone" in caplog.text
