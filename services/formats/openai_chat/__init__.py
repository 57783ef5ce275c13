"""OpenAI chat completions: bodies, answers and streams. The only module of this format others import."""

from services.formats.facts import Facts
from services.formats.openai_chat.errors import write_error
from services.formats.openai_chat.facts import read_facts
from services.formats.openai_chat.request import read_request, write_request
from services.formats.openai_chat.response import (
    read_choice_error,
    read_response,
    read_response_facts,
    write_response,
)
from services.formats.openai_chat.stream_reader import RawReader, StreamReader
from services.formats.openai_chat.stream_writer import StreamWriter, close_raw_stream, write_stream_error

__all__ = [
    "Facts",
    "RawReader",
    "StreamReader",
    "StreamWriter",
    "close_raw_stream",
    "read_choice_error",
    "read_facts",
    "read_request",
    "read_response",
    "read_response_facts",
    "write_error",
    "write_request",
    "write_response",
    "write_stream_error",
]
