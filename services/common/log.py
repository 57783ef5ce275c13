"""Logging: one wide event per request, JSON in production, readable in development.

Event names are constants in snake_case, facts are keys. Bodies, prompts and secrets are never
logged: nothing here takes them.

In JSON, lines about requests are written a tenth of a second later and together; see `RequestLines`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

import msgspec
import structlog

request_log = structlog.get_logger("omnihub.request")

WRITE_AFTER_S = 0.1
# A full batch is written at once: rendering it takes a fraction of a millisecond.
BATCH = 64


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

    __slots__ = ("_started", "fields", "kind", "name", "outcome", "request_id")

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        self.request_id = ""
        self.fields: dict[str, Any] = {}
        self.outcome = ""
        """How it ended; empty until it has."""
        self._started = time.perf_counter()

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
        if self.outcome:
            return
        self.outcome = outcome
        facts = {
            "name": self.name,
            "request_id": self.request_id,
            "outcome": outcome,
            "duration_ms": round((time.perf_counter() - self._started) * 1000, 3),
            **self.fields,
        }
        if _request_lines is None:
            request_log.info(self.kind, **facts)
        else:
            _request_lines.add(self.kind, facts)


class RequestLines:
    """Writes the lines of requests in batches, for one line at a time costs more than reading a request.

    It is also the stream of all other records: these are written at once, after the lines that wait, so that
    the order stays. A process that is killed loses the lines of its last `WRITE_AFTER_S`; what must survive
    is in the journal.

    Other records come from any thread, so writing touches neither the timer nor a line twice.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        """A timer of it will write."""

    def add(self, kind: str, facts: dict[str, Any]) -> None:
        """Take in the line of one request."""
        self._waiting.append((time.time(), kind, facts))
        if len(self._waiting) >= BATCH:
            self.flush()
        elif self._loop is None or self._loop.is_closed():
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                # Nothing would ever write it.
                self.flush()
            else:
                loop.call_later(WRITE_AFTER_S, self._ring)
                self._loop = loop

    def _ring(self) -> None:
        self._loop = None
        self.flush()

    def write(self, text: str) -> None:
        """Write another record's line, behind those that wait."""
        self._write_waiting()
        self._file.write(text)

    def flush(self) -> None:
        """Write everything that waits."""
        self._write_waiting()
        self._file.flush()

    def _write_waiting(self) -> None:
        lines = []
        try:
            while self._waiting:
                lines.append(_line(*self._waiting.popleft()))
        except IndexError:
            # Another thread has taken the last one.
            pass
        if lines:
            self._file.write("".join(lines))


_request_lines: RequestLines | None = None


def _line(at: float, kind: str, facts: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    return _encode({**facts, "event": kind, "level": "info", "timestamp": moment}) + "\n"


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
    global _request_lines
    lines = RequestLines(sys.stdout)
    _request_lines = lines if json and number <= logging.INFO else None
    atexit.register(lines.flush)
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
