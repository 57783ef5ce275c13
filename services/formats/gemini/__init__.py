"""Gemini generateContent: bodies, answers and streams. The only module of this format others import."""

from services.formats.gemini.outcome import read_block
from services.formats.gemini.request import read_request, write_request
from services.formats.gemini.response import read_response
from services.formats.gemini.stream_reader import StreamReader

__all__ = ["StreamReader", "read_block", "read_request", "read_response", "write_request"]
