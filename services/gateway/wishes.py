"""What a caller of a foreign format wishes of the routing: headers, or an `omnihub` object in the body."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput

from services.formats.documents import read_object, read_value, write_object
from services.formats.errors import FormatError, invalid

FIELD = "omnihub"
PREFIX = "x-omnihub-"
_MARK = b'"omnihub"'
# As in the contract of ChatInput.
_WORDS: Mapping[str, tuple[str, ...]] = {
    "priority": ("cheap", "balanced", "best"),
    "latency_pref": ("fast", "normal"),
    "mode": ("flash", "think", "ultra-think"),
    "task": ("chat", "coding", "reasoning", "summarization", "translation", "image", "agent_step"),
}
_CAPABILITIES = ("tools", "vision", "audio", "documents", "json_schema", "reasoning", "stream", "embed")
_NAMES = ("priority", "latency_pref", "max_cost", "mode", "region", "require", "task")
_HEADERS = {f"{PREFIX}{name.replace('_', '-')}": name for name in _NAMES}
_REGION_LIMIT = 32
_LARGEST_COST = 1e9


class _Wishes(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    priority: str | None = None
    latency_pref: str | None = None
    max_cost: float | str | None = None
    mode: str | None = None
    region: str | None = None
    require: list[str] | str | None = None
    task: str | None = None


def take_wishes(chat: ChatInput, headers: Mapping[str, str], body: bytes) -> bytes:
    """Write the caller's wishes into `chat`, and return the body without its `omnihub` object.

    Raises FormatError naming the header or field that is wrong, or both when they say different things.
    """
    if _MARK not in body and _HEADERS.keys().isdisjoint(headers):
        return body
    stated: dict[str, tuple[str, Any]] = {}
    if _MARK in body:
        fields = read_object(body)
        raw = fields.pop(FIELD, None)
        if raw is not None:
            body = write_object(fields)
            wishes = read_value(raw, _Wishes, FIELD)
            for name, value in msgspec.structs.asdict(wishes).items():
                if value is not None:
                    stated[name] = f"{FIELD}.{name}", _checked(f"{FIELD}.{name}", name, value)
    for header, name in _HEADERS.items():
        if header in headers:
            value = _checked(header, name, headers[header])
            if name in stated and stated[name][1] != value:
                raise invalid(header, f"it says something else than {stated[name][0]}; send one of them")
            stated[name] = header, value
    for name, (_, value) in stated.items():
        if name == "require":
            chat.require.extend(word for word in value if word not in chat.require)
        elif getattr(chat, name) not in (type(value)(), value):
            raise invalid(stated[name][0], f"the body's own {name} says something else; send one of them")
        else:
            setattr(chat, name, value)
    return body


def _checked(field: str, name: str, value: Any) -> Any:
    """Return a wish as the contract has it. Raises FormatError."""
    if name == "max_cost":
        return _amount(field, value)
    if name == "require":
        words = value.split(",") if isinstance(value, str) else value
        return sorted({_one_of(field, word.strip(), _CAPABILITIES) for word in words})
    if name == "region":
        if len(value) > _REGION_LIMIT or not value.isprintable():
            raise invalid(field, f"expected at most {_REGION_LIMIT} characters, such as eu")
        return value
    return _one_of(field, value, _WORDS[name])


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise invalid(field, f"{value[:40]!r} is none of {', '.join(allowed)}")
    return value


def _amount(field: str, value: float | str) -> float:
    problem: FormatError = invalid(field, "expected credits from 0 to 1000000000, such as 0.05")
    try:
        amount = float(value)
    except ValueError:
        raise problem from None
    if not math.isfinite(amount) or not 0 <= amount <= _LARGEST_COST:
        raise problem
    return amount
