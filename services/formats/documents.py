"""JSON documents by their top-level values: each stays the bytes it came in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from services.formats.errors import FormatError, invalid, malformed

Value = TypeVar("Value")
Fields = dict[str, msgspec.Raw]

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_WHERE = re.compile(r"^(?P<what>.*) - at `\$(?P<path>[^`]*)`$", re.DOTALL)
_BLANK = b" \t\r\n"


def read_object(body: bytes) -> Fields:
    """Return the fields of a document, values undecoded. Raises FormatError when it is no JSON object."""
    try:
        return _object_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise malformed(str(error)) from None


def write_object(fields: Mapping[str, Any]) -> bytes:
    """Return the document; raw values are copied as they are."""
    return _encoder.encode(fields)


def read_value(raw: msgspec.Raw | bytes, kind: type[Value], field: str) -> Value:
    """Decode one value as `kind`. Raises FormatError naming `field`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error, field) from None


def from_decode_error(error: Exception, field: str = "") -> FormatError:
    """Return what msgspec found wrong as a FormatError, with the path of the field."""
    found = _WHERE.match(str(error))
    if found is None and isinstance(error, msgspec.ValidationError):
        return invalid(field, _plain(str(error))) if field else malformed(_plain(str(error)))
    if found is None:
        return malformed(str(error))
    path = f"{field}{found['path']}".lstrip(".")
    return invalid(path, _plain(found["what"])) if path else malformed(_plain(found["what"]))


def _plain(what: str) -> str:
    return what[:1].lower() + what[1:].replace("`", "")


def is_null(raw: msgspec.Raw | bytes) -> bool:
    """Tell whether a raw value is `null`."""
    return bytes(raw).strip(_BLANK) == b"null"


def splice(document: bytes, name: str, value: Mapping[str, Any]) -> bytes:
    """Add one field at the end of a JSON object, leaving every other byte as it is."""
    end = document.rindex(b"}")
    head = document[:end].rstrip(_BLANK)
    comma = b"" if head.endswith(b"{") else b","
    return b'%b%b"%b":%b%b' % (head, comma, name.encode(), _encoder.encode(value), document[end:])
