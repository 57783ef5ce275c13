"""Ids of tool calls. This provider mostly gives none, so we make them."""

from __future__ import annotations

import re

_MADE = re.compile(r"call_[0-9a-f]{32}_[0-9]+")


def is_made(identifier: str) -> bool:
    """Tell whether an id was made here: a prefix of `call_` and 32 hexadecimal digits, and a number."""
    return _MADE.fullmatch(identifier) is not None
