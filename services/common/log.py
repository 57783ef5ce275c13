"""Logging: one wide event per request, JSON in production, readable in development.

Event names are constants in snake_case, facts are keys. Bodies, prompts and secrets are never
logged: nothing here takes them.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Protocol

import msgspec
import structlog

request_log = structlog.get_logger("omnihub.request")


class Subject(Protocol):
    """The parts of an identity that a log line shows."""

    @property
    def organisation_id(self) -> str: ...  # noqa: D102
    @property
    def key_id(self) -> str: ...  # noqa: D102
    @property
    def user_id(self) -> str: ...  # noqa: D102


class RequestEvent:
    """The one log line of a request, filled on the way and written at its end."""

    __slots__ = ("_done", "_started", "fields", "kind", "name", "request_id")

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        self.request_id = ""
        self.fields: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._done = False

    def identify(self, request_id: str, subject: Subject, traceparent: str = "") -> None:
        """Say which request this is and who asks."""
        self.request_id = request_id
        if subject.organisation_id:
            self.fields["organisation_id"] = subject.organisation_id
        if subject.key_id:
            self.fields["key_id"] = subject.key_id
        if subject.user_id:
            self.fields["user_id"] = subject.user_id
        if traceparent:
            self.fields["traceparent"] = traceparent

    def finish(self, outcome: str) -> None:
        """Write the line. Later calls do nothing."""
        if self._done:
            return
        self._done = True
        request_log.info(
            self.kind,
            name=self.name,
            request_id=self.request_id,
            outcome=outcome,
            duration_ms=round((time.perf_counter() - self._started) * 1000, 3),
            **self.fields,
        )


def _encode(event: dict[str, Any], **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def configure(*, json: bool, level: str) -> None:
    """Set up structlog and send the standard library's records through the same output."""
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(_encode)
        if json
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
