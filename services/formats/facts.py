"""What every format can say about a body without reading the conversation."""

from __future__ import annotations

import re

import msgspec

from services.formats.errors import invalid

_LIST = re.compile(rb"\s*\[")
_EMPTY_LIST = re.compile(rb"\s*\[\s*\]")


class Facts(msgspec.Struct, frozen=True):
    """What a caller's body says about itself."""

    model: str
    stream: bool
    include_usage: bool
    """The caller wants a usage chunk at the end of the stream."""
    max_tokens: int | None
    """Output tokens per choice; None when the caller named no limit."""
    n: int
    """Choices asked for; each is paid."""
    temperature: float | None
    has_tools: bool
    has_schema: bool
    """The answer is to be a JSON document."""
    user: str
    messages: msgspec.Raw
    """The conversation, undecoded."""
    stateful: bool = False
    """The provider knows more of the conversation than the body holds."""
    vendor_bound: bool = False
    """Only a provider that keeps state can serve it."""
    service_tier: str = ""
    """The tier the caller wants to be served in, in the format's words."""
    previous: str = ""
    """Id of the stored answer it goes on from."""
    stores: bool = False
    """A provider that keeps state will keep the answer."""
    background: bool = False
    """The answer may come later, under its id."""


def check_messages(messages: msgspec.Raw) -> None:
    """Raise FormatError unless `messages` is a list with something in it."""
    if not _LIST.match(messages):
        raise invalid("messages", "expected a list of messages" if messages else "send at least one message")
    if _EMPTY_LIST.match(messages):
        raise invalid("messages", "send at least one message")


def is_filled(raw: msgspec.Raw) -> bool:
    """Tell whether a raw value is a list with something in it."""
    return bool(_LIST.match(raw)) and not _EMPTY_LIST.match(raw)
