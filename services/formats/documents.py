"""JSON documents by their top-level values: each stays the bytes it came in."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Annotated, Any, TypeVar

import msgspec

from services.formats.errors import FormatError, invalid, malformed

Value = TypeVar("Value")
Fields = dict[str, msgspec.Raw]
# Where something stands. A number that is no place makes what it stands in malformed.
Place = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_WHERE = re.compile(r"^(?P<what>.*) - at `\$(?P<path>[^`]*)`$", re.DOTALL)
_BLANK = b" \t\r\n"
# Names with this prefix describe the form of a document; they are no parameters.
MARK = "@"
# `null` is short; longer values need not be looked at.
_NULL_LIMIT = 64
# Names the format of an answer whose raw JSON a message carries.
FORMAT = MARK + "format"


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


def decode_document(body: bytes, kind: type[Value]) -> Value:
    """Decode a whole document as `kind`. Raises FormatError with the path of the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None


def from_decode_error(error: Exception, field: str = "") -> FormatError:
    """Return what msgspec found wrong as a FormatError, with the path of the field."""
    found = _WHERE.match(str(error))
    if found is None and isinstance(error, msgspec.ValidationError):
        return invalid(field, _plain(str(error))) if field else malformed(_plain(str(error)))
    if found is None:
        return malformed(str(error))
    path = f"{field}{found['path']}".lstrip(".")
    return invalid(path, _plain(found["what"])) if path else malformed(_plain(found["what"]))


_WORDS = {"str": "string", "int": "whole number", "bool": "true or false", "float": "number", "array": "list"}


def _plain(what: str) -> str:
    """Return msgspec's words for a caller: "expected string, got whole number"."""
    named = re.sub(r"`([^`]*)`", lambda found: _kind(found[1]), what)
    return named[:1].lower() + named[1:]


def _kind(kinds: str) -> str:
    names = [name for name in kinds.split(" | ") if name != "null" or kinds == "null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def take(fields: Fields, name: str, kind: type[Value], path: str) -> Value | None:
    """Remove and decode a field. `null` stays behind, so that it can travel on as it is."""
    raw = fields.get(name)
    if raw is None or is_null(raw):
        return None
    value = read_value(raw, kind, join(path, name))
    del fields[name]
    return value


def take_text(fields: Fields, name: str, path: str) -> str:
    """Remove a string. An empty one stays behind, for it means the same as none in a message."""
    value = take(fields, name, str, path)
    if value == "":
        fields[name] = msgspec.Raw(b'""')
    return value or ""


def join(path: str, name: str) -> str:
    """Return the path of a field inside `path`."""
    return f"{path}.{name}" if path else name


def text_of(raw: msgspec.Raw) -> str:
    """Return a raw value as text."""
    return bytes(raw).decode()


def raw_of(text: str) -> msgspec.Raw:
    """Return JSON text as a raw value."""
    return msgspec.Raw(text.encode())


def says_something(name: str, text: str) -> bool:
    """Tell whether leaving this field out would lose anything."""
    return not name.startswith(MARK) and text not in {"null", '""', "[]", "{}"}


def keep(fields: Fields, extension: MutableMapping[str, str]) -> None:
    """Put what is left of an object where it travels on."""
    for name, raw in fields.items():
        extension[name] = text_of(raw)


def merge(fields: dict[str, Any], extension: Mapping[str, str]) -> dict[str, Any]:
    """Add what travelled on; an object inside an object is merged into it. Marks of form are left out."""
    for name, text in extension.items():
        if name.startswith(MARK):
            continue
        nested = fields.get(name)
        if isinstance(nested, dict) and text.startswith("{"):
            nested.update(read_object(text.encode()))
        else:
            fields[name] = raw_of(text)
    return fields


def is_null(raw: msgspec.Raw | bytes) -> bool:
    """Tell whether a raw value is `null`."""
    return len(raw) < _NULL_LIMIT and bytes(raw).strip(_BLANK) == b"null"


def is_object(text: str) -> bool:
    """Tell whether a text is a JSON object."""
    try:
        _object_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def starts_with(raw: msgspec.Raw, byte: bytes) -> bool:
    """Tell what kind of value this is by its first byte."""
    return bytes(memoryview(raw)[:1]) == byte


def splice(document: bytes, name: str, value: object) -> bytes:
    """Add one field at the end of a JSON object, leaving every other byte as it is."""
    end = document.rindex(b"}")
    head = document[:end].rstrip(_BLANK)
    comma = b"" if head.endswith(b"{") else b","
    return b'%b%b"%b":%b%b' % (head, comma, name.encode(), _encoder.encode(value), document[end:])
