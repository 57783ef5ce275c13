"""Anthropic messages: bodies, answers and streams. The only module of this format others import."""

from services.formats.anthropic_messages.errors import write_error
from services.formats.anthropic_messages.facts import Facts, read_facts
from services.formats.anthropic_messages.response import write_response
from services.formats.anthropic_messages.stream_writer import (
    StreamWriter,
    close_raw_stream,
    write_stream_error,
)

__all__ = [
    "Facts",
    "StreamWriter",
    "close_raw_stream",
    "read_facts",
    "write_error",
    "write_response",
    "write_stream_error",
]
