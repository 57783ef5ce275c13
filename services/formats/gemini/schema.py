"""The part of JSON Schema that the provider takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from services.formats.receipts import Receipts

# The vendor's own list, and what it means by them. Anything else makes it refuse the request.
_KEYWORDS = frozenset(
    {
        "$anchor",
        "$defs",
        "$id",
        "$ref",
        "additionalProperties",
        "anyOf",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maximum",
        "minItems",
        "minimum",
        "oneOf",
        "prefixItems",
        "properties",
        "propertyOrdering",
        "required",
        "title",
        "type",
    }
)
_MAPS = frozenset({"$defs", "properties"})
_LISTS = frozenset({"anyOf", "oneOf", "prefixItems"})
_SCHEMAS = frozenset({"additionalProperties", "items"})
# They say nothing about which values are valid.
_NOTES = frozenset(
    {"$comment", "$schema", "default", "deprecated", "example", "examples", "readOnly", "writeOnly"}
)


def reduce_schema(schema_json: str) -> tuple[str, list[str], list[str]]:
    """Return the schema without what the provider refuses, and the names of what was left out.

    The first list holds keywords that only describe, or are said in another way; the second those
    that restrict values. A schema that needs no change, or is none, is returned as it is.
    """
    try:
        schema = msgspec.json.decode(schema_json)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return schema_json, [], []
    left_out: set[str] = set()
    reduced = _reduce(schema, left_out)
    if not left_out:
        return schema_json, [], []
    notes = sorted(left_out & (_NOTES | {"const"}))
    return msgspec.json.encode(reduced).decode(), notes, sorted(left_out - set(notes))


def _reduce(schema: Any, left_out: set[str]) -> Any:
    if not isinstance(schema, dict):
        return schema
    reduced: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "const":
            reduced.setdefault("enum", [value])
            left_out.add(name)
        elif name not in _KEYWORDS:
            left_out.add(name)
        elif name in _MAPS and isinstance(value, dict):
            reduced[name] = {key: _reduce(inner, left_out) for key, inner in value.items()}
        elif name in _LISTS and isinstance(value, list):
            reduced[name] = [_reduce(inner, left_out) for inner in value]
        elif name in _SCHEMAS:
            reduced[name] = _reduce(value, left_out)
        else:
            reduced[name] = value
    return reduced


def receipt_schema(path: str, notes: Sequence[str], lost: Sequence[str], receipts: Receipts) -> None:
    """Say what was left out of a schema."""
    if notes:
        receipts.translated(path, f"without {', '.join(notes)}")
    if lost:
        receipts.dropped(path, f"this provider's JSON Schema has no {', '.join(lost)}")
