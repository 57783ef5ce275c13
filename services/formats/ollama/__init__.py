"""Ollama's own chat: bodies, answers and streams. The only module of this format others import."""

from services.formats.ollama.request import write_request
from services.formats.ollama.response import StreamReader, read_response

__all__ = ["StreamReader", "read_response", "write_request"]
