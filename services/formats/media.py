"""Bytes inside JSON: base64 and data URLs. Only what can be written back identically is decoded."""

from __future__ import annotations

import base64
import binascii
import re

_DATA_URL = re.compile(r"data:([A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+);base64,")


def decode_base64(text: str) -> bytes | None:
    """Return the bytes, or None when encoding them again would not give `text`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data) == text.encode() else None


def encode_base64(data: bytes) -> str:
    """Return the bytes as base64."""
    return base64.b64encode(data).decode()


def read_data_url(url: str) -> tuple[str, bytes] | None:
    """Return the type and the bytes of a data URL, or None when it is something else."""
    head = _DATA_URL.match(url)
    if head is None:
        return None
    data = decode_base64(url[head.end() :])
    return (head[1], data) if data is not None else None


def write_data_url(mime: str, data: bytes) -> str:
    """Return the bytes as a data URL."""
    return f"data:{mime};base64,{encode_base64(data)}"
