"""Reads bodies of multipart/form-data as they come in, within limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnihub.common.v1.media_pb2 import MediaFile
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.common.rpc import RpcError
from services.formats.errors import FormatError, invalid

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MULTIPART = "multipart/form-data"
MOST_PARTS = 128
TEXT_LIMIT = 1024 * 1024
# What says nothing about a file.
_UNTOLD = ("", "application/octet-stream")


@dataclass(slots=True)
class Part:
    """One part of a form."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    """None of a text."""
    data: bytearray = field(default_factory=bytearray)

    def file(self) -> MediaFile:
        """Return the part as a file. Its sender's word about the type is passed on, not believed."""
        mime = self.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        name = (self.filename or "").replace("\\", "/").rpartition("/")[2]
        return MediaFile(
            data=bytes(self.data), mime="" if mime in _UNTOLD else mime, name=_printable(name)[:255]
        )


class Form:
    """A parser that is fed with the body. Raises RpcError and FormatError as soon as something is wrong."""

    def __init__(self, content_type: str, file_limit: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != MULTIPART.encode() or not boundary:
            raise _malformed(f"expected {MULTIPART} with its boundary, not {content_type[:80] or 'nothing'}")
        self.parts: list[Part] = []
        self._file_limit = file_limit
        self._ended = False
        self._header = (bytearray(), bytearray())
        try:
            self._parser = MultipartParser(boundary, _callbacks(self))
        except MultipartParseError as error:
            raise _malformed(str(error)) from None

    def write(self, data: bytes) -> None:
        """Take in the next piece of the body."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise _malformed(str(error)) from None

    def finish(self) -> list[Part]:
        """Return the parts, once the body is complete."""
        if not self._ended:
            raise _malformed("it ends before its last boundary")
        return self.parts

    def begin(self) -> None:
        """A part begins."""
        if len(self.parts) == MOST_PARTS:
            raise _malformed(f"it has more than {MOST_PARTS} parts")
        self.parts.append(Part())

    def header_name(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header[0].extend(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._header[1].extend(data[start:end])

    def header_end(self) -> None:
        """A header is complete."""
        name, value = self._header
        self.parts[-1].headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def headers_end(self) -> None:
        """All headers of a part are known: now its name is."""
        part = self.parts[-1]
        kind, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or not options.get(b"name"):
            raise _malformed("a part has no name")
        part.name = options[b"name"].decode(errors="replace")
        if b"filename" in options:
            part.filename = options[b"filename"].decode(errors="replace")

    def data(self, data: bytes, start: int, end: int) -> None:
        """A piece of a part's content."""
        part = self.parts[-1]
        limit = TEXT_LIMIT if part.filename is None else self._file_limit
        if len(part.data) + end - start > limit:
            raise _too_large(part.name, limit)
        part.data.extend(memoryview(data)[start:end])

    def end(self) -> None:
        """The last boundary has been seen."""
        self._ended = True


def _callbacks(form: Form) -> MultipartCallbacks:
    return {
        "on_part_begin": form.begin,
        "on_header_field": form.header_name,
        "on_header_value": form.header_value,
        "on_header_end": form.header_end,
        "on_headers_finished": form.headers_end,
        "on_part_data": form.data,
        "on_end": form.end,
    }


def text_of(part: Part) -> str:
    """Return the text of a part. Raises FormatError."""
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise invalid(part.name, "expected text in UTF-8") from None


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())


def _malformed(detail: str) -> FormatError:
    return FormatError("MALFORMED_BODY", f"the body is not a form that can be read: {detail}")


def _too_large(name: str, limit: int) -> RpcError:
    return RpcError(
        "BODY_TOO_LARGE",
        f"{name}: exceeds {limit} bytes; send less, or store it with `POST /api/files` and name its id",
        metadata={"param": name},
    )
