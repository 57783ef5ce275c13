"""OpenAI responses: bodies, answers and streams. The only module of this format others import."""

from services.formats.facts import Facts
from services.formats.openai_chat.errors import write_error
from services.formats.openai_responses.facts import read_echo, read_facts
from services.formats.openai_responses.history import History
from services.formats.openai_responses.portable import default_receipts, read_portable
from services.formats.openai_responses.reasoning import SEAL
from services.formats.openai_responses.request import read_request, write_request
from services.formats.openai_responses.response import (
    UNFINISHED,
    read_response,
    read_response_facts,
    read_stored_facts,
    write_response,
)
from services.formats.openai_responses.stream_reader import RawReader, StreamReader
from services.formats.openai_responses.stream_writer import (
    StreamWriter,
    close_raw_stream,
    write_stream_error,
)

__all__ = [
    "SEAL",
    "UNFINISHED",
    "Facts",
    "History",
    "RawReader",
    "StreamReader",
    "StreamWriter",
    "close_raw_stream",
    "default_receipts",
    "read_echo",
    "read_facts",
    "read_portable",
    "read_request",
    "read_response",
    "read_response_facts",
    "read_stored_facts",
    "write_error",
    "write_request",
    "write_response",
    "write_stream_error",
]
