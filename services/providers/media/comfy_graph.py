"""A graph of ComfyUI with placeholders: read once, filled in for each request. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_PLACEHOLDER = re.compile(r"\{\{\s*([a-z_]+)\s*(?:=([^{}]*))?\}\}")
JOB = "job"
SEED = "seed"


class GraphError(ValueError):
    """A file holds no usable graph. The message says what to do."""


class Graph:
    """A graph in API format: nodes by id, each with `class_type` and `inputs`."""

    def __init__(self, text: bytes) -> None:
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise GraphError(f"is no JSON: {error}") from None
        if isinstance(document, dict) and "nodes" in document:
            raise GraphError("is a graph of the editor; export it in API format")
        nodes = document.values() if isinstance(document, dict) else ()
        if not nodes or not all(isinstance(node, dict) and "class_type" in node for node in nodes):
            raise GraphError("is no graph in API format: expected nodes with class_type and inputs")
        self._document = document
        self._defaults: dict[str, str | None] = {}
        _walk(document, self._note)

    def __len__(self) -> int:
        return len(self._document)

    @property
    def placeholders(self) -> frozenset[str]:
        """Return the names that a request can fill."""
        return frozenset(self._defaults)

    @property
    def required(self) -> frozenset[str]:
        """Return the names without a default."""
        return frozenset(name for name, default in self._defaults.items() if default is None)

    def _note(self, text: str) -> str:
        for name, default in _PLACEHOLDER.findall(text):
            given = default if "=" in text else None
            if self._defaults.get(name) is None:
                self._defaults[name] = given or None
        return text

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the graph with values in place of placeholders.

        A placeholder that is a whole input keeps the type of its value; within a text it is written out.
        Values are never read for placeholders themselves.
        """

        def fill(text: str) -> Any:
            alone = _PLACEHOLDER.fullmatch(text.strip())
            if alone is not None:
                name, default = alone.groups()
                return values[name] if name in values else _typed(default or "")
            return _PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[2] or "")), text)

        return {name: _walk(node, fill) for name, node in self._document.items()}


def _walk(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_walk(each, change) for each in value]
    if isinstance(value, dict):
        return {name: _walk(each, change) for name, each in value.items()}
    return value


def _typed(text: str) -> Any:
    """Return a default as JSON has it, else as a text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
