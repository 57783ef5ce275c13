"""Kept answers in the router's database: they outlive the process, and other replicas find them."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import sqlalchemy as sa
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database

metadata = sa.MetaData()
kept_answers = sa.Table(
    "kept_answers",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("organisation_id", sa.String(64), nullable=False),
    sa.Column("kept_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
)
# Answers that wait to be written; more of them are not kept.
WAITING = 256
TRIM_EVERY_S = 60.0

_logger = logging.getLogger(__name__)


class KeptAnswers:
    """Reads answers when asked, writes them in the background."""

    def __init__(self, database: Database, total_bytes: int) -> None:
        self._database = database
        self._total_bytes = total_bytes
        self._waiting: asyncio.Queue[tuple[str, CachedAnswer]] = asyncio.Queue(WAITING)
        self._task: asyncio.Task[None] | None = None
        make = sqlite.insert if database.sqlite else postgresql.insert
        insert: Any = make(kept_answers)
        names = ("organisation_id", "kept_at", "expires_at", "size", "answer")
        self._insert = insert.on_conflict_do_update(
            index_elements=["key"], set_={name: insert.excluded[name] for name in names}
        )

    async def find(self, key: str, now_s: float) -> CachedAnswer | None:
        """Return a kept answer that has not expired. A database that fails has none."""
        query = sa.select(kept_answers.c.answer).where(
            kept_answers.c.key == key, kept_answers.c.expires_at > int(now_s)
        )
        try:
            async with self._database.reading() as connection:
                found = await connection.scalar(query)
        except (sa.exc.SQLAlchemyError, OSError) as error:
            _logger.warning("kept_answer_not_read %s", error)
            return None
        return None if found is None else CachedAnswer.FromString(found)

    def keep(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer, in the background."""
        if not self._waiting.full():
            self._waiting.put_nowait((key, answer))

    def start(self) -> None:
        """Start to write."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._write_waiting([])

    async def _run(self) -> None:
        trimmed = 0.0
        while True:
            first = await self._waiting.get()
            try:
                await self._write_waiting([first])
                if time.monotonic() - trimmed >= TRIM_EVERY_S:
                    trimmed = time.monotonic()
                    await self.trim(time.time())
            except (sa.exc.SQLAlchemyError, OSError) as error:
                _logger.warning("kept_answers_not_trimmed %s", error)
            except Exception:
                _logger.exception("kept_answers_not_written")

    async def _write_waiting(self, batch: list[tuple[str, CachedAnswer]]) -> None:
        while not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        rows = {key: _row(key, answer) for key, answer in batch}
        if not rows:
            return
        try:
            async with self._database.transaction() as connection:
                await connection.execute(self._insert, list(rows.values()))
        except (sa.exc.SQLAlchemyError, OSError) as error:
            _logger.warning("kept_answers_not_written %s", error)

    async def trim(self, now_s: float) -> None:
        """Delete what has expired, then the oldest until the rest fits."""
        newest = sa.select(
            kept_answers.c.key,
            sa.func.sum(kept_answers.c.size)
            .over(order_by=[kept_answers.c.kept_at.desc(), kept_answers.c.key])
            .label("together"),
        ).subquery()
        too_much = sa.select(newest.c.key).where(newest.c.together > self._total_bytes)
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(kept_answers).where(kept_answers.c.expires_at <= int(now_s)))
            await connection.execute(sa.delete(kept_answers).where(kept_answers.c.key.in_(too_much)))


def _row(key: str, answer: CachedAnswer) -> dict[str, Any]:
    data = answer.SerializeToString()
    return {
        "key": key,
        "organisation_id": answer.organisation_id,
        "kept_at": int(time.time()),
        "expires_at": int(answer.expires_at),
        "size": len(data),
        "answer": data,
    }
