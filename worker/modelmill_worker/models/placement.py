"""Which node should answer a bell. Models spread over nodes by demand.

A node asks this if it takes the bell of a model that it has not loaded. The rule:

1. If the node cannot load the model, it passes the bell on to a node that may, for any backlog: to one that
   has the model, else to one with room, else to any. A node cannot load the model if its device is not one
   of the model's, or if loading failed there and it is too early to try again. A node with a GPU also runs
   models for the CPU, on the CPU of its host, but prefers to pass them on to nodes on CPUs.
2. If live nodes have the model loaded and its backlog is short, one of them gets the bell. A backlog is
   short if these nodes work it off within ``spread_after_s`` or within the time that loading the model
   takes, if that is longer. While the model's speed is unknown, up to two batches are short.
3. If the backlog is long, this node loads the model too, if it has room or its own models are idle.
4. If no node has the model, a node with room for it is preferred to one that would evict another model.

By this rule a bell is passed on at most once, so a wrong guess costs a hop and never a loop. Each time
loading fails, it is passed on once more, to a node where loading has not failed. Each hop leaves one such
node less.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.states import ModelPhase
from modelmill.store import NodeRecord

IDLE_AFTER_S = 30.0
"""If a node's models were not used for this long, it may evict them for another model's backlog."""
IN_MEMORY = (ModelPhase.RUNNING, ModelPhase.LOADING)
"""Phases in which a model takes memory on a node."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a model that has jobs.

    Attributes:
        model: Its name.
        backlog: Jobs that wait for it.
        rate: Jobs a second of one node that has it; None while this is unknown.
        max_batch: Its batch size.
        memory_mib: Estimate of the memory that it takes when loaded.
        devices: The kinds of device that it runs on.
        device: The kind of this node's device.
        rests: Whether loading it failed here, and it is too early to try again.
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
    """The node to pass the bell on to, or None to answer it here.

    Args:
        demand: The model, not loaded here.
        own_name: This node.
        nodes: All live nodes, this one among them.
        spread_after_s: The setting.
    """
    if demand.rests or demand.device not in demand.devices:
        return other_node(demand, own_name, nodes)
    own = next((node for node in nodes if node.name == own_name), None)
    others = [node for node in _able(demand, own_name, nodes) if _device_fits(demand, node)]
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
    """Another node that may load the model, the most promising first. None if there is none.

    Args:
        demand: The model, which this node cannot load.
        own_name: This node.
        nodes: All live nodes.
        retry: Whether a node is considered that failed to load the model and may try again by now.
    """
    able = _able(demand, own_name, nodes)
    groups = [[node for node in able if _device_fits(demand, node)]]
    if demand.rests or not _runs_on(demand.device, demand):
        groups.append([node for node in able if not _device_fits(demand, node)])
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
    """Other nodes that serve the model and can run it."""
    return [
        node
        for node in nodes
        if node.name != own_name
        and demand.model in node.models
        and node.child
        and _runs_on(_device(node), demand)
    ]


def _able(demand: Demand, own_name: str, nodes: Sequence[NodeRecord]) -> list[NodeRecord]:
    """Other nodes that serve the model, can run it, and have not failed to load it."""
    served = _served(demand, own_name, nodes)
    return [node for node in served if node.phase_of(demand.model) is not ModelPhase.FAILED]


def _runs_on(device: str, demand: Demand) -> bool:
    # A GPU's host has a CPU too.
    return device in demand.devices or (device == "cuda" and "cpu" in demand.devices)


def _device(node: NodeRecord) -> str:
    return node.child.device if node.child else "cpu"


def _device_fits(demand: Demand, node: NodeRecord) -> bool:
    """Whether the model runs on the node's own device, and not only on the CPU of its host."""
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
        return True  # nothing to evict: even a model larger than the budget runs alone
    return child.free_mib >= needed_mib


def _is_idle(node: NodeRecord | None) -> bool:
    return node is None or (node.child is not None and node.child.idle_s > IDLE_AFTER_S)
