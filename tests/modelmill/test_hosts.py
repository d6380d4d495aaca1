"""How hosts are written, and which addresses are public. Refusals in full: test_outbound.py."""

from __future__ import annotations

import pytest

from modelmill.errors import ConfigError
from modelmill.hosts import Hosts, Networks, parse_url

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        ("", [], ["images.example.com"]),
        ("*", ["images.example.com", PUBLIC], []),
        (
            "images.example.com, cdn.example.org",
            ["IMAGES.Example.COM", "images.example.com.", "cdn.example.org"],
            ["example.com", "a.images.example.com", "images.example.com.evil.org", "evilimages.example.com"],
        ),
        ("*.Example.com", ["a.example.com", "a.b.EXAMPLE.com"], ["example.com", "evilexample.com"]),
        ("bücher.example", ["xn--bcher-kva.example", "BÜCHER.example"], ["bucher.example"]),
        ("*.bücher.example", ["a.xn--bcher-kva.example"], ["bücher.example"]),
        (f"{PUBLIC}, 2606:4700::1111", [PUBLIC, "[2606:4700:0::1111]"], ["93.184.216.35"]),
    ],
)
def test_hosts_are_matched_by_patterns(patterns: str, allowed: list[str], refused: list[str]) -> None:
    hosts = Hosts(patterns, "fetch_hosts")
    for host in allowed:
        assert parse_url(f"https://{host}/cat.jpg").host in hosts
    for host in refused:
        assert parse_url(f"https://{host}/cat.jpg").host not in hosts
    assert bool(hosts) == bool(patterns)


@pytest.mark.parametrize(
    "pattern", ["http://a.example", "a.example:80", "a.example/x", "*example.com", "*.1.2.3.4", "a.*.example"]
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match="fetch_hosts"):
        Hosts(pattern, "fetch_hosts")
    with pytest.raises(ConfigError, match="private_networks"):
        Networks("10.0.0.0/33")


@pytest.mark.parametrize(
    ("address", "networks", "allowed"),
    [
        (PUBLIC, "", True),
        ("2606:4700::1111", "", True),
        (f"::ffff:{PUBLIC}", "", True),
        (f"64:ff9b::{PUBLIC}", "", True),
        ("10.1.2.3", "10.1.0.0/16, fd12::/16", True),
        ("10.2.0.1", "10.1.0.0/16, fd12::/16", False),
        ("::ffff:10.1.2.3", "10.1.2.3", True),
        ("fd12::1", "10.1.0.0/16, fd12::/16", True),
        ("fd12::1%2", "fd12::/16", False),
        ("images.example.com", "0.0.0.0/0", False),
    ],
)
def test_public_addresses_and_those_of_named_networks_may_be_asked(
    address: str, networks: str, allowed: bool
) -> None:
    assert Networks(networks).allows(address) is allowed


def test_a_host_is_written_in_one_way() -> None:
    assert parse_url("HTTP://BÜCHER.Example.:80/x").host == "xn--bcher-kva.example"
    assert parse_url("http://[2606:4700:0:0::1111]:8080/x").host_header == "[2606:4700::1111]:8080"
    assert parse_url("https://images.example.com/x").host_header == "images.example.com"
