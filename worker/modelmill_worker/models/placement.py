"""Which node should answer a bell: models spread over nodes by demand, not by accident.

The rule, asked by a node that has not loaded the model whose bell it took:

1. A node that cannot load the model passes the bell to one that may, whatever the backlog: to one that has
   it, else to one with room, else to any. A node cannot if its device is not among the model's, or if loading
   failed there and it rests until it tries again. A node with a GPU also runs models for the CPU, on that of
   its host, but leaves them to nodes of CPUs where it can.
2. Where live nodes have the model loaded and its backlog is short, one of them gets the bell. Short is what
   they get through within ``spread_after_s`` or within the time it takes to load the model, whichever is
   longer; two batches, as long as nobody knows how fast the model is.
3. With a long backlog, this node loads the model too, if it has room for it or its own models lie idle.
4. Where nobody has the model, a node with room for it goes before one that would have to evict another.

A bell is passed on once at most by this rule, so a wrong guess costs a hop and never a loop. Once more each
time that loading fails, to nodes where it has not failed: each hop leaves one of those less.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.states import ModelPhase
from modelmill.store import NodeRecord

IDLE_AFTER_S = 30.0
"""A node whose models were not used for this long may evict them for another model's backlog."""
IN_MEMORY = (ModelPhase.RUNNING, ModelPhase.LOADING)
"""Phases in which a model takes memory on a node."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a model that is wanted.

    Attributes:
        model: Its name.
        backlog: Jobs that wait for it.
        rate: Jobs a second of one node that has it; None when nobody knows yet.
        max_batch: Its batch size.
        memory_mib: Estimate of what it takes when loaded.
        devices: The kinds of device that it runs on.
        device: The kind of this node's device.
        rests: Whether loading it failed here and is not tried again yet.
    """

    model: str
    backlog: int
    rate: float | None
    max_batch: int
    memory_mib: int
    devices: tuple[str, ...] = ("cpu", "cuda")
    device: str = "cpu"
    rests: bool = False


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
    if demand.rests or demand.device not in demand.devices:
        return other_node(demand, own_name, nodes)
    own = next((node for node in nodes if node.name == own_name), None)
    others = [node for node in _able(demand, own_name, nodes) if _is_at_home(demand, node)]
    loaded = [node for node in others if _has(node, demand.model)]
    has_room = own is None or _has_room(own, demand.memory_mib)
    if loaded:
        stay = not _is_long(demand, loaded, spread_after_s) or not (has_room or _is_idle(own))
        return random.choice(loaded).name if stay else None  # noqa: S311 - no secret
    if has_room:
        return None
    roomy = [node for node in others if _has_room(node, demand.memory_mib)]
    return roomy[0].name if roomy else None


def other_node(
    demand: Demand, own_name: str, nodes: Sequence[NodeRecord], *, retry: bool = True
) -> str | None:
    """Another node that may load the model, the likeliest first; None if there is none.

    Args:
        demand: The model, which this node cannot load.
        own_name: This node.
        nodes: All nodes that live.
        retry: Whether a node counts where loading failed before and that may try again by now.
    """
    able = _able(demand, own_name, nodes)
    groups = [[node for node in able if _is_at_home(demand, node)]]
    if demand.rests or not _runs_on(demand.device, demand):
        groups.append([node for node in able if not _is_at_home(demand, node)])
        if retry:
            groups.append(
                [node for node in _served(demand, own_name, nodes) if _may_retry(node, demand.model)]
            )
    for group in groups:
        loaded = [node for node in group if _has(node, demand.model)]
        roomy = [node for node in group if _has_room(node, demand.memory_mib)]
        if found := loaded or roomy or group:
            return random.choice(found).name  # noqa: S311 - no secret
    return None


def _served(demand: Demand, own_name: str, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
    """Other nodes that serve the model and whose device allows it."""
    return [
        node
        for node in nodes
        if node.name != own_name
        and demand.model in node.models
        and node.child
        and _runs_on(_device(node), demand)
    ]


def _able(demand: Demand, own_name: str, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
    """Those of them where loading the model has not failed."""
    served = _served(demand, own_name, nodes)
    return [node for node in served if node.phase_of(demand.model) is not ModelPhase.FAILED]


def _runs_on(device: str, demand: Demand) -> bool:
    # A GPU's host has a CPU too.
    return device in demand.devices or (device == "cuda" and "cpu" in demand.devices)


def _device(node: NodeRecord) -> str:
    return node.child.device if node.child else "cpu"


def _is_at_home(demand: Demand, node: NodeRecord) -> bool:
    return _device(node) in demand.devices


def _may_retry(node: NodeRecord, model: str) -> bool:
    state = node.state_of(model)
    return state is not None and state.retry_in_s == 0.0


def _has(node: NodeRecord, model: str) -> bool:
    return node.phase_of(model) in IN_MEMORY


def _is_long(demand: Demand, loaded: Sequence[NodeRecord], spread_after_s: float) -> bool:
    if demand.rate is None:
        return demand.backlog > 2 * demand.max_batch
    states = [node.state_of(demand.model) for node in loaded]
    load_s = max((state.load_s if state else None) or 0.0 for state in states)
    return demand.backlog > demand.rate * len(loaded) * max(spread_after_s, load_s)


def _has_room(node: NodeRecord, needed_mib: int) -> bool:
    child = node.child
    if child is None or not any(state.phase in IN_MEMORY for state in child.models.values()):
        return True  # nothing to evict: a model larger than the budget still runs alone
    return child.free_mib >= needed_mib


def _is_idle(node: NodeRecord | None) -> bool:
    return node is None or (node.child is not None and node.child.idle_s > IDLE_AFTER_S)
