"""`kill -9` of gateway, billing and PostgreSQL at every place where money moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fleet import CORE
from tests.support.money_crashes import BILLING_PLACES, PLACES, running_victims
from tests.support.upstream import running_upstream

pytestmark = [pytest.mark.chaos, pytest.mark.postgresql, pytest.mark.timeout(1800)]


def test_every_place_at_which_money_moves(tmp_path: Path) -> None:
    rounds = len(PLACES) + len(BILLING_PLACES)
    with running_upstream() as upstream, running_victims(tmp_path, upstream, rounds) as (victims, server):
        for target, place in PLACES:
            victims.crash(target, place)
            print(f"{target} killed at {place}: {victims.delivered.total()} answers so far")
        for place in BILLING_PLACES:
            victims.lose_database(server, CORE, place)
            print(f"PostgreSQL killed at {place}: {victims.delivered.total()} answers so far")
        victims.settle_down()
