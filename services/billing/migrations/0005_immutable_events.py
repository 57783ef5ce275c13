"""Usage events stay as they were booked: a correction is a transaction of its own."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER usage_event_no_{verb.lower()} BEFORE {verb} ON usage_event "
                "BEGIN SELECT RAISE(ABORT, 'usage_event is immutable'); END"
            )
        return
    op.execute(
        "CREATE FUNCTION refuse_change_of_usage_event() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'usage_event is immutable'; END $$"
    )
    op.execute(
        "CREATE TRIGGER usage_event_immutable BEFORE UPDATE OR DELETE ON usage_event "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change_of_usage_event()"
    )
