"""The inputs and results of a task, from the server's OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelmill.errors import ConfigError

_REF = "#/components/schemas/"
JOB_FIELDS = frozenset(
    {
        *("lane", "expires_in", "options", "idempotency_key", "result_ttl"),
        *("metadata", "tags", "webhook", "webhook_events"),
    }
)
"""Fields that every task has and that concern the job. A column of such a name is not used for the field."""

Node = Mapping[str, Any]


class TaskSchema:
    """The fields of a task.

    Args:
        document: ``/openapi.json`` of a server.
        task: Name of the task.

    Raises:
        ConfigError: the document does not describe that task.
    """

    def __init__(self, document: Mapping[str, Any], task: str) -> None:
        try:
            paths = document["paths"]
            submit = paths[f"/api/tasks/{task}/{{model}}/jobs"]["post"]
            read = paths[f"/api/tasks/{task}/jobs/{{id}}"]["get"]
            self._input: Node = submit["requestBody"]["content"]["application/json"]["schema"]
            output: Node = read["responses"]["200"]["content"]["application/json"]["schema"]
            everything = document["components"]["schemas"]
        except (KeyError, TypeError):
            raise ConfigError(f"the server does not say what the task {task} takes") from None
        # The whole document takes megabytes, so only the schemas that this task refers to are kept.
        self._parts: dict[str, Node] = {}
        self._keep(self._input, everything)
        self._keep(output, everything)
        self.fields: dict[str, Node] = {}
        for node in self._meanings(self._input):
            self.fields |= node.get("properties", {})
        self.required: set[str] = set()
        for node in self._meanings(self._input):
            self.required |= set(node.get("required", ()))
        results = [
            node["properties"]["result"]
            for node in self._meanings(output)
            if "result" in node.get("properties", {})
        ]
        self.result: Node = self.inlined(results[0]) if results else {}
        """The schema of a result, without references."""

    @property
    def own_fields(self) -> list[str]:
        """Names of the fields that belong to the task."""
        return [name for name in self.fields if name not in JOB_FIELDS]

    @property
    def media_fields(self) -> list[str]:
        """Names of the fields that take a file: an image or audio."""
        return [name for name in self.own_fields if self.is_media(name)]

    def is_known(self, field: str) -> bool:
        """Whether a field, or one inside another such as ``config.top_k``, can be set.

        Inside a field, any key is allowed: models have keys of their own in ``config``.
        """
        return field.partition(".")[0] in self.fields

    def is_media(self, field: str) -> bool:
        """Whether a field takes a file."""
        nodes = self.find(field)
        return any(node.get("contentEncoding") == "base64" and "contentMediaType" in node for node in nodes)

    def kinds(self, field: str) -> set[str]:
        """The JSON types that a field takes; empty if it takes anything or is not described."""
        found: set[str] = set()
        for node in self.find(field):
            kind = node.get("type")
            if kind is None and not {"anyOf", "oneOf", "allOf", "$ref"} & node.keys():
                return {"string"} if "enum" in node or "const" in node else set()
            found |= {kind} if isinstance(kind, str) else set(kind or ())
        return found

    def find(self, field: str) -> list[Node]:
        """All parts of the schema that describe a field."""
        nodes = list(self._meanings(self._input))
        for part in field.split("."):
            inner = [node["properties"][part] for node in nodes if part in node.get("properties", {})]
            nodes = [meaning for node in inner for meaning in self._meanings(node)]
        return nodes

    def inlined(self, node: Any, depth: int = 12) -> Any:
        """A schema with its references replaced by their targets, down to a depth."""
        if isinstance(node, list):
            return [self.inlined(each, depth) for each in node]
        if not isinstance(node, Mapping):
            return node
        if "$ref" in node:
            return self.inlined(self._target(node), depth - 1) if depth else {}
        return {name: self.inlined(value, depth) for name, value in node.items()}

    def _meanings(self, node: Node) -> Iterator[Node]:
        """A schema, and the schemas that it refers to or consists of."""
        yield node
        if "$ref" in node:
            yield from self._meanings(self._target(node))
        for word in ("anyOf", "oneOf", "allOf"):
            for part in node.get(word, ()):
                yield from self._meanings(part)

    def _target(self, node: Node) -> Node:
        return self._parts.get(str(node["$ref"]).removeprefix(_REF), {})

    def _keep(self, node: Any, everything: Mapping[str, Any]) -> None:
        if isinstance(node, list):
            for each in node:
                self._keep(each, everything)
        elif isinstance(node, Mapping):
            for value in node.values():
                self._keep(value, everything)
            name = str(node.get("$ref", "")).removeprefix(_REF)
            if name in everything and name not in self._parts:
                self._parts[name] = everything[name]
                self._keep(everything[name], everything)
