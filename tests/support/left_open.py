"""Names the test that leaves something open which needs its event loop to close.

Such a thing is complained about when it is collected as garbage: some time later, in a test that has
nothing to do with it. Here it is found at the end of the very test whose loop is closed for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from asyncio import base_events, base_subprocess, selector_events
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import greenlet
import psycopg
from grpc.aio import _channel as grpc_channel

from services.common import sqlite

# Frames of what was called to open it; the last ones say who did.
_FRAMES = 12
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(str(_ROOT / name) for name in ("services", "tests"))
# What must be closed, and how to tell whether it is open.
_KINDS: dict[type[Any], Callable[[Any], bool]] = {
    # One that was told to stop closes in its own thread.
    sqlite.Connection: lambda it: it._running and it._connection is not None,
    psycopg.AsyncConnection: lambda it: not it.closed,
    aiohttp.ClientSession: lambda it: not it.closed,
    grpc_channel.Channel: lambda it: not it._channel.closed(),
    selector_events._SelectorTransport: lambda it: it._sock is not None,
    base_subprocess.BaseSubprocessTransport: lambda it: not it._closed,
    base_events.Server: lambda it: it._sockets is not None,
}


@dataclass
class _Opening:
    loop: asyncio.AbstractEventLoop
    test: str
    where: str


class LeftOpen:
    """What was opened and not yet seen closed."""

    def __init__(self) -> None:
        self.test = "no test"
        self._openings: weakref.WeakKeyDictionary[Any, _Opening] = weakref.WeakKeyDictionary()
        # Named already: held, so that their warnings do not come up in another test.
        self._named: list[Any] = []

    def note(self, it: Any) -> None:
        """Remember something that was opened now; things without a loop are no concern of ours."""
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            self._openings[it] = _Opening(loop, self.test, _where())

    def open(self) -> list[Any]:
        """Return what is open now."""
        return [it for it in list(self._openings) if _is_open(it)]

    def at_end_of_test(self) -> list[str]:
        """Return what is open although its loop is closed. Each is named once."""
        found = []
        for it, opening in list(self._openings.items()):
            if opening.loop.is_closed():
                del self._openings[it]
                if _is_open(it):
                    self._named.append(it)
                    found.append(f"{it!r} was left open by {opening.test}, opened at\n{opening.where}")
        return found


def _is_open(it: Any) -> bool:
    return any(is_open(it) for kind, is_open in _KINDS.items() if isinstance(it, kind))


def _where() -> str:
    """Return the calls that led here: our own, without those of libraries."""
    lines = [
        f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
        for frame in _frames()
        if frame.f_code.co_filename.startswith(_OURS) and frame.f_code.co_filename != __file__
    ]
    return "\n".join(reversed(lines[:_FRAMES]))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    # SQLAlchemy opens its connections in a greenlet: who called it is on the stack of its parent.
    parent = greenlet.getcurrent().parent
    while frame or parent:
        if frame is None:
            frame, parent = parent.gr_frame, parent.parent
            continue
        yield frame
        frame = frame.f_back


@contextlib.contextmanager
def watching() -> Iterator[LeftOpen]:
    """Watch what is opened."""
    left = LeftOpen()
    made = {kind: kind.__init__ for kind in _KINDS}
    for kind, make in made.items():
        kind.__init__ = _noting(left, make)
    try:
        yield left
    finally:
        for kind, make in made.items():
            kind.__init__ = make


def _noting(left: LeftOpen, make: Callable[..., None]) -> Callable[..., None]:
    def noting(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        left.note(self)

    return noting
