"""What a content is: the short way says what the long one says."""

from __future__ import annotations

import puremagic
import pytest

from services.workflow.domain.media_types import canonical
from services.workflow.files.sniffing import type_of

REST = bytes(range(64)) * 2


@pytest.mark.parametrize(
    ("beginning", "mime"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "image/jpeg"),
        (b"\xff\xd8\xff\xe1\0\x10Exif\0", "image/jpeg"),
        (b"\xff\xd8\xff\xdb", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "audio/wav"),
    ],
)
def test_what_is_common_is_told_as_among_all_types(beginning: bytes, mime: str) -> None:
    content = beginning + REST
    assert type_of(content) == canonical(puremagic.from_string(content, mime=True)) == mime


@pytest.mark.parametrize("beginning", [b"\x89PNG\r\n\0", b"GIF88a\0", b"RIFF\x10\0\0\0WEB?"])
def test_what_only_resembles_it_is_not_it(beginning: bytes) -> None:
    assert type_of(beginning + b"\0" * 64) not in {"image/png", "image/gif", "image/webp"}
