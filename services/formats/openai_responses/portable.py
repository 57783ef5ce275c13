"""A responses body for providers of other formats: what only its own vendor knows is refused."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput, Message, ParameterReceipt

from services.formats.documents import (
    is_null,
    raw_of,
    read_object,
    read_value,
    says_something,
    text_of,
    write_object,
)
from services.formats.errors import unsupported
from services.formats.openai_responses.items import ENVELOPE, ITEM_REFERENCE, OWN_FIELDS, kind_of
from services.formats.openai_responses.parts import ITEM
from services.formats.openai_responses.request import read_request

_STATE = ("previous_response_id", "conversation", "prompt")
_ADVICE = "send the whole conversation in `input`, or choose a model of a provider that offers responses"
_REASONING_FIELDS = ENVELOPE | {"summary", "content", "encrypted_content"}
_DEFAULTS = frozenset(
    {b"{}", b'{"format":{"type":"text"}}', b'{"effort":null}', b'{"effort":null,"summary":null}'}
)
_SEALED, _LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"


def read_portable(body: bytes) -> ChatInput:
    """Read a responses body for a provider that keeps nothing and has other names for parameters.

    Raises FormatError naming the field that only its own vendor could serve.
    """
    chat = read_request(body)
    extension = chat.extension_json
    for name in _STATE:
        if says_something(name, _taken(extension, name)):
            raise unsupported(name, f"this provider keeps no state; {_ADVICE}")
    for name in ("store", "background"):
        if _taken(extension, name) == "true":
            raise unsupported(name, f"this provider keeps no responses; send false, {_ADVICE}")
    for message in chat.messages:
        _check_references(message)
        _expose(message)
    _read_text(extension)
    _read_rest(extension)
    for tool in chat.tools:
        _drop_empty(tool.extension_json)
    return chat


def _taken(extension: MutableMapping[str, str], name: str) -> str:
    """Remove a parameter and return it as JSON; `null` when it was not sent."""
    if name not in extension:
        return "null"
    text = extension[name].strip()
    del extension[name]
    return text


def default_receipts(body: bytes) -> list[ParameterReceipt]:
    """Return what becomes of parameters that ask for no more than every provider does.

    `store` is among them also when it goes unsaid, for this format then takes it as true.
    """
    fields = read_object(body)
    told = {"store": "false: this provider keeps no responses"}
    if "background" in fields:
        told["background"] = "answered at once"
    if bytes(fields.get("truncation", b"")) == b'"disabled"':
        told["truncation"] = "nothing is cut off"
    if "include" in fields and (wanted := _portable(text_of(fields["include"]))) is not None:
        told["include"] = (
            "as logprobs" if _LOGPROBS in wanted else "thoughts come with what they need to go back"
        )
    if bytes(fields.get("top_logprobs", b"")) == b"0":
        told.setdefault("top_logprobs", "no others are asked for")
    for name in ("text", "reasoning"):
        if name in fields and bytes(fields[name]).replace(b" ", b"") in _DEFAULTS:
            told[name] = "it asks for what comes anyway"
    return [ParameterReceipt(name=name, outcome="translated", detail=told[name]) for name in told]


def _check_references(message: Message) -> None:
    for part in message.parts:
        if part.WhichOneof("kind") == "opaque" and part.opaque.provider == ITEM:
            item = read_object(part.opaque.raw_json.encode())
            if kind_of(item, "input") == ITEM_REFERENCE:
                name = text_of(item.get("id", msgspec.Raw(b"")))
                raise unsupported("input", f"item_reference {name}: this provider keeps no items; {_ADVICE}")


def _expose(message: Message) -> None:
    """Put fields that only this format's items have where writers account for them."""
    extensions = [message.extension_json, *(part.extension_json for part in message.parts)]
    for own in [extension[OWN_FIELDS] for extension in extensions if OWN_FIELDS in extension]:
        fields = read_object(own.encode())
        known = _REASONING_FIELDS if bytes(fields.get("type", b"")) == b'"reasoning"' else ENVELOPE
        for name, raw in fields.items():
            if name not in known:
                message.extension_json[name] = text_of(raw)


def _read_text(extension: MutableMapping[str, str]) -> None:
    """Give the form of the answer the name and place it has in chat completions."""
    raw = _taken(extension, "text")
    if raw == "null":
        return
    fields = read_object(raw.encode())
    given = fields.pop("format", None)
    if given is not None and not is_null(given):
        extension["response_format"] = write_object(_response_format(given)).decode()
    for name, value in fields.items():
        extension[name if name == "verbosity" else f"text.{name}"] = text_of(value)


def _response_format(raw: msgspec.Raw) -> Mapping[str, Any]:
    fields = read_value(raw, dict[str, msgspec.Raw], "text.format")
    if bytes(fields.get("type", b"")) != b'"json_schema"':
        return fields
    return {"type": fields.pop("type"), "json_schema": fields}


def _read_rest(extension: MutableMapping[str, str]) -> None:
    """Leave out what says nothing beyond the default, or is a matter of this surface alone."""
    _taken(extension, "stream_options")
    if extension.get("truncation", "").strip() == '"disabled"':
        del extension["truncation"]
    reasoning = _taken(extension, "reasoning")
    if reasoning != "null":
        for name, raw in read_object(reasoning.encode()).items():
            extension[f"reasoning.{name}"] = text_of(raw)
    wanted = _portable(extension.get("include", "null"))
    if wanted is not None:
        _taken(extension, "include")
    if extension.get("top_logprobs", "").strip() == "0":
        _taken(extension, "top_logprobs")
    if _LOGPROBS in (wanted or ()) or says_something("top_logprobs", extension.get("top_logprobs", "null")):
        extension["logprobs"] = "true"


def _portable(include: str) -> set[str] | None:
    """Return what is to come with the answer: thoughts always do. None when other formats lack some of it."""
    if include.strip() == "null":
        return None
    wanted = set(read_value(raw_of(include), list[str], "include"))
    return wanted if wanted <= {_SEALED, _LOGPROBS} else None


def _drop_empty(extension: MutableMapping[str, str]) -> None:
    for name in [name for name, text in extension.items() if not says_something(name, text)]:
        del extension[name]
