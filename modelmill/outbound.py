"""The guard for requests that the API sends because a caller asked for them: media by URL, and webhooks.

Two checks are made for each request and each redirect: is the host allowed (a list of patterns), and is
its address public? The second check is made on the address to which the connection goes. So a name that
resolves to another address the second time does not help an attacker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpcore
import httpx

from modelmill import __version__
from modelmill.errors import ConfigError, ErrorCode, MediaError
from modelmill.hosts import Hosts, Networks, Target, is_literal, parse_url
from modelmill.http_client import no_authorities, tls_context
from modelmill.settings import Settings

logger = logging.getLogger(__name__)

MAX_REDIRECTS = 3
MAX_DIALLED = 4
"""Most addresses of one host that are tried, one after the other."""
DIAL_S = 5.0
"""How long connecting to one of them may take."""
DISCARDED_BYTES = 64 * 1024
"""Most bytes that are read of a response that is not used."""
RESOLVING_THREADS = 8

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host, as text; raises ``OSError`` if there are none."""


class RefusedError(MediaError):
    """Raised for a URL that is not allowed, because of its form, its host, or the address of its host."""


class UnreachableError(MediaError):
    """Raised when an allowed URL gave no response, or not the expected one."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.MEDIA_FETCH_FAILED, message)


class _Dialler(httpcore.AsyncNetworkBackend):
    """Resolves a host once, checks each of its addresses, and connects to exactly these addresses.

    httpcore starts TLS with the name of the host, so the certificate must be for the name.
    """

    def __init__(self, networks: Networks, resolve: Resolver, refusal: ErrorCode) -> None:
        self._networks = networks
        self._resolve = resolve
        self._refusal = refusal
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 as httpcore calls it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = [host] if is_literal(host) else await self._resolved(host, port)
        # One address that is not public is enough for a refusal: chance decides which one is used.
        if not all(self._networks.allows(address) for address in addresses):
            raise RefusedError(
                self._refusal, f"{host} is refused: it leads to an address that is not public."
            )
        last: Exception | None = None
        for address in addresses[:MAX_DIALLED]:
            try:
                return await self._plain.connect_tcp(address, port, DIAL_S, None, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise UnreachableError(f"{host} could not be reached.") from last

    async def _resolved(self, host: str, port: int) -> list[str]:
        try:
            addresses = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise UnreachableError(f"There is no host {host}, or its name could not be resolved.")
        return addresses

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise RefusedError(self._refusal, "Unix sockets are not allowed.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Guard:
    """Sends requests for callers, and only to allowed hosts and addresses.

    It uses httpcore, not httpx: httpcore has no proxies, cookies, passwords, redirects or compression,
    so none of these must be switched off. A proxy would resolve names itself, behind the guard.

    Args:
        hosts: The allowed hosts.
        networks: The allowed addresses.
        refusal: The code of a refusal.
        resolve: Replaces the system's resolver.
        tls: Replaces the certificate authorities of the environment.
        concurrency: Most requests at once. Further ones wait; this counts as part of their time.
    """

    def __init__(
        self,
        hosts: Hosts,
        networks: Networks,
        refusal: ErrorCode = ErrorCode.MEDIA_SOURCE_REFUSED,
        *,
        resolve: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        concurrency: int = 32,
    ) -> None:
        self._hosts = hosts
        self._networks = networks
        self._refusal = refusal
        # Threads of its own: if name servers do not answer, they must not block the threads of other work.
        self._threads = ThreadPoolExecutor(RESOLVING_THREADS, thread_name_prefix="resolver")
        self._slots = asyncio.Semaphore(concurrency)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or _authorities(),
            max_connections=concurrency,
            keepalive_expiry=5.0,
            network_backend=_Dialler(networks, resolve or self._look_up, refusal),
        )

    @classmethod
    def for_media(cls, settings: Settings) -> Guard:
        return cls(Hosts(settings.fetch_hosts, "fetch_hosts"), Networks(settings.private_networks))

    @classmethod
    def for_webhooks(cls, settings: Settings) -> Guard:
        hosts = Hosts(settings.webhook_hosts, "webhook_hosts")
        return cls(hosts, Networks(settings.private_networks), ErrorCode.INVALID_INPUT)

    async def close(self) -> None:
        await self._pool.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def allows_any(self) -> bool:
        """Whether at least one host is allowed."""
        return bool(self._hosts)

    def check_url(self, url: str) -> None:
        """Checks a URL as far as possible without resolving the host.

        Raises:
            RefusedError: it is not an ``http(s)`` URL, or its host is not allowed.
        """
        self._target(url)

    async def fetch(self, url: str, limit_bytes: int, timeout_s: float) -> bytes:
        """The content of ``url``, at most ``limit_bytes``, within ``timeout_s`` for everything together.

        Raises:
            RefusedError: the URL, or the target of a redirect, is not allowed.
            UnreachableError: there was no response, not one with status 200, or it was too slow.
            MediaError: ``media_too_large``.
        """
        target = self._target(url)
        async with self._bounded(target, timeout_s):
            for _ in range(MAX_REDIRECTS + 1):
                found = await self._get(target, limit_bytes)
                if isinstance(found, bytes):
                    return found
                target = found
        raise UnreachableError(f"{target.host} redirects more than {MAX_REDIRECTS} times.")

    async def post(self, url: str, content: bytes, headers: Mapping[str, str], timeout_s: float) -> int:
        """Sends ``content``, and returns the status of the response. Its body is dropped; redirects are
        not followed.

        Raises:
            RefusedError: ``url`` is not allowed.
            UnreachableError: there was no response within ``timeout_s``.
        """
        target = self._target(url)
        async with (
            self._bounded(target, timeout_s),
            self._exchange("POST", target, headers, content) as answer,
        ):
            left = DISCARDED_BYTES
            async for chunk in answer.aiter_stream():
                left -= len(chunk)
                if left < 0:
                    break
            return answer.status

    def _target(self, url: str) -> Target:
        try:
            target = parse_url(url)
        except ValueError as error:
            raise RefusedError(self._refusal, str(error)) from None
        if target.host not in self._hosts:
            raise RefusedError(self._refusal, f"{target.host} is not an allowed host.")
        if is_literal(target.host) and not self._networks.allows(target.host):
            raise RefusedError(self._refusal, f"{target.host} is refused: it is not a public address.")
        return target

    async def _get(self, target: Target, limit_bytes: int) -> bytes | Target:
        """The body, or the target of a redirect."""
        # No compression: the size would be known only after unpacking.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        async with self._exchange("GET", target, headers) as answer:
            fields = httpx.Headers(answer.headers)
            if answer.status in (301, 302, 303, 307, 308) and "location" in fields:
                try:
                    return self._target(str(target.url.join(fields["location"])))
                except httpx.InvalidURL:
                    raise RefusedError(
                        self._refusal, f"{target.host} redirects to text that is not a URL."
                    ) from None
            if answer.status != 200:
                raise UnreachableError(f"{target.host} answered with status {answer.status}.")
            if fields.get("content-encoding", "identity").lower() != "identity":
                raise UnreachableError(f"{target.host} sent compressed data, which was not requested.")
            announced = fields.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > limit_bytes:
                raise _too_large(target, limit_bytes)
            content = bytearray()
            async for chunk in answer.aiter_stream():
                content += chunk
                if len(content) > limit_bytes:
                    raise _too_large(target, limit_bytes)
            return bytes(content)

    @asynccontextmanager
    async def _exchange(
        self, method: str, target: Target, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpcore.Response]:
        own = {"Host": target.host_header, "User-Agent": f"modelmill/{__version__}"}
        try:
            async with self._pool.stream(
                method, target.core, headers=list({**own, **headers}.items()), content=content
            ) as answer:
                yield answer
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            # More detail would tell the caller too much about a network that is not its own.
            reason = "its certificate was refused" if _is_certificate(error) else "the connection failed"
            raise UnreachableError(f"{target.host} gave no answer: {reason}.") from error

    @asynccontextmanager
    async def _bounded(self, target: Target, timeout_s: float) -> AsyncIterator[None]:
        """Waits for a slot, and limits everything together to ``timeout_s``, also a response that comes
        byte by byte."""
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                yield
        except TimeoutError:
            raise UnreachableError(f"{target.host} took longer than {timeout_s:g} s.") from None

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        def look_up() -> Sequence[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            # The scope becomes part of the address, so that the check sees it and refuses the address.
            return [f"{at[0]}%{at[3]}" if len(at) == 4 and at[3] else str(at[0]) for *_, at in found]

        return await asyncio.get_running_loop().run_in_executor(self._threads, look_up)


def _authorities() -> ssl.SSLContext:
    try:
        return tls_context()
    except ConfigError as error:
        # Jobs need no certificates, so this must not stop the API. HTTPS fails until it is corrected.
        logger.warning("media and webhooks cannot use HTTPS: %s", error)
        return no_authorities()


def _is_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _too_large(target: Target, limit_bytes: int) -> MediaError:
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE, f"{target.host} sends more than the allowed {limit_bytes} bytes."
    )
