"""A ledger written before accounts had purposes: nothing is lost, nothing booked is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.billing.app import MIGRATIONS
from services.billing.domain.grant import Grant
from services.billing.store import Store
from services.billing.store.checks import check_ledger
from services.billing.store.tables import ledger_entry
from services.common.db import Database
from tests.support.billing import assert_books_balance, charge

pytestmark = pytest.mark.new_database

BOOKED = """
INSERT INTO account (id, organisation_id, kind, posted, held, leased, welcomed, opened_at) VALUES
  ('wallet:org_a', 'org_a', 'wallet', 930, 20, 0, {true}, 5),
  ('wallet:org_b', 'org_b', 'wallet', -30, 0, 0, {true}, 6),
  ('wallet:org_c', 'org_c', 'wallet', 0, 0, 0, {true}, 7),
  ('system:revenue', '', 'revenue', 100, 0, 0, {false}, 1),
  ('system:promo_expense', '', 'promo_expense', -1000, 0, 0, {false}, 1);
INSERT INTO ledger_transaction (id, kind, fingerprint, actor, note, at) VALUES
  ('grant:free:org_a', 'grant', 'f', '', '', 5), ('txn_1', 'charges', 'f', '', '', 8),
  ('txn_2', 'charges', 'f', '', '', 9);
INSERT INTO ledger_entry (transaction_id, account_id, amount) VALUES
  ('grant:free:org_a', 'wallet:org_a', 1000), ('grant:free:org_a', 'system:promo_expense', -1000),
  ('txn_1', 'wallet:org_a', -70), ('txn_1', 'system:revenue', 70),
  ('txn_2', 'wallet:org_b', -30), ('txn_2', 'system:revenue', 30);
INSERT INTO hold (id, account_id, amount, requested, captured, state, expires_at, created_at) VALUES
  ('h', 'wallet:org_a', 20, 20, 0, 'open', 99, 5);
"""


async def test_what_was_booked_before_is_carried_over(database_url: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    shutil.copy(MIGRATIONS / "0001_first.py", first)
    database = Database(database_url, "billing")
    await database.migrate(first)
    values = {"true": 1, "false": 0} if database.sqlite else {"true": "true", "false": "false"}
    async with database.transaction() as connection:
        if not database.sqlite:
            await connection.exec_driver_sql('SET LOCAL search_path TO "billing"')
        for statement in BOOKED.format(**values).strip().split(";\n"):
            await connection.exec_driver_sql(statement.rstrip(";"))
    await database.migrate(MIGRATIONS)
    store = Store(database)
    await store.open_system_accounts(10)
    books = await assert_books_balance(store)
    assert books.accounts["wallet:org_a"] == (930, 20, 0)
    assert books.accounts["wallet:org_b"] == (-30, 0, 0)
    assert books.remaining == {"opening:wallet:org_a": 930}
    assert (books.posted("revenue.usage"), books.posted("promo_expense")) == (100, -1000)
    # And life goes on: the debt is paid, the hold is captured, everything is sealed.
    await store.grant(Grant("g", "org_b", 100), 11)
    await store.settle([charge("c", 15, hold_id="h"), charge("d", 5, "org_c")], 12)
    assert await store.seal(13) > 0
    books = await assert_books_balance(store)
    assert books.accounts["wallet:org_a"] == (915, 0, 0)
    assert books.accounts["wallet:org_b"] == (70, 0, 0)
    assert check_ledger(database).unsealed == 0
    query = sa.select(ledger_entry.c.amount).where(ledger_entry.c.transaction_id == "txn_1")
    async with database.reading() as connection:
        assert sorted(await connection.scalars(query)) == [-70, 70]
    await database.close()
