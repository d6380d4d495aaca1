"""Running workers, and what they announce."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import redis

from modelmill import processes
from modelmill.store import keys


@dataclass
class Workers:
    """A running `modelmill worker`: a supervisor and its nodes."""

    process: subprocess.Popen[bytes]
    name: str
    log: Path

    def stop(self, grace_s: float = 30.0) -> int:
        """Sends SIGTERM. Returns the exit status."""
        assert processes.stop(self.process, grace_s), self.log.read_text()
        return self.process.returncode


def live_nodes(client: redis.Redis, name: str) -> dict[str, dict[str, Any]]:
    """What the nodes of one supervisor announce: ``{node: {"parent": …, "child": …}}``.

    A node is in it once its parent and its child have announced themselves.
    """

    nodes: dict[str, dict[str, Any]] = {}
    for key in (cast("bytes", found).decode() for found in client.scan_iter(f"{keys.NODE}{name}-*")):
        fields = {
            part.decode(): json.loads(text)
            for part, text in cast("dict[bytes, bytes]", client.hgetall(key)).items()
        }
        if {"parent", "child"} <= fields.keys():
            nodes[key.removeprefix(keys.NODE)] = fields
    return nodes
