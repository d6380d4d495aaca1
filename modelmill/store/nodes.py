"""The announcements of worker nodes, read from the JSON that their parent and their child write.

Everything is optional: nodes of other releases may announce less or more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelmill.states import ModelPhase


@dataclass(frozen=True, slots=True)
class ModelOnNode:
    """One model in a node's child."""

    phase: ModelPhase
    load_s: float | None
    """How long loading took."""
    error: str | None
    """Why loading failed."""
    retry_in_s: float | None
    """For a failed model: seconds until loading may be tried again; 0 is now."""
    document: Mapping[str, Any]
    """All that the node announces about the model. The API passes it on, also fields that it does not
    know."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ModelOnNode:
        return cls(
            phase=_phase(document.get("status")),
            load_s=document.get("load_s"),
            error=document.get("error"),
            retry_in_s=document.get("retry_in_s"),
            document=document,
        )


@dataclass(frozen=True, slots=True)
class NodeParent:
    """The announcement of a node's parent."""

    host: str | None = None
    pid: int | None = None
    device: str | None = None
    """``cpu`` or ``cuda``."""
    cuda_visible_devices: str | None = None
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of the tasks that each served model answers, loaded or not."""
    started_at: float | None = None
    """Seconds since the epoch."""
    version: str | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> NodeParent:
        return cls(
            host=document.get("host"),
            pid=document.get("pid"),
            device=document.get("device"),
            cuda_visible_devices=document.get("cuda_visible_devices"),
            models=document.get("models", {}),
            started_at=document.get("started_at"),
            version=document.get("version"),
        )


@dataclass(frozen=True, slots=True)
class NodeChild:
    """The announcement of a node's child."""

    pid: int | None = None
    device: str = "cpu"
    models: Mapping[str, ModelOnNode] = field(default_factory=dict)
    """The models that were loaded there at least once, or failed to load."""
    free_mib: int = 0
    """The memory that is left for models."""
    idle_s: float = 0.0
    """Seconds since a model was last used."""

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> NodeChild:
        models = document.get("models", {})
        return cls(
            pid=document.get("pid"),
            device=document.get("device", "cpu"),
            models={name: ModelOnNode.from_document(state) for name, state in models.items()},
            free_mib=document.get("free_mib", 0),
            idle_s=document.get("idle_s", 0.0),
        )


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A live worker node: what its parent and its child say."""

    name: str
    parent: NodeParent
    child: NodeChild | None
    """None until the child has announced itself."""

    @classmethod
    def from_documents(
        cls, name: str, parent: Mapping[str, Any], child: Mapping[str, Any] | None = None
    ) -> NodeRecord:
        return cls(name, NodeParent.from_document(parent), NodeChild.from_document(child) if child else None)

    @property
    def models(self) -> Sequence[str]:
        """Names of the models that it serves, loaded or not."""
        return list(self.parent.models)

    def state_of(self, model: str) -> ModelOnNode | None:
        """The model in its child; None if it was never loaded there."""
        return self.child.models.get(model) if self.child else None

    def phase_of(self, model: str) -> ModelPhase:
        """The phase of the model in its child."""
        state = self.state_of(model)
        return ModelPhase.UNINITIALIZED if state is None else state.phase


def node_records(names: Sequence[str], found: Sequence[Mapping[bytes, bytes]]) -> list[NodeRecord]:
    """Nodes from their hashes; a node whose hash has expired is left out."""
    return [
        NodeRecord.from_documents(
            name, json.loads(fields[b"parent"]), json.loads(fields.get(b"child", b"null"))
        )
        for name, fields in zip(names, found, strict=True)
        if b"parent" in fields
    ]


def _phase(word: str | None) -> ModelPhase:
    try:
        return ModelPhase(word or ModelPhase.UNINITIALIZED)
    except ValueError:
        # A word of a later release.
        return ModelPhase.UNINITIALIZED
