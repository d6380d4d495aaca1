"""The address of `modelmill up`, and the check that no other program answers there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from modelmill.errors import ConfigError
from modelmill_cli.addresses import free_port_of, listens, url_of


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8931"),
        ("0.0.0.0", "http://127.0.0.1:8931"),
        ("::1", "http://[::1]:8931"),
        ("::", "http://[::1]:8931"),
        ("mill.internal", "http://mill.internal:8931"),
    ],
)
def test_an_address_becomes_a_url(host: str, url: str) -> None:
    assert url_of(host, 8931) == url


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(ConfigError, match=rf"Port {port} is taken. Choose another with --port."):
                free_port_of(host, port)
    assert free_port_of("127.0.0.1", port) == port
    assert free_port_of("127.0.0.1", 0) > 0


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(ConfigError, match=r"The API cannot listen at 192\.0\.2\.1, port 8931: "):
        free_port_of("192.0.2.1", 8931)


def test_who_listens_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert listens(os.getpid(), port)
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert not listens(other.pid, port)
        other.communicate()
    assert not listens(os.getpid(), port)
