"""Who did what by hand."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.store.tables import audit
from services.common.ids import new_id

LONGEST_SUBJECT = 200
LONGEST_NOTE = 500


async def keep_audit(
    connection: AsyncConnection,
    action: str,
    organisation_id: str,
    subject: str,
    actor: str,
    note: str,
    now: int,
) -> None:
    """Keep who did what, in the transaction that does it."""
    row = {
        "id": new_id("audit"),
        "at": now,
        "actor": actor,
        "action": action,
        "organisation_id": organisation_id,
        "subject": subject[:LONGEST_SUBJECT],
        "note": note[:LONGEST_NOTE],
    }
    await connection.execute(sa.insert(audit), row)
