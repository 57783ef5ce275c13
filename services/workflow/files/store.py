"""Where files are: facts in the database, contents in a folder or an object store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import obstore
import puremagic
import sqlalchemy as sa
from obstore.store import ObjectStore

from services.common.db import Database
from services.common.ids import new_id
from services.workflow.tables import file

UNKNOWN = "application/octet-stream"


class FileStore:
    """Keeps files of organisations. Contents lie under the organisation's own prefix."""

    def __init__(self, database: Database, contents: ObjectStore) -> None:
        self._database = database
        self._contents = contents

    async def put(
        self,
        organisation_id: str,
        owner: str,
        data: bytes,
        *,
        purpose: str,
        now: int,
        name: str = "",
        mime: str = "",
        job_id: str = "",
        expires_at: int = 0,
    ) -> Any:
        """Keep a file and return its row. The content is written before the facts."""
        file_id = new_id("file")
        path = f"{organisation_id}/{file_id}"
        await obstore.put_async(self._contents, path, data)
        row = {
            "id": file_id,
            "organisation_id": organisation_id,
            "owner": owner,
            "purpose": purpose,
            "name": name,
            "mime": mime or await asyncio.to_thread(type_of, data),
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "path": path,
            "job_id": job_id,
            "created_at": now,
            "expires_at": expires_at,
        }
        async with self._database.transaction() as connection:
            created = await connection.execute(sa.insert(file).values(row).returning(*file.c))
            return created.one()

    async def find(self, file_id: str) -> Any:
        """Return a file's row, or None."""
        async with self._database.reading() as connection:
            return (await connection.execute(sa.select(file).where(file.c.id == file_id))).one_or_none()

    async def page(self, organisation_id: str, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return files, the newest first."""
        query = sa.select(file).where(file.c.organisation_id == organisation_id)
        if before is not None:
            query = query.where(sa.tuple_(file.c.created_at, file.c.id) < sa.tuple_(*map(sa.literal, before)))
        query = query.order_by(file.c.created_at.desc(), file.c.id.desc()).limit(limit)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).all()

    async def read(self, row: Any) -> bytes:
        """Return a file's content."""
        answer = await obstore.get_async(self._contents, row.path)
        return bytes(await answer.bytes_async())

    async def stream(self, row: Any) -> AsyncIterator[bytes]:
        """Yield a file's content in pieces."""
        answer = await obstore.get_async(self._contents, row.path)
        async for piece in answer.stream():
            yield bytes(piece)

    async def remove(self, file_ids: Sequence[str]) -> None:
        """Remove files: the facts first, so that nobody finds a file without content."""
        async with self._database.transaction() as connection:
            gone = sa.delete(file).where(file.c.id.in_(file_ids)).returning(file.c.path)
            paths = (await connection.scalars(gone)).all()
        if paths:
            await obstore.delete_async(self._contents, list(paths))


def type_of(data: bytes) -> str:
    """Return the MIME type that a content shows."""
    try:
        return puremagic.from_string(data[:4096], mime=True) or UNKNOWN
    except (puremagic.PureError, ValueError):
        return UNKNOWN
