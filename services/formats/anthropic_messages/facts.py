"""The few facts about a body that admission and routing need, without reading the conversation."""

from __future__ import annotations

from typing import Any

import msgspec

from services.formats.documents import from_decode_error
from services.formats.errors import invalid
from services.formats.facts import Facts, check_messages, is_filled


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    stream: bool | None = None
    temperature: float | None = None
    tools: msgspec.Raw = msgspec.Raw(b"")
    output_config: msgspec.Raw = msgspec.Raw(b"")
    metadata: _Metadata | None = None
    service_tier: Any = None


_decoder = msgspec.json.Decoder(_Body)


def read_facts(body: bytes) -> Facts:
    """Read the facts of a messages body. Raises FormatError naming the field that is wrong."""
    try:
        read = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if not read.model:
        raise invalid("model", "name the model, for example one of GET /v1/models")
    check_messages(read.messages)
    if read.max_tokens is None:
        raise invalid("max_tokens", "this format requires a limit of output tokens")
    if not 0 < read.max_tokens < 2**32:
        raise invalid("max_tokens", "expected a positive whole number")
    return Facts(
        service_tier=read.service_tier if isinstance(read.service_tier, str) else "",
        model=read.model,
        stream=bool(read.stream),
        include_usage=True,
        max_tokens=read.max_tokens,
        n=1,
        temperature=read.temperature,
        has_tools=is_filled(read.tools),
        has_schema=b'"json_schema"' in bytes(read.output_config),
        user=(read.metadata.user_id or "") if read.metadata else "",
        messages=read.messages,
    )
