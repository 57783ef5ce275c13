"""Totals of usage by the minute, so that the total of any period reads few rows."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MINUTE = 60_000_000
SUMS = (
    "requests",
    "input_total",
    "cache_read",
    "output_total",
    "amount",
    "cost",
    "savings",
    "savings_routing",
    "savings_cache",
    "savings_prompt_cache",
)


def upgrade() -> None:
    sum_up()


def sum_up() -> None:
    """Take in the events that are there already."""
    sums = ", ".join("COUNT(*)" if name == "requests" else f"SUM({name})" for name in SUMS)
    for organisation in ("organisation_id", "''"):
        op.execute(
            f"INSERT INTO usage_rollup (organisation_id, dimension, hour, value, {', '.join(SUMS)}) "
            f"SELECT {organisation}, 'minute', at / {MINUTE}, '', {sums} "
            f"FROM usage_event GROUP BY 1, 2, 3, 4"
        )
