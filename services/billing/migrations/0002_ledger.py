"""The full ledger: accounts per purpose, grants, corrections, the hash chain, checks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _add_columns()
    _create_grants()
    _create_chain()
    _create_checks()
    _move_what_was_booked()


def _add_columns() -> None:
    def text(name: str, length: int, default: str = "") -> sa.Column:
        return sa.Column(name, sa.String(length), nullable=False, server_default=default)

    def number(name: str, kind: type = sa.Integer) -> sa.Column:
        return sa.Column(name, kind, nullable=False, server_default="0")

    op.add_column("account", text("state", 16, "open"))
    op.add_column("account", number("carry_pico"))
    op.create_index("account_organisation", "account", ["organisation_id"])
    op.add_column("ledger_transaction", text("organisation_id", 160))
    op.add_column("ledger_transaction", text("refers_to", 200))
    op.add_column("ledger_transaction", number("format"))
    op.add_column("usage_event", number("cost", sa.BigInteger))
    op.add_column("usage_event", number("rounding_pico"))
    op.create_index("usage_event_transaction", "usage_event", ["transaction_id"])
    _refused("hold", "'open', 'captured', 'released', 'expired', 'refused'")
    _refused("lease", "'open', 'closed', 'refused'")


def _refused(table: str, states: str) -> None:
    """A refused id is kept, so that it stays refused."""
    op.drop_index(f"{table}_open", table)
    with op.batch_alter_table(table) as batch:
        batch.add_column(sa.Column("refusal", sa.Text, nullable=False, server_default=""))
        if op.get_bind().dialect.name != "sqlite":
            # SQLite copies the table, without the old constraint.
            batch.drop_constraint(f"{table}_state", type_="check")
        batch.create_check_constraint(f"{table}_state", f"state IN ({states})")
    is_open = sa.text("state = 'open'")
    op.create_index(f"{table}_open", table, ["expires_at"], sqlite_where=is_open, postgresql_where=is_open)


def _create_grants() -> None:
    op.create_table(
        "credit_grant",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("remaining", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("balance_after", sa.BigInteger, nullable=False),
        sa.CheckConstraint("kind IN ('paid', 'promo', 'allowance')", name="credit_grant_kind"),
        sa.CheckConstraint("remaining >= 0 AND remaining <= amount", name="credit_grant_remaining"),
    )
    is_left = sa.text("remaining > 0")
    for name, column in (("credit_grant_left", "organisation_id"), ("credit_grant_expiring", "expires_at")):
        op.create_index(name, "credit_grant", [column], sqlite_where=is_left, postgresql_where=is_left)
    op.create_index("credit_grant_organisation", "credit_grant", ["organisation_id"])
    op.create_table(
        "grant_movement",
        sa.Column("transaction_id", sa.String(200), sa.ForeignKey("ledger_transaction.id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("grant_id", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount > 0", name="grant_movement_positive"),
    )
    op.create_index("grant_movement_grant", "grant_movement", ["grant_id"])
    _refuse_changes_of("grant_movement")
    op.create_table(
        "correction",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("transaction_id", sa.String(200), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
        sa.Column("balance_after", sa.BigInteger, nullable=False),
    )
    op.create_index("correction_subject", "correction", ["subject", "number"], unique=True)
    _refuse_changes_of("correction")


def _create_chain() -> None:
    op.create_table("unsealed", sa.Column("transaction_id", sa.String(200), primary_key=True))
    op.create_table(
        "ledger_block",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("transactions", sa.Integer, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("sealed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "ledger_seal",
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("transaction_id", sa.String(200), nullable=False, unique=True),
    )
    for table in ("ledger_block", "ledger_seal"):
        _refuse_changes_of(table)
    head = op.create_table(
        "ledger_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "number": 0, "hash": "0" * 64}])


def _create_checks() -> None:
    op.create_table(
        "discrepancy",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("expected", sa.Text, nullable=False),
        sa.Column("found", sa.Text, nullable=False),
        sa.Column("first_seen_at", sa.BigInteger, nullable=False),
        sa.Column("last_seen_at", sa.BigInteger, nullable=False),
        sa.Column("resolved_at", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "elected_work",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("done_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(160), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("organisation_id", sa.String(160), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("note", sa.String(500), nullable=False),
    )
    op.create_index("audit_organisation", "audit", ["organisation_id", "at"])
    _refuse_changes_of("audit")


def _move_what_was_booked() -> None:
    """Balances move to the new accounts by transactions of their own: entries are never changed."""
    for kind in ("wallet.paid", "wallet.promo", "receivable"):
        op.execute(
            "INSERT INTO account (id, organisation_id, kind, posted, held, leased, welcomed, opened_at) "
            f"SELECT '{kind}:' || organisation_id, organisation_id, '{kind}', 0, 0, 0, {_false()}, opened_at "
            "FROM account WHERE kind = 'wallet'"
        )
    for name, kind in (("revenue.usage", "revenue"), ("promo_expense", "promo_expense")):
        op.execute(
            "INSERT INTO account (id, organisation_id, kind, posted, held, leased, welcomed, opened_at) "
            f"VALUES ('{name}', '', '{kind}', 0, 0, 0, {_false()}, 0)"
        )
    _move("a.kind = 'wallet' AND a.posted > 0", "'wallet.promo:' || a.organisation_id")
    _move("a.kind = 'wallet' AND a.posted < 0", "'receivable:' || a.organisation_id")
    _move("a.id = 'system:revenue' AND a.posted != 0", "'revenue.usage'")
    _move("a.id = 'system:promo_expense' AND a.posted != 0", "'promo_expense'")
    op.execute(
        "INSERT INTO credit_grant (id, organisation_id, kind, source, priority, amount, remaining, "
        "created_at, balance_after) "
        "SELECT 'opening:' || id, organisation_id, 'promo', 'promo_expense', 20, posted, posted, "
        "opened_at, posted FROM account WHERE kind = 'wallet' AND posted > 0"
    )
    op.execute(
        'INSERT INTO grant_movement (transaction_id, "position", grant_id, kind, amount) '
        "SELECT id, 0, id, 'plan', amount FROM credit_grant"
    )
    op.execute("UPDATE account SET posted = 0 WHERE id IN ('system:revenue', 'system:promo_expense')")
    op.execute(
        "UPDATE account SET posted = "
        "(SELECT SUM(e.amount) FROM ledger_entry e WHERE e.account_id = account.id) "
        "WHERE kind != 'wallet' AND EXISTS (SELECT 1 FROM ledger_entry e WHERE e.account_id = account.id)"
    )
    op.execute("INSERT INTO unsealed (transaction_id) SELECT id FROM ledger_transaction")


def _move(which: str, target: str) -> None:
    op.execute(
        "INSERT INTO ledger_transaction (id, kind, fingerprint, actor, note, at, organisation_id) "
        "SELECT 'opening:' || a.id, 'opening', '', '', 'moved to accounts per purpose', a.opened_at, "
        f"a.organisation_id FROM account a WHERE {which}"
    )
    for account, sign in (("a.id", "-"), (target, "")):
        op.execute(
            "INSERT INTO ledger_entry (transaction_id, account_id, amount) "
            f"SELECT 'opening:' || a.id, {account}, {sign}a.posted FROM account a WHERE {which}"
        )


def _false() -> str:
    return "0" if op.get_bind().dialect.name == "sqlite" else "false"


def _refuse_changes_of(table: str) -> None:
    """What is booked stays: a correction is a new transaction."""
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is immutable'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION refuse_change_of_{table}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} is immutable'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_immutable BEFORE UPDATE OR DELETE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION refuse_change_of_{table}()"
    )
