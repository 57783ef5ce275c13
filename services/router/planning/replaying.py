"""`omnihub router replay`: decides stored decisions again, and tells which do not agree. Only reads."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from omnihub.router.v1.decision_pb2 import Decision

from services.common.db import Database
from services.router.accounting.store import journal
from services.router.domain.record import replay

PAGE = 500
SHOWN = 20
# What a shell sees: all agree, some do not, it could not be found out.
AGREED, DIFFERED, UNUSABLE = 0, 1, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--from", dest="since", type=_milliseconds, help="such as 2025-01-31 or 2025-01-31T12:00"
    )
    parser.add_argument("--to", dest="until", type=_milliseconds, help="before this time")
    parser.add_argument("--decision", default="", help="only this one")


def _milliseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2025-01-31T12:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def run(url: str, file: Path | None, options: argparse.Namespace) -> int:
    """Replay what the options select, print the outcome, and return the exit status.

    `file` is the database's when it is a SQLite file.
    """
    if file is not None and not file.exists():
        sys.stderr.write(f"there are no decisions: {file} does not exist; check OMNIHUB_DATA_DIR\n")
        return UNUSABLE
    try:
        return asyncio.run(_replay(Database(url, "router"), options))
    except (sa.exc.SQLAlchemyError, OSError) as error:
        sys.stderr.write(f"the decisions cannot be read: {error}; check OMNIHUB_DATABASE_URL\n")
        return UNUSABLE


async def _replay(database: Database, options: argparse.Namespace) -> int:
    agreed = differed = skipped = 0
    try:
        async for decision in _decisions(database, options):
            try:
                differences = replay(decision)
            except ValueError as error:
                skipped += 1
                if options.decision:
                    sys.stdout.write(f"{decision.decision_id} cannot be replayed: {error}\n")
                continue
            if not differences:
                agreed += 1
                continue
            differed += 1
            if differed <= SHOWN:
                sys.stdout.write(f"{decision.decision_id} differs: {'; '.join(differences)}\n")
    finally:
        await database.close()
    if options.decision and not agreed + differed + skipped:
        sys.stderr.write(f"there is no decision {options.decision!r}\n")
        return UNUSABLE
    total = agreed + differed
    share = f", {agreed / total:.2%} agree" if total else ""
    sys.stdout.write(f"{total} replayed{share}; {skipped} had nothing to replay\n")
    return DIFFERED if differed else AGREED


async def _decisions(database: Database, options: argparse.Namespace) -> AsyncIterator[Decision]:
    """Yield the decisions selected, oldest first, in pages."""
    query = sa.select(journal.c.at, journal.c.attempt_id, journal.c.decision)
    query = query.order_by(journal.c.at, journal.c.attempt_id).limit(PAGE)
    if options.decision:
        query = query.where(journal.c.decision_id == options.decision)
    if options.since is not None:
        query = query.where(journal.c.at >= options.since)
    if options.until is not None:
        query = query.where(journal.c.at < options.until)
    page = query
    while True:
        async with database.reading() as connection:
            rows = (await connection.execute(page)).all()
        for row in rows:
            yield Decision.FromString(row.decision)
        if len(rows) < PAGE:
            return
        last = rows[-1]
        newer = sa.or_(
            journal.c.at > last.at, sa.and_(journal.c.at == last.at, journal.c.attempt_id > last.attempt_id)
        )
        page = query.where(newer)
