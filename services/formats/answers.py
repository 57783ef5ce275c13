"""What is read from an answer, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Message, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

Event = PartStart | PartDelta | PartStop


class Answer(NamedTuple):
    """A whole answer. `usage` is None when the provider did not report it."""

    message: Message
    finish: Finish
    usage: Usage | None
    response_id: str
    model: str


def written_chars(message: Message) -> int:
    """Return the characters of what a model wrote: text, thoughts, refusals, names and arguments of calls."""
    size = len(message.content)
    for part in message.parts:
        call = part.tool_call
        size += len(part.text.text) + len(part.reasoning.text) + len(part.refusal.text)
        size += len(call.name) + len(call.arguments_json)
    return size


class AnswerFacts(NamedTuple):
    """What the platform needs to know about an answer that is passed on as it is."""

    finish: Finish
    usage: Usage | None
    response_id: str
    model: str
    output_chars: int
    """Characters of text, thoughts and arguments, to estimate a usage that was not reported."""


@dataclass(slots=True)
class Progress:
    """What a stream has said about itself so far."""

    model: str = ""
    response_id: str = ""
    finish: Finish | None = None
    usage: Usage | None = None
    error: msgspec.Raw | None = None
    """The provider's own error, sent in place of the rest of the answer."""
    output_chars: int = field(default=0)
    closed: bool = False
    """The provider said that nothing follows."""
    thought: bool = False
    """Thoughts have come, perhaps sealed ones."""
    beyond_text: bool = False
    """More than text and thoughts has come, such as a tool call: no other model can go on from here. Of a
    stream that is translated only what has no characters is told here: its events tell the rest."""
    parts: int = 0
    """Parts begun, where the format numbers them. This and what follows only readers of raw streams tell."""
    open_part: str = ""
    """The last part has not ended: text, reasoning, or empty when it has."""

    @property
    def at_work(self) -> bool:
        """Tell whether the model has begun, if not with text: it thinks, speaks, draws or uses tools."""
        return self.thought or self.beyond_text


class RawReader(Protocol):
    """Reads a stream that is passed on."""

    progress: Progress
    tail: list[bytes]

    def read(self, event: bytes, data: bytes) -> tuple[bytes, str]:
        """Return the frame to pass on and its text."""
        ...


class StreamReader(Protocol):
    """Reads a stream into typed events."""

    progress: Progress

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Return the events."""
        ...

    def finish(self) -> list[Event]:
        """Return the ends of what is open."""
        ...
