"""Which node should answer a bell: models spread over nodes by demand, not by accident.

The rule, asked by a node that has not loaded the model whose bell it took:

1. Where live nodes have the model loaded and its backlog is short, one of them gets the bell. Short is what
   they get through within ``spread_after_s`` or within the time it takes to load the model, whichever is
   longer; two batches, as long as nobody knows how fast the model is.
2. With a long backlog, this node loads the model too, if it has room for it or its own models lie idle.
3. Where nobody has the model, a node with room for it goes before one that would have to evict another.

A bell is passed on once at most, so a wrong guess costs a hop and never a loop.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.store import NodeRecord

IDLE_AFTER_S = 30.0
"""A node whose models were not used for this long may evict them for another model's backlog."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a model that is wanted.

    Attributes:
        model: Its name.
        backlog: Jobs that wait for it.
        rate: Jobs a second of one node that has it; None when nobody knows yet.
        max_batch: Its batch size.
        memory_mib: Estimate of what it takes when loaded.
    """

    model: str
    backlog: int
    rate: float | None
    max_batch: int
    memory_mib: int


def better_node(
    demand: Demand, own_name: str, nodes: Sequence[NodeRecord], spread_after_s: float
) -> str | None:
    """The node to pass a bell to, or None to answer it here.

    Args:
        demand: The model, not loaded here.
        own_name: This node.
        nodes: All nodes that live, this one among them.
        spread_after_s: The setting.
    """
    own = next((node for node in nodes if node.name == own_name), None)
    others = [node for node in nodes if node.name != own_name and demand.model in node.models and node.child]
    loaded = [node for node in others if node.state_of(demand.model).get("status") in ("running", "loading")]
    has_room = own is None or _has_room(own, demand.memory_mib)
    if loaded:
        stay = not _is_long(demand, loaded, spread_after_s) or not (has_room or _is_idle(own))
        return random.choice(loaded).name if stay else None  # noqa: S311 - no secret
    if has_room:
        return None
    roomy = [node for node in others if _has_room(node, demand.memory_mib)]
    return roomy[0].name if roomy else None


def _is_long(demand: Demand, loaded: Sequence[NodeRecord], spread_after_s: float) -> bool:
    if demand.rate is None:
        return demand.backlog > 2 * demand.max_batch
    load_s = max(node.state_of(demand.model).get("load_s") or 0.0 for node in loaded)
    return demand.backlog > demand.rate * len(loaded) * max(spread_after_s, load_s)


def _has_room(node: NodeRecord, needed_mib: int) -> bool:
    if not any(
        state.get("status") in ("running", "loading") for state in node.child.get("models", {}).values()
    ):
        return True  # nothing to evict: a model larger than the budget still runs alone
    return bool(node.child.get("free_mib", 0) >= needed_mib)


def _is_idle(node: NodeRecord | None) -> bool:
    return node is None or bool(node.child.get("idle_s", 0.0) > IDLE_AFTER_S)
