"""What a service gives the launcher, and what it gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from services.common.authenticator import Authenticator
from services.common.bell import Bell
from services.common.db import Database, sqlite_url
from services.common.rpc.connect import Connector
from services.common.rpc.method import ServiceInterface


async def _nothing() -> None:
    return None


def _no_announcements() -> Sequence[str]:
    return ()


class StartupError(Exception):
    """A service cannot start as it is configured; the message tells an operator what to change."""


@dataclass(kw_only=True)
class Service:
    """A built service: what it serves and how it lives. `start` returns once it can be called."""

    name: str
    interfaces: Sequence[tuple[type[ServiceInterface], Any]] = ()
    routes: Sequence[BaseRoute] = ()
    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing
    check: Callable[[], Awaitable[None]] = _nothing
    """Raises when a request would fail, with a message for an operator."""
    announce: Callable[[], Sequence[str]] = _no_announcements
    """Lines to print once, after `start`, and never to log: they may hold secrets."""


@dataclass(kw_only=True)
class Infrastructure:
    """What the process offers to the services in it."""

    connector: Connector
    data_dir: Path
    database_url: str = ""
    amqp_url: str = ""
    """Of RabbitMQ; empty: asynchronous work is drained in the process that begins it."""
    instance_id: str = ""
    """Unique to this start of this process."""
    authenticator: Authenticator | None = field(default=None)
    """Set once the auth service can be connected, before any other service is built."""
    _databases: dict[str, Database] = field(default_factory=dict)
    _bells: dict[str, Bell] = field(default_factory=dict)

    def database(self, service: str) -> Database:
        """Return the database of a service: its own SQLite file, or its own PostgreSQL schema.

        The targets of one service share it in a process: writers of SQLite then queue up in one place.
        """
        if service not in self._databases:
            url = self.database_url or sqlite_url(self.data_dir / f"{service}.db")
            self._databases[service] = Database(url, service)
        return self._databases[service]

    def bell(self, area: str) -> Bell:
        """Return what wakes those who wait for work of an area in this process."""
        return self._bells.setdefault(area, Bell())
