"""Thoughts with details: text, summaries and sealed ones, each with what its vendor wants back beside it.

Only one format has such details. Through the others, what stands beside the text travels in the thought's
signature, and a sealed thought as its opaque data, under a prefix that no vendor's own signature has.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Part, ReasoningPart

Detail = dict[str, Any]
# A JSON document as a string in any body with such a thought.
SEALED = b'"omnihub.details.'
_PREFIX = "omnihub.details."
_ENCRYPTED = "reasoning.encrypted"
_TEXTS = {"reasoning.text": "text", "reasoning.summary": "summary"}


def read_details(raw: msgspec.Raw) -> list[Detail]:
    """Return the details of a list that are of a kind known here; none when it is no such list."""
    try:
        details = msgspec.json.decode(raw, type=list[Detail])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [each for each in details if each.get("type") == _ENCRYPTED or text_field(each)]


def text_field(detail: Detail) -> str:
    """Return the name of the field that holds the text; empty when a detail has none."""
    return _TEXTS.get(str(detail.get("type")), "")


def read_text(detail: Detail) -> str:
    """Return the text of a detail."""
    text = detail.get(text_field(detail))
    return text if isinstance(text, str) else ""


def read_detail(detail: Detail) -> Part:
    """Return the thought that a detail is."""
    part = Part()
    if detail.get("type") == _ENCRYPTED:
        part.reasoning.encrypted, part.reasoning.redacted = seal(detail), True
        return part
    part.reasoning.text = read_text(detail)
    part.reasoning.signature = seal(detail)
    return part


def seal(detail: Detail) -> str:
    """Return what stands beside the text of a detail, in a form that other formats carry."""
    beside = {name: value for name, value in detail.items() if name != text_field(detail)}
    return _PREFIX + base64.b64encode(msgspec.json.encode(beside)).decode()


def is_sealed(reasoning: ReasoningPart) -> bool:
    """Tell whether a thought came with details: no vendor of another format takes it back."""
    return reasoning.signature.startswith(_PREFIX) or reasoning.encrypted.startswith(_PREFIX)


def write_detail(reasoning: ReasoningPart) -> Detail | None:
    """Return the detail that a thought came as; None when it came as none."""
    if not is_sealed(reasoning):
        return None
    sealed = reasoning.encrypted if reasoning.redacted else reasoning.signature
    try:
        beside = base64.b64decode(sealed.removeprefix(_PREFIX), validate=True)
        detail = msgspec.json.decode(beside, type=Detail)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
    name = text_field(detail)
    return {**detail, name: reasoning.text} if name and reasoning.text else detail
