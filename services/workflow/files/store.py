"""Where files are: facts in the database, contents in a folder or an object store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import obstore
import obstore.store
import sqlalchemy as sa
from obstore.exceptions import BaseError
from obstore.store import ObjectStore
from sqlalchemy.dialects import postgresql, sqlite

from services.common.bulk import BulkInsert, OneOf, at_once, name_of
from services.common.db import Database
from services.common.gathering import Gathering
from services.common.ids import new_id
from services.common.outbox import SECOND
from services.common.rpc import RpcError
from services.workflow.files.sniffing import type_of
from services.workflow.material_tables import file_garbage
from services.workflow.store.records import row_type
from services.workflow.tables import file

# A content whose facts were never written is removed after this.
ABANDONED_S = 24 * 3600
FileRow: Any = row_type("file", file.c)
# Hashing more than this would hold up others.
HASHED_AT_ONCE = 2**16
# What many outputs want of the database at the same time waits so long for company.
LINGER_S = 0.02
# Larger contents go to an object store in several parts.
PART = 8 * 2**20
# A content that cannot be removed is tried again after this; after so many of them a sweep ends.
REMOVED_AGAIN_S = 3600
MOST_FAILURES = 3
# So much of a content is in memory for each who reads it.
READ_AT_ONCE = 2**20

_logger = logging.getLogger(__name__)


def open_contents(url: str, folder: Path) -> ObjectStore:
    """Return the store that `url` names, such as s3://bucket/prefix; empty: the folder.

    Credentials and endpoints are read from the variables of the vendor, such as AWS_ACCESS_KEY_ID and
    AWS_ENDPOINT_URL. Raises ValueError.
    """
    if not url:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return obstore.store.LocalStore(str(folder))
    try:
        if url.startswith("http://") or url.startswith("https://"):
            raise ValueError("a web address cannot be written to")
        return obstore.store.from_url(url)
    except (BaseError, ValueError) as error:
        raise ValueError(
            f"storage_url: expected s3://bucket/prefix, gs://... or az://..., and credentials: {error}"
        ) from None


class FileStore:
    """Keeps files of organisations. Contents lie under the organisation's own prefix."""

    def __init__(self, database: Database, contents: ObjectStore) -> None:
        self._database = database
        self._contents = contents
        self._new_files = BulkInsert(database, file)
        self._new_garbage = BulkInsert(database, file_garbage)
        self._one_of = OneOf(database)
        self._announced = f"DELETE FROM {name_of(database, file_garbage)} WHERE path {self._one_of.text}"
        # Many outputs come at the same time.
        self._announcing: Gathering[tuple[str, int], None] = Gathering(self._announce_all, linger_s=LINGER_S)
        self._recording: Gathering[dict[str, Any], Any] = Gathering(self._record_all, linger_s=LINGER_S)

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
        row = {
            **_facts(organisation_id, owner, file_id, purpose, name, job_id, now, expires_at),
            "mime": mime or type_of(data),
            "size": len(data),
            "sha256": await _sha256(data),
        }
        await self._announce(row["path"], now)
        await obstore.put_async(self._contents, row["path"], data, chunk_size=PART)
        return await self._recording(row)

    async def put_stream(
        self,
        organisation_id: str,
        owner: str,
        head: bytes,
        rest: AsyncIterator[bytes],
        *,
        purpose: str,
        now: int,
        name: str,
        mime: str,
        expires_at: int,
    ) -> Any:
        """Keep a file as it arrives, and return its row: `rest` follows on `head`, and may raise."""
        file_id = new_id("file")
        row = _facts(organisation_id, owner, file_id, purpose, name, "", now, expires_at) | {"mime": mime}
        digest, size = hashlib.sha256(head), len(head)

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            yield head
            async for piece in rest:
                size += len(piece)
                digest.update(piece)
                yield piece

        await self._announce(row["path"], now)
        await obstore.put_async(self._contents, row["path"], counted(), chunk_size=PART)
        return await self._recording(row | {"size": size, "sha256": digest.hexdigest()})

    async def _announce(self, path: str, now: int) -> None:
        """Note a content before it is written: should its facts never be, the sweep removes it."""
        await self._announcing((path, now))

    async def _announce_all(self, contents: Sequence[tuple[str, int]]) -> Sequence[None]:
        entries = [(path, now + ABANDONED_S * SECOND) for path, now in contents]
        async with self._database.transaction() as connection:
            for statement in self._new_garbage.of(entries):
                await connection.exec_driver_sql(*statement)
        return [None] * len(contents)

    async def _record_all(self, rows: Sequence[dict[str, Any]]) -> Sequence[Any]:
        """Write down facts, and take back what announced them. Those that are known already stay."""
        names = file.c.keys()
        statements = [
            (self._announced, (self._one_of.argument([row["path"] for row in rows]),)),
            *self._new_files.of([tuple(row[name] for name in names) for row in rows]),
        ]
        async with self._database.transaction() as connection:
            for statement in at_once(self._database, statements):
                await connection.exec_driver_sql(*statement)
        return [FileRow(**row) for row in rows]

    async def find(self, file_id: str) -> Any:
        """Return a file's row, or None."""
        async with self._database.reading() as connection:
            return (await connection.execute(sa.select(file).where(file.c.id == file_id))).one_or_none()

    async def of_organisation(self, organisation_id: str, file_id: str) -> Any:
        """Return a file's row. Raises RpcError NOT_FOUND, also for the files of others."""
        row = await self.find(file_id)
        if row is None or row.organisation_id != organisation_id:
            raise RpcError("NOT_FOUND", f"there is no file {file_id}")
        return row

    async def page(self, organisation_id: str, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return files, the newest first."""
        query = sa.select(file).where(file.c.organisation_id == organisation_id)
        if before is not None:
            query = query.where(sa.tuple_(file.c.created_at, file.c.id) < sa.tuple_(*map(sa.literal, before)))
        query = query.order_by(file.c.created_at.desc(), file.c.id.desc()).limit(limit)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).all()

    async def keep_for_ever(self, file_id: str, purpose: str) -> None:
        """Let a file not expire any more."""
        async with self._database.transaction() as connection:
            values = {"purpose": purpose, "expires_at": 0}
            await connection.execute(sa.update(file).where(file.c.id == file_id).values(values))

    async def read(self, row: Any) -> bytes:
        """Return a file's content. Raises RpcError INTERNAL when it is not what was kept."""
        try:
            answer = await obstore.get_async(self._contents, row.path)
            data = bytes(await answer.bytes_async())
        except FileNotFoundError:
            raise RpcError("NOT_FOUND", f"the content of {row.id} is gone") from None
        if len(data) != row.size or await _sha256(data) != row.sha256:
            raise RpcError("INTERNAL", f"the content of {row.id} is not what was kept")
        return data

    async def stream(self, row: Any) -> AsyncIterator[bytes]:
        """Return a file's whole content in pieces, of which only few are in memory.

        Raises RpcError NOT_FOUND before the first piece, INTERNAL after the last: it is not what was kept.
        """
        try:
            answer = await obstore.get_async(self._contents, row.path)
        except FileNotFoundError:
            raise RpcError("NOT_FOUND", f"the content of {row.id} is gone") from None
        return _checked(answer.stream(READ_AT_ONCE), row)

    async def open(self, row: Any, start: int, end: int) -> AsyncIterator[bytes]:
        """Return a file's bytes from `start` up to, not including, `end`, in pieces.

        Raises RpcError NOT_FOUND before the first piece.
        """
        if start >= end:
            return _pieces(())
        try:
            answer = await obstore.get_async(self._contents, row.path, options={"range": (start, end)})
        except FileNotFoundError:
            raise RpcError("NOT_FOUND", f"the content of {row.id} is gone") from None
        return _pieces(answer.stream(READ_AT_ONCE))

    async def remove(self, file_ids: Sequence[str], now: int) -> None:
        """Remove files: the facts at once, so that nobody finds them any more, then the contents."""
        async with self._database.transaction() as connection:
            await self._forget(connection, file.c.id.in_(file_ids), now)
        await self.sweep_contents(now)

    async def remove_expired(self, now: int, limit: int) -> int:
        """Remove files whose time is over; return how many."""
        due = sa.select(file.c.id).where(file.c.expires_at > 0, file.c.expires_at <= now).limit(limit)
        async with self._database.transaction() as connection:
            ids = (await connection.scalars(due.with_for_update(skip_locked=True))).all()
            return await self._forget(connection, file.c.id.in_(ids), now) if ids else 0

    async def _forget(self, connection: Any, which: Any, now: int) -> int:
        gone = sa.delete(file).where(which).returning(file.c.path)
        paths = (await connection.scalars(gone)).all()
        if paths:
            insert = (sqlite.insert if self._database.sqlite else postgresql.insert)(file_garbage)
            rows = [{"path": path, "due_at": now} for path in paths]
            await connection.execute(insert.values(rows).on_conflict_do_nothing())
        return len(paths)

    async def sweep_contents(self, now: int, limit: int = 200) -> int:
        """Remove contents that have no facts any more; return how many. A crash leaves them to the next.

        One that cannot be removed is tried again later; after a few, so is all the rest: the store is away.
        """
        due = sa.select(file_garbage.c.path).where(file_garbage.c.due_at <= now)
        async with self._database.reading() as connection:
            paths = (await connection.scalars(due.order_by(file_garbage.c.due_at).limit(limit))).all()
        removed: list[str] = []
        failed: list[str] = []
        for path in paths:
            try:
                # One that was never written, or that another replica has removed.
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(self._contents, path)
            except (BaseError, OSError) as error:
                _logger.warning("content_not_removed %s %s", path, type(error).__name__)
                failed.append(path)
                if len(failed) == MOST_FAILURES:
                    break
            else:
                removed.append(path)
        await self._swept(removed, failed, now)
        return len(removed)

    async def _swept(self, removed: Sequence[str], failed: Sequence[str], now: int) -> None:
        gone = sa.delete(file_garbage).where(file_garbage.c.path.in_(removed))
        later = sa.update(file_garbage).where(file_garbage.c.path.in_(failed))
        if removed or failed:
            async with self._database.transaction() as connection:
                await connection.execute(gone)
                await connection.execute(later.values(due_at=now + REMOVED_AGAIN_S * SECOND))


async def _pieces(stream: Any) -> AsyncIterator[bytes]:
    if stream:
        async for piece in stream:
            yield bytes(piece)


async def _checked(stream: Any, row: Any) -> AsyncIterator[bytes]:
    digest = hashlib.sha256()
    async for piece in _pieces(stream):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != row.sha256:
        raise RpcError("INTERNAL", f"the content of {row.id} is not what was kept")


def _facts(
    organisation_id: str,
    owner: str,
    file_id: str,
    purpose: str,
    name: str,
    job_id: str,
    now: int,
    expires_at: int,
) -> dict[str, Any]:
    return {
        "id": file_id,
        "organisation_id": organisation_id,
        "owner": owner,
        "purpose": purpose,
        "name": name[:255],
        "path": f"{organisation_id}/{file_id}",
        "job_id": job_id,
        "created_at": now,
        "expires_at": expires_at,
    }


async def _sha256(data: bytes) -> str:
    if len(data) <= HASHED_AT_ONCE:
        return hashlib.sha256(data).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
