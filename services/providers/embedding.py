"""What an embedding request asks for, for adapters whose vendor does not speak OpenAI's format."""

from __future__ import annotations

from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats.documents import is_null, read_object, read_value
from services.formats.errors import invalid

_LIMIT = 2**32


def embedding_inputs(request: pb.EmbedRequest) -> tuple[list[str], int | None]:
    """Return the texts and the length of vector asked for, None for the model's own. Raises FormatError."""
    if not request.raw_body:
        return list(request.inputs), request.dimensions if request.HasField("dimensions") else None
    fields = read_object(request.raw_body)
    if "input" not in fields:
        raise invalid("input", "send a text or a list of texts")
    read: str | list[str] = read_value(fields["input"], str | list[str], "input")  # type: ignore[arg-type]
    size = None
    if not is_null(fields.get("dimensions", b"null")):
        size = read_value(fields["dimensions"], int, "dimensions")
        if not 0 < size < _LIMIT:
            raise invalid("dimensions", "expected a positive whole number")
    return [read] if isinstance(read, str) else read, size
