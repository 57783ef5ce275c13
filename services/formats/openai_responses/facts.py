"""The few facts about a body that admission and routing need, without reading the conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from services.formats.documents import from_decode_error, is_null, read_object, read_value, starts_with
from services.formats.errors import invalid
from services.formats.facts import Facts, is_filled

# What a response repeats of its request.
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
    "user",
)
_NOTHING = msgspec.Raw(b"")


class _Body(msgspec.Struct):
    model: str | None = None
    input: msgspec.Raw = _NOTHING
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    tools: msgspec.Raw = _NOTHING
    text: msgspec.Raw = _NOTHING
    user: str | None = None
    previous_response_id: msgspec.Raw = _NOTHING
    conversation: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    store: bool | None = None
    background: bool | None = None
    service_tier: Any = None


_decoder = msgspec.json.Decoder(_Body)


def read_facts(body: bytes) -> Facts:
    """Read the facts of a responses body. Raises FormatError naming the field that is wrong."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.model:
        raise invalid("model", "name the model, for example one of GET /v1/models")
    state = (read.previous_response_id, read.conversation, read.prompt)
    stateful = any(raw and not is_null(raw) for raw in state) or b'"item_reference"' in bytes(read.input)
    _check_input(read.input, stateful)
    if read.max_output_tokens is not None and not 0 < read.max_output_tokens < 2**32:
        raise invalid("max_output_tokens", "expected a positive whole number")
    return Facts(
        service_tier=read.service_tier if isinstance(read.service_tier, str) else "",
        model=read.model,
        stream=bool(read.stream),
        include_usage=True,
        max_tokens=read.max_output_tokens,
        n=1,
        temperature=read.temperature,
        has_tools=is_filled(read.tools),
        has_schema=b'"json_schema"' in bytes(read.text) or b'"json_object"' in bytes(read.text),
        user=read.user or "",
        messages=read.input,
        stateful=stateful,
        vendor_bound=stateful or bool(read.store) or bool(read.background),
        previous=_previous(read.previous_response_id),
        # What is made in the background is kept at least until it has been read.
        stores=read.store is not False or bool(read.background),
        background=bool(read.background),
    )


def _previous(raw: msgspec.Raw) -> str:
    """Return the id of the answer before this one. Raises FormatError."""
    if not raw or is_null(raw):
        return ""
    return read_value(raw, str, "previous_response_id")


def _check_input(given: msgspec.Raw, stateful: bool) -> None:
    """Raise FormatError unless there is something to answer."""
    absent = not given or is_null(given)
    listed = starts_with(given, b"[")
    if not (absent or listed or starts_with(given, b'"')):
        raise invalid("input", "expected a text or a list of items")
    if not stateful and (absent or (listed and not is_filled(given))):
        raise invalid("input", "send a text or at least one item")


def read_echo(body: bytes) -> dict[str, msgspec.Raw]:
    """Return what a response repeats of its request, undecoded. Raises FormatError."""
    fields = read_object(body)
    return {name: fields[name] for name in _ECHOED if name in fields}
