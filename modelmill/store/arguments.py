"""The arguments of each Lua script, listed once. From here come the locals in Lua and the order in
which Python packs.

``name: number`` becomes a number in Lua; an empty argument becomes nil.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Argument = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of one script: ``names`` first, then any number of groups, or of plain values."""

    names: tuple[str, ...]
    group: tuple[str, ...] = ()
    """The names in each group. In Lua, ``group(i)`` returns the values of the group that begins at
    ``ARGV[i]``. The first group begins at ``FIRST``, the next one ``STEP`` later."""

    def as_lua(self) -> str:
        """The Lua lines that define one local for each name, and ``FIRST``, ``STEP`` and ``group``."""
        lines = []
        if self.names:
            names = ", ".join(name.partition(":")[0] for name in self.names)
            values = ", ".join(_value(name, index) for index, name in enumerate(self.names, 1))
            lines.append(f"local {names} = {values}")
        lines.append(f"local FIRST = {len(self.names) + 1}")
        if self.group:
            values = ", ".join(f"ARGV[i + {index}]" for index in range(len(self.group)))
            lines.append(f"local STEP = {len(self.group)}")
            lines.append(f"local function group(i) return {values} end")
        return "\n".join(lines)


def _value(name: str, index: int) -> str:
    return f"tonumber(ARGV[{index}])" if name.endswith(": number") else f"ARGV[{index}]"


SIGNATURES = {
    "announce": Signature(("node", "part", "document", "ttl_ms")),
    "beat": Signature(("lease_ms: number",), group=("id", "claim_fence", "progress")),
    "cancel": Signature(("id", "result_ttl_ms: number")),
    "claim": Signature(
        (
            "model",
            "fence",
            "node",
            "max_count: number",
            "max_bytes: number",
            "lease_ms: number",
            "max_deliveries: number",
            "result_ttl_ms: number",
            "linger_ms: number",
            "served",
        )
    ),
    "delete": Signature(("result_ttl_ms: number",)),
    "file_add": Signature(("id", "owner", "ttl_ms: number")),
    "file_delete": Signature(("id", "owner")),
    "file_reserve": Signature(("id", "bytes: number", "max_bytes: number", "write_ms: number", "blob")),
    "hook_body": Signature(("id", "event", "leased_until_ms: number", "body")),
    "hook_claim": Signature(("count: number", "lease_ms: number")),
    "hook_log": Signature(("id",)),
    "hook_secret": Signature(("caller", "fresh", "rotate", "old_ms: number")),
    "hook_settle": Signature(
        ("id", "event", "leased_until_ms: number", "verdict", "delay_ms: number", "attempt")
    ),
    "layout": Signature(("version: number",)),
    "parts": Signature(("id",)),
    "reap": Signature(("lease_ms: number", "result_ttl_ms: number", "at_most: number")),
    "settle": Signature(
        ("result_ttl_ms: number",), group=("id", "claim_fence", "outcome", "where", "result", "field_count")
    ),
    "submit": Signature(
        (
            "id",
            "task",
            "model",
            "lane",
            "rank: number",
            "batched",
            "items",
            "bytes: number",
            "caller",
            "idempotency_key",
            "body_hash",
            "idempotency_ttl_ms: number",
            "expires_in_ms: number",
            "bell_every: number",
            "max_depth: number",
            "max_bytes: number",
            "max_share: number",
            "max_open: number",
            "interval_ms: number",
            "burst: number",
            "files",
            "blob",
        )
    ),
    "sweep": Signature(("file_ttl_ms: number", "at_most: number")),
}

_NAMES = {
    script: tuple(name.partition(":")[0] for name in signature.names)
    for script, signature in SIGNATURES.items()
}


def pack(script: str, rest: Sequence[Argument] = (), /, **arguments: Argument) -> list[Argument]:
    """The arguments of a script in their order, and ``rest`` after them.

    Raises:
        TypeError, KeyError: the arguments are not those of the script.
    """
    names = _NAMES[script]
    if len(arguments) != len(names):
        raise TypeError(f"{script}.lua takes {', '.join(names)}, not {', '.join(arguments)}")
    return [*[arguments[name] for name in names], *rest]


def pack_group(script: str, /, **arguments: Argument) -> list[Argument]:
    """One group of a script's arguments, in their order.

    Raises:
        TypeError, KeyError: the arguments are not those of a group of the script.
    """
    names = SIGNATURES[script].group
    if len(arguments) != len(names):
        raise TypeError(f"a group of {script}.lua has {', '.join(names)}, not {', '.join(arguments)}")
    return [arguments[name] for name in names]
