"""`omnihub billing check`: proves that the books add up, or says where they do not."""

from __future__ import annotations

import sys
from pathlib import Path

import sqlalchemy as sa

from services.billing.domain.difference import Report
from services.billing.domain.plan import PlanBook
from services.billing.store.checks import check_ledger
from services.common.db import Database, sqlite_url


def check(data_dir: Path, database_url: str, plan_book: PlanBook) -> int:
    """Check the ledger of the configured database: 0 when it adds up, 1 when not, 2 when there is none.

    It only reads, and may be run while the suite serves.
    """
    file = data_dir / "billing.db"
    if not database_url and not file.exists():
        sys.stderr.write(f"there is no ledger at {file}; check OMNIHUB_DATA_DIR or OMNIHUB_DATABASE_URL\n")
        return 2
    database = Database(database_url or sqlite_url(file), "billing")
    try:
        report = check_ledger(database, plan_book)
    except sa.exc.DBAPIError as error:
        sys.stderr.write(f"the ledger cannot be read: {error.orig}\n")
        return 2
    sys.stdout.write(described(report))
    return 0 if report.ok else 1


def described(report: Report) -> str:
    """Return a report as lines for a person, each difference with both sides."""
    lines = [
        f"{each.rule} {each.subject}: expected {each.expected}, found {each.found}"
        for each in report.differences
    ]
    verdict = "the books add up" if report.ok else f"{len(lines)} differences"
    lines.append(
        f"{verdict}: {report.transactions} transactions, {report.entries} entries, "
        f"{report.usage_events} usage events, {report.blocks} sealed blocks, {report.unsealed} not sealed yet"
    )
    return "\n".join(lines) + "\n"
