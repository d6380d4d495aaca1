"""The address at which the API listens: its URL, whether it is free, and which process listens there."""

from __future__ import annotations

import errno
import socket

import psutil

from modelmill.errors import ConfigError


def url_of(host: str, port: int) -> str:
    """The URL of an API that listens at this address and port."""
    # A server can listen at an unspecified address, but a client cannot connect to one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 # nosec B104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port_of(host: str, port: int) -> int:
    """The port, if a server can listen there; a free port for 0.

    Raises:
        ConfigError: the port is taken, or the address does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            # As servers do, so that closing connections of an earlier server do not count as a taken port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return int(listener.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"Port {port} is taken. Choose another with --port.") from None
        reason = error.strerror or error
        raise ConfigError(f"The API cannot listen at {host}, port {port}: {reason}.") from None


def listens(pid: int, port: int) -> bool:
    """Whether this process, or one that it started, listens on the port."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        found = [connection for each in family for connection in each.net_connections("tcp")]
    except psutil.Error:
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)
