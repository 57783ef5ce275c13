"""The short form of `tests/chaos/test_money_crashes.py`: three deaths at the worst moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fleet import CORE, FIRST
from tests.support.money_crashes import running_victims
from tests.support.upstream import Upstream


@pytest.mark.postgresql
def test_what_dies_at_the_worst_moment_loses_no_money(tmp_path: Path, upstream: Upstream) -> None:
    with running_victims(tmp_path, upstream, rounds=3) as (victims, server):
        victims.crash(FIRST, "after_journal_write")
        victims.crash(CORE, "before_settle_commit")
        victims.lose_database(server, CORE, "after_reserve")
        victims.settle_down()
        assert victims.delivered
