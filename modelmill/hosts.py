"""Hosts and addresses that requests may go to: how they are written, and which of them are public."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpcore
import httpx

from modelmill.errors import ConfigError

MAX_URL_LENGTH = 8192

Address = IPv4Address | IPv6Address
NAT64 = ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ip_network("2000::/3")
CARRIERS = tuple(ip_network(text) for text in ("2001::/32", "2002::/16", "3fff::/20", "192.88.99.0/24"))
"""Teredo and 6to4, which lead to the IPv4 address inside them, and a range for documentation."""
NEVER = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",
        "fe80::/10",
        # Metadata services of clouds: they give credentials to every client.
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "fd00:ec2::/32",
        "fd00:42::42/128",
        "fd20:ce::254/128",
    )
)
"""Never allowed, not even within a private network that is allowed."""

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose form is valid."""

    url: httpx.URL
    host: str
    """In lower case and IDNA, without a dot at its end; an IP address in its shortest form."""

    @property
    def core(self) -> httpcore.URL:
        return httpcore.URL(
            scheme=self.url.raw_scheme,
            host=self.host.encode("ascii"),
            port=self.url.port,
            target=self.url.raw_path,
        )

    @property
    def host_header(self) -> str:
        bracketed = f"[{self.host}]" if ":" in self.host else self.host
        return bracketed if self.url.port is None else f"{bracketed}:{self.url.port}"


def parse_url(url: str) -> Target:
    """Reads an ``http(s)`` URL.

    Raises:
        ValueError: it is not such a URL, it has a user or a password, or its host can be read in two ways.
    """
    if len(url) > MAX_URL_LENGTH:
        raise ValueError(f"A URL has at most {MAX_URL_LENGTH} characters.")
    try:
        parsed = httpx.URL(url)
        host = _plain_host(parsed.raw_host.decode("ascii"))
        if parsed.port is not None and not 0 < parsed.port < 65536:
            raise ValueError(parsed.port)
    except (httpx.InvalidURL, ValueError):
        raise ValueError("This is not a URL with a valid host.") from None
    if parsed.scheme not in ("http", "https"):
        raise ValueError("Only http and https URLs are allowed.")
    if parsed.userinfo:
        raise ValueError("A URL must not contain a user or a password.")
    return Target(parsed, host)


def _plain_host(host: str) -> str:
    """The canonical form of a host. Raises ``ValueError`` for a form that resolvers read in different
    ways."""
    host = host.lower().removesuffix(".")
    literal = _literal(host)
    if isinstance(literal, IPv6Address) and literal.scope_id is not None:
        raise ValueError(host)  # it means another host on each interface
    if literal is not None:
        return str(literal)
    # A host that ends in a number is an address (URL standard, "ends in a number"): octal, hexadecimal,
    # or one large number. Only the usual form is allowed.
    if len(host) > 253 or not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ValueError(host)
    return host


def is_literal(host: str) -> bool:
    """Whether this is an IP address, not a name."""
    return _literal(host) is not None


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


class Hosts:
    """Patterns of hosts: ``images.example.com``; ``*.example.com`` for all hosts below it; ``*`` for all."""

    def __init__(self, patterns: str, setting: str) -> None:
        """Raises ``ConfigError``, which names ``setting``, for a pattern that can match no host."""
        self._exact: set[str] = set()
        self._below: list[str] = []
        self._all = False
        for pattern in _listed(patterns):
            try:
                self._add(pattern)
            except (ValueError, httpx.InvalidURL):
                raise ConfigError(
                    f"{setting}: {pattern!r} is not a host; write images.example.com, *.example.com or *."
                ) from None

    def _add(self, pattern: str) -> None:
        if pattern == "*":
            self._all = True
            return
        wild, name = pattern.startswith("*."), pattern.removeprefix("*.")
        if ":" in name and not name.startswith("["):
            name = f"[{name}]"
        parsed = httpx.URL(f"http://{name}")
        if parsed.port is not None or parsed.raw_path != b"/" or parsed.userinfo:
            raise ValueError(pattern)
        host = _plain_host(parsed.raw_host.decode("ascii"))
        if not wild:
            self._exact.add(host)
        elif _literal(host) is None:
            self._below.append("." + host)
        else:
            raise ValueError(pattern)

    def __contains__(self, host: str) -> bool:
        return self._all or host in self._exact or any(host.endswith(end) for end in self._below)

    def __bool__(self) -> bool:
        return self._all or bool(self._exact) or bool(self._below)


class Networks:
    """The addresses to which connections are allowed: public ones, and those of networks that the
    operator names."""

    def __init__(self, networks: str) -> None:
        """Raises ``ConfigError`` for text that is not a network."""
        try:
            self._more = [ip_network(text, strict=False) for text in _listed(networks)]
        except ValueError as error:
            raise ConfigError(f"private_networks: {error}") from None

    def allows(self, text: str) -> bool:
        """Whether a connection to the address is allowed. An address that contains an IPv4 address
        counts as that."""
        address = _literal(text)
        if address is None or (isinstance(address, IPv6Address) and address.scope_id is not None):
            return False
        if isinstance(address, IPv6Address):
            address = _carried(address) or address
        if any(address in network for network in NEVER):
            return False
        return _is_public(address) or any(address in network for network in self._more)


def _carried(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 host that a mapped address, or one behind a NAT64 gateway (RFC 6052), means."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None


def _is_public(address: Address) -> bool:
    # No address outside 2000::/3 is public: also not fec0::/10, which Python counts as global, the
    # IPv4-compatible ::/96, and 64:ff9b:1::/48, the NAT64 of a local network.
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return address.is_global and not any(address in network for network in CARRIERS)


def _listed(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]
