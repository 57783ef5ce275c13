"""Waiting for what other processes do: a bounded look-again, never a fixed pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.suite import select_pause

Value = TypeVar("Value")


def eventually(
    look: Callable[[], Value], holds: Callable[[Value], bool] = bool, within_s: float = 30
) -> Value:
    """Look until `holds` is true of what is seen, and return that. Raises AssertionError."""
    deadline = time.monotonic() + within_s
    while True:
        value = look()
        if holds(value):
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s: {value!r}"
        select_pause(0.05)
