"""Dead letters: messages that nobody could work off, kept to be seen and sent again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.workflow.domain.errors import DeadLetterNotFoundError
from services.workflow.domain.states import ATTEMPT_FINAL
from services.workflow.store.records import NOTIFY_QUEUE, VOICE_QUEUE
from services.workflow.store.together import Together
from services.workflow.tables import attempt, dead_letter, job

# A message that has died so often is about something that cannot be worked off.
MOST_DEATHS = 3


class Letters(Together):
    """The graveyard's side."""

    async def bury(self, queue: str, subject_id: str, reason: str, now: int) -> None:
        """Take in a message that the broker gave up.

        Not every one is at fault: it also counts as a delivery when a worker dies while the message waits in
        it. So it is sent again, and only when it has died again and again does its attempt end.
        """
        async with self.database.transaction() as connection:
            both = await self.lock_both(connection, subject_id)
            if both is not None and both[0].state in ATTEMPT_FINAL:
                return
            if both is None:
                await self.letter(connection, queue, subject_id, reason, now)
                return
            row, owner = both
            count = sa.select(sa.func.count()).where(dead_letter.c.subject_id == subject_id)
            if (await connection.scalar(count) or 0) + 1 >= MOST_DEATHS:
                await self.poison(connection, row, owner, reason, now)
                return
            await self.letter(connection, queue, subject_id, reason, now, redriven_at=now)
            await self.outbox.append(connection, row.queue, row.id, now)

    async def page(self, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return dead letters, the newest first."""
        query = sa.select(dead_letter)
        if before is not None:
            here = sa.tuple_(dead_letter.c.at, dead_letter.c.id)
            query = query.where(here < sa.tuple_(*map(sa.literal, before)))
        query = query.order_by(dead_letter.c.at.desc(), dead_letter.c.id.desc()).limit(limit)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def find(self, dead_letter_id: str) -> tuple[Any, Any, Any]:
        """Return a letter with its attempt and job, where these exist. Raises DeadLetterNotFoundError."""
        async with self.database.reading() as connection:
            query = sa.select(dead_letter).where(dead_letter.c.id == dead_letter_id)
            letter = (await connection.execute(query)).one_or_none()
            if letter is None:
                raise DeadLetterNotFoundError(f"there is no dead letter {dead_letter_id}")
            about = sa.select(attempt).where(attempt.c.id == letter.subject_id)
            row = (await connection.execute(about)).one_or_none()
            owner = None
            if row is not None:
                owner = (await connection.execute(sa.select(job).where(job.c.id == row.job_id))).one_or_none()
        return letter, row, owner

    async def redrive(self, letter: Any, row: Any, now: int) -> None:
        """Note that a letter has been sent again; `row`, its attempt, gets a message when it still runs.

        What is not about an attempt is sent again as it was: a notification, a voice to remove.
        """
        async with self.database.transaction() as connection:
            mine = dead_letter.c.id == letter.id, dead_letter.c.redriven_at == 0
            statement = sa.update(dead_letter).where(*mine).values(redriven_at=now)
            sent = await connection.scalar(statement.returning(dead_letter.c.id))
            if sent is None:
                return
            if row is not None and row.state not in ATTEMPT_FINAL:
                await self.outbox.append(connection, row.queue, row.id, now)
            elif letter.queue in (NOTIFY_QUEUE, VOICE_QUEUE):
                await self.outbox.append(connection, letter.queue, letter.subject_id, now)
