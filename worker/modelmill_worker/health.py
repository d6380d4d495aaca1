"""A container's health check: ``python -P -m modelmill_worker.health``.

It exits 0 if a node of this host is alive. ``-P`` keeps the working directory off ``sys.path``: a file
``redis.py`` there would hide the library.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from modelmill.errors import ConfigError, ModelmillError
from modelmill.settings import get_settings
from modelmill.store import ApiStore


async def _nodes_here() -> int:
    store = ApiStore(get_settings())
    try:
        nodes = await store.nodes()
    finally:
        await store.close()
    return sum(node.parent.host == socket.gethostname() and node.child is not None for node in nodes)


def main() -> int:
    try:
        count = asyncio.run(_nodes_here())
    except (ConfigError, ModelmillError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} live nodes on this host\n")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
