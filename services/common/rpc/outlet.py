"""Messages of a stream that are handed on at once, without waking a task for each.

A stream is pulled: its reader's task and its handler's take turns, and each turn costs more than a message
does. Where most messages only pass through, a handler returns an `OutletStream` and first gives them to its
outlet; a reader says by `offer` which ones it takes there and then. In one process the message passes in the
same turn of the event loop. What is not taken is yielded and read in its turn, as everything is across
processes: taking is a short cut, and never the only way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

Event = TypeVar("Event", bound=Message)
Accept = Callable[[Any], bool]
"""Takes a message, or tells that it does not, having done nothing. It may be offered the same again, and
where a handler gives only what its messages hold, both that and whole messages."""


class Outlet:
    """Where a handler gives away messages before they are asked for. Closed until somebody reads."""

    __slots__ = ("accept",)

    def __init__(self) -> None:
        self.accept: Accept | None = None

    def give(self, message: Message) -> bool:
        """Hand a message over, not to be touched again, and tell whether it was taken.

        It may be the stream's, or just what one of the stream's messages would hold: those of two services
        are of different types, what they hold often is of the same and can pass through both.
        Only while the handler waits for more, with nothing left to yield: or messages would change places.
        """
        return self.accept is not None and self.accept(message)


class OutletStream(AsyncIterator[Event], Generic[Event]):
    """A handler's stream with an outlet."""

    __slots__ = ("_events", "outlet")

    def __init__(self, events: AsyncGenerator[Event, None], outlet: Outlet) -> None:
        self._events = events
        self.outlet = outlet

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self._events

    def __anext__(self) -> Awaitable[Event]:
        return self._events.__anext__()

    def aclose(self) -> Coroutine[Any, Any, None]:
        """End the stream."""
        return self._events.aclose()


def offer(stream: Any, accept: Accept) -> None:
    """Let `accept` have the messages of a stream first. A stream of another kind is read as before."""
    take_offers = getattr(stream, "offer_to", None)
    if take_offers is not None:
        take_offers(accept)
