"""Writes the fields of a request in a vendor's words, and says of each what became of it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from google.protobuf.message import Message
from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaFile, MediaInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import UnsupportedError
from services.providers.receipts import refuse_drops

# What a vendor calls a field; or what its value becomes there.
Word = str | Callable[[Any], Mapping[str, Any]]
_DATA = "data:"
_BASE64 = ";base64"
UNKNOWN_MIME = "application/octet-stream"


@dataclass(slots=True)
class Written:
    """The parameters of a vendor, and the receipt."""

    values: dict[str, Any] = field(default_factory=dict)
    receipt: list[ParameterReceipt] = field(default_factory=list)

    def take(self, name: str, value: Any, word: Word) -> None:
        """Write one field in the vendor's words."""
        made = {word: plain(value)} if isinstance(word, str) else word(value)
        _merge(self.values, made)
        words = " and ".join(made)
        same = words in ("", name)
        self.receipt.append(
            ParameterReceipt(
                name=name, outcome="forwarded" if same else "translated", detail="" if same else f"as {words}"
            )
        )

    def drop(self, name: str, detail: str) -> None:
        """Note that one field is left out."""
        self.receipt.append(ParameterReceipt(name=name, outcome="dropped", detail=detail))


def write(attempt: pb.MediaAttempt, words: Mapping[str, Word], extends: bool = True) -> Written:
    """Return what was asked in the words of a vendor. Raises UnsupportedError for a drop in strict mode.

    Parameters of `extension_json` go out as they are when the vendor `extends`.
    """
    written = Written()
    for name, value in fields_of(attempt.input).items():
        word = words.get(name)
        if word is None:
            written.drop(name, "this provider has no such parameter")
        else:
            written.take(name, value, word)
    for name, value in extension_of(attempt.input).items():
        if extends:
            written.take(name, value, name)
        else:
            written.drop(name, "this provider has no such parameter")
    if attempt.strict:
        refuse_drops(attempt.provider, written.receipt)
    return written


def fields_of(given: MediaInput) -> dict[str, Any]:
    """Return the fields that the caller set."""
    message: Message = getattr(given, given.WhichOneof("kind") or "")
    return {descriptor.name: value for descriptor, value in message.ListFields()}


def extension_of(given: MediaInput) -> dict[str, Any]:
    """Return the parameters that the contract does not name. Raises FormatError."""
    if not given.extension_json:
        return {}
    try:
        document = msgspec.json.decode(given.extension_json)
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    if not isinstance(document, dict):
        raise invalid("input.extension_json", "expected a JSON object")
    return document


def plain(value: Any) -> Any:
    """Return a field's value as JSON has it: files as addresses, numbers as they were meant."""
    if isinstance(value, float):
        # A proto float of 0.7 is 0.699999988: nobody asked for that.
        return float(f"{value:.7g}")
    if isinstance(value, MediaFile):
        return address_of(value)
    if isinstance(value, str | int | bool | dict | list) or value is None:
        return value
    return [plain(each) for each in value]


def address_of(file: MediaFile) -> str:
    """Return a file as an address: its own, or one that holds its bytes."""
    if file.url:
        return file.url
    return f"{_DATA}{file.mime or UNKNOWN_MIME}{_BASE64},{base64.b64encode(file.data).decode()}"


def bytes_of(file: MediaFile, provider: str, name: str) -> bytes:
    """Return the content of a file. Raises UnsupportedError when there is only an address."""
    if file.url:
        raise UnsupportedError(provider, f"{provider} fetches no addresses: upload the file first", name)
    return file.data


def read_data_address(text: str) -> tuple[str, bytes] | None:
    """Return type and content of an address that holds its bytes; None for any other."""
    head, comma, body = text.partition(",")
    if not (comma and head.startswith(_DATA) and head.endswith(_BASE64)):
        return None
    try:
        return head[len(_DATA) : -len(_BASE64)].partition(";")[0], base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        return None


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            into[name] |= value
        else:
            into[name] = value
