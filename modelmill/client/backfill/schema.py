"""What a task takes and gives, as the server's OpenAPI document says."""

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
"""Fields of every task that concern the job: no column is taken for one of them by its name alone."""

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
        # The whole document takes megabytes: what no reference leads to is let go.
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
        """Names of the fields that are the task's own."""
        return [name for name in self.fields if name not in JOB_FIELDS]

    @property
    def media_fields(self) -> list[str]:
        """Names of the fields that take a file: an image or audio."""
        return [name for name in self.own_fields if self.is_media(name)]

    def is_known(self, field: str) -> bool:
        """Whether a field, or one within another such as ``config.top_k``, can be given.

        Within a field that takes further keys, any may be: models have keys of their own in ``config``.
        """
        return field.partition(".")[0] in self.fields

    def is_media(self, field: str) -> bool:
        """Whether a field takes a file."""
        nodes = self.find(field)
        return any(node.get("contentEncoding") == "base64" and "contentMediaType" in node for node in nodes)

    def kinds(self, field: str) -> set[str]:
        """The JSON types that a field takes; empty where it takes anything or is not described."""
        found: set[str] = set()
        for node in self.find(field):
            kind = node.get("type")
            if kind is None and not {"anyOf", "oneOf", "allOf", "$ref"} & node.keys():
                return {"string"} if "enum" in node or "const" in node else set()
            found |= {kind} if isinstance(kind, str) else set(kind or ())
        return found

    def find(self, field: str) -> list[Node]:
        """All that the schema says of a field."""
        nodes = list(self._meanings(self._input))
        for part in field.split("."):
            inner = [node["properties"][part] for node in nodes if part in node.get("properties", {})]
            nodes = [meaning for node in inner for meaning in self._meanings(node)]
        return nodes

    def inlined(self, node: Any, depth: int = 12) -> Any:
        """A schema with what its references lead to in their places, down to a depth."""
        if isinstance(node, list):
            return [self.inlined(each, depth) for each in node]
        if not isinstance(node, Mapping):
            return node
        if "$ref" in node:
            return self.inlined(self._target(node), depth - 1) if depth else {}
        return {name: self.inlined(value, depth) for name, value in node.items()}

    def _meanings(self, node: Node) -> Iterator[Node]:
        """A schema, and those that it refers to or is made of."""
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
