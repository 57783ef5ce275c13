"""Duties that one replica has at a time, elected through the database."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.common.outbox import SECOND
from services.workflow.material_tables import duty


class Duties:
    """Elects. A holder that has died loses its duty when its time is over."""

    def __init__(self, database: Database, holder: str) -> None:
        self._database = database
        self._holder = holder

    async def take(self, name: str, for_s: float, now: int) -> bool:
        """Take or keep a duty. Tells whether it is ours."""
        until = now + round(for_s * SECOND)
        insert = (sqlite.insert if self._database.sqlite else postgresql.insert)(duty)
        row = {"name": name, "holder": self._holder, "held_until": until}
        free = sa.or_(duty.c.held_until < now, duty.c.holder == self._holder)
        statement = insert.values(row).on_conflict_do_update(
            index_elements=[duty.c.name],
            set_={"holder": self._holder, "held_until": until},
            where=free,
        )
        async with self._database.transaction() as connection:
            taken = await connection.execute(statement.returning(duty.c.holder))
            return taken.one_or_none() is not None
