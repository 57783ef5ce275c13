"""Wakes in this process who waits for work; across processes they look by themselves, a little later."""

from __future__ import annotations

from collections.abc import Callable


class Bell:
    """Rung when something has been written that others in this process wait for."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` at each ring."""
        self._listeners.append(listener)

    def ring(self) -> None:
        """Wake all listeners."""
        for listener in self._listeners:
            listener()
