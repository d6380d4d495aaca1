"""Makes every HTTP client of this project. It alone reads the environment's proxies and certificates.

The rules, for the one server that a client calls:

- A server on this machine is called directly. No proxy can reach the loopback addresses of another machine,
  so variables that are meant for the internet must not stop a program from talking to its own server.
- Otherwise ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` count, in capitals or in small
  letters, as they do for curl. httpx would read them too, but it raises on patterns that others take, such
  as ``::1/128``.
- Certificates are read only if the connection needs them.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import httpx

from modelmill.errors import ConfigError

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables that name certificate authorities, a file or a folder. The first one that is set counts."""
SOCKS = ("socks5", "socks5h")
PROXIES = ("http", "https", *SOCKS)


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """The proxy for one server.

    Attributes:
        variable: The variable that names it.
        url: It may hold a password.
    """

    variable: str
    url: str


def make_client(url: str, *, direct: bool = False, **arguments: Any) -> httpx.Client:
    """A blocking client of the server at ``url``.

    Args:
        url: The base of all its requests.
        direct: Never use a proxy: the caller knows that the server is on this machine.
        arguments: Further arguments of ``httpx.Client``.

    Raises:
        ConfigError: ``url``, or a variable that counts for it, cannot be used.
    """
    return httpx.Client(base_url=url, trust_env=False, **_transport(url, direct), **arguments)


def make_async_client(url: str, **arguments: Any) -> httpx.AsyncClient:
    """The same as ``make_client``, for asyncio."""
    return httpx.AsyncClient(base_url=url, trust_env=False, **_transport(url, False), **arguments)


def checked_url(text: str, name: str) -> str:
    """An address of a server, without space around it and slashes at its end.

    Args:
        text: What the user wrote.
        name: Where it was written, for messages.

    Raises:
        ConfigError: it is no ``http(s)`` URL with a host.
    """
    text = text.strip()
    if "://" not in text:
        raise ConfigError(f"{name} needs http:// or https:// before the host, such as http://127.0.0.1:8000.")
    try:
        url = httpx.URL(text)
        fits = url.scheme in ("http", "https") and bool(url.host) and not re.search(r"\s", text)
        fits = fits and (url.port is None or 0 < url.port < 65536) and not (url.query or url.fragment)
    except (httpx.InvalidURL, ValueError):
        fits = False
    if not fits:
        raise ConfigError(f"{name} is not a URL of a server, such as http://127.0.0.1:8000.")
    return text.rstrip("/")


def shown(url: httpx.URL) -> str:
    """A URL for messages: without its user name and password."""
    return f"{url.scheme}://{url.netloc.decode()}{url.path.rstrip('/')}"


def proxy_for(url: httpx.URL) -> ProxyChoice | None:
    """The proxy through which the environment wants a server to be called; None if there is none."""
    if is_this_machine(url.host):
        return None
    found = getproxies()
    for kind in (url.scheme, "all"):
        if address := (found.get(kind) or "").strip():
            if _is_exempt(url, found.get("no") or ""):
                return None
            return ProxyChoice(_variable(kind), address if "://" in address else f"http://{address}")
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host is this machine: a name or an address of it. No name is looked up."""
    host = host.lower().rstrip(".")
    if host in ("localhost", socket.gethostname().lower()) or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified:
        return True
    # A socket can be bound to the addresses of this machine only.
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def tls_context() -> ssl.SSLContext:
    """The certificate authorities that the environment names, or else those of certifi.

    Raises:
        ConfigError: the variable names a file or folder that cannot be read.
    """
    variable = next((name for name in CERTIFICATES if os.environ.get(name, "").strip()), None)
    if variable is None:
        return httpx.create_ssl_context(trust_env=False)
    place = Path(os.environ[variable].strip())
    try:
        if place.is_dir():
            return ssl.create_default_context(capath=str(place))
        return ssl.create_default_context(cafile=str(place))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else None
        raise ConfigError(
            f"{variable} names {place}, which cannot be used for HTTPS: "
            f"{reason or 'it holds no certificates'}. Correct the variable, or unset it."
        ) from None


def no_authorities() -> ssl.SSLContext:
    """Trusts no certificate: every HTTPS connection fails. It reads no file."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _transport(text: str, direct: bool) -> dict[str, Any]:
    """The arguments of an httpx client that depend on the environment."""
    url = httpx.URL(text)
    chosen = None if direct else proxy_for(url)
    needs_tls = url.scheme == "https" or (chosen is not None and chosen.url.lower().startswith("https:"))
    context = tls_context() if needs_tls else no_authorities()
    proxy = None if chosen is None else _made(chosen, context)
    return {"verify": context, "proxy": proxy}


def _made(chosen: ProxyChoice, context: ssl.SSLContext) -> httpx.Proxy:
    try:
        url = httpx.URL(chosen.url)
        scheme = url.scheme
        if scheme not in PROXIES or not url.host or re.search(r"\s", chosen.url):
            raise ValueError(scheme)
        proxy = httpx.Proxy(url, ssl_context=context if scheme == "https" else None)
    except (httpx.InvalidURL, ValueError):
        raise ConfigError(
            f"{chosen.variable} is not the URL of a proxy. Write http://HOST:PORT or socks5://HOST:PORT, "
            "or name the server in NO_PROXY."
        ) from None
    if scheme in SOCKS and find_spec("socksio") is None:
        raise ConfigError(
            f"{chosen.variable} names a SOCKS proxy, and the package for it is not installed: "
            "pip install 'httpx[socks]'. Or name the server in NO_PROXY."
        )
    return proxy


def _variable(kind: str) -> str:
    """The name under which the environment holds the proxy of this kind."""
    small = f"{kind}_proxy"
    return next((name for name in (small, small.upper()) if os.environ.get(name)), small.upper())


def _is_exempt(url: httpx.URL, patterns: str) -> bool:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return any(_matches(pattern, url.host, port) for pattern in re.split(r"[\s,]+", patterns) if pattern)


def _matches(pattern: str, host: str, port: int | None) -> bool:
    """Whether one entry of ``NO_PROXY`` means this host.

    An entry is ``*``; a name, which also means all names below it; an address; or a network. A name or an
    address may have a port, and a scheme, which is ignored.
    """
    pattern = pattern.lower().rpartition("://")[2]
    if pattern == "*":
        return True
    pattern, wanted_port = _without_port(pattern)
    if wanted_port is not None and wanted_port != port:
        return False
    host = host.lower().rstrip(".")
    try:
        return ip_address(host) in ip_network(pattern, strict=False)
    except ValueError:
        name = pattern.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))


def _without_port(pattern: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[(.*)\](?::(\d+))?", pattern)
    if bracketed:
        return bracketed[1], None if bracketed[2] is None else int(bracketed[2])
    # An address of version 6 without brackets has no port.
    if pattern.count(":") == 1:
        name, _, port = pattern.partition(":")
        if port.isdecimal():
            return name, int(port)
    return pattern, None
