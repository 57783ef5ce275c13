"""The few facts about a body that admission and routing need, without reading the conversation."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from services.formats.documents import from_decode_error
from services.formats.errors import invalid
from services.formats.facts import Facts, check_messages, is_filled

_JSON = re.compile(rb'"json_(?:schema|object)"')


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    response_format: msgspec.Raw = msgspec.Raw(b"")
    user: str | None = None
    service_tier: Any = None


_decoder = msgspec.json.Decoder(_Body)


def read_facts(body: bytes) -> Facts:
    """Read the facts of a chat completion body. Raises FormatError naming the field that is wrong."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.model:
        raise invalid("model", "name the model, for example one of GET /v1/models")
    check_messages(read.messages)
    max_tokens = read.max_completion_tokens if read.max_completion_tokens is not None else read.max_tokens
    if max_tokens is not None and not 0 < max_tokens < 2**32:
        raise invalid("max_tokens", "expected a positive whole number")
    if read.n is not None and not 0 < read.n <= 128:
        raise invalid("n", "expected a whole number from 1 to 128")
    options = read.stream_options
    return Facts(
        service_tier=read.service_tier if isinstance(read.service_tier, str) else "",
        model=read.model,
        stream=bool(read.stream),
        include_usage=options is not None and bool(options.include_usage),
        max_tokens=max_tokens,
        n=read.n or 1,
        temperature=read.temperature,
        has_tools=is_filled(read.tools),
        has_schema=bool(_JSON.search(read.response_format)),
        user=read.user or "",
        messages=read.messages,
    )
