"""GET /v1/usage by everything it can be grouped by, over both databases: exact, in pages, adding up."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from omnihub.billing.v1.billing_service_pb2 import ListUsageRequest
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.domain.usage import Period, microseconds
from services.billing.store import Store
from tests.support.billing import ORGANISATION, charge, day, fund, open_store

EVER = Period(None, None)
# Of different numbers, so that no group is mistaken for another one.
GROUPS = {
    "model": ("a/x", "b/y"),
    "provider": ("a", "b"),
    "key": ("key_0", "key_1", "key_2"),
    "user": ("usr_0", "usr_1", "usr_2", "usr_3"),
    "workspace": ("ws_0", "ws_1"),
    "agent": ("", "agent_0", "agent_1", "agent_2", "agent_3"),
    "task": ("chat", "coding", "translation"),
    "modality": ("chat", "embeddings"),
    "project": ("prj_0", "prj_1", "prj_2"),
    "run": ("run_0", "run_1"),
    "day": ("2026-01-01", "2026-01-02", "2026-01-03"),
}
NUMBER = 60


def _of(group_by: str, number: int) -> str:
    values = GROUPS[group_by]
    return values[number % len(values)]


def _amount(number: int) -> int:
    return 333_333_333 + number


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        await fund(opened, "100")
        charges = []
        for number in range(NUMBER):
            made = charge(
                f"c{number}",
                _amount(number),
                model=_of("model", number),
                provider=_of("provider", number),
                task=_of("task", number),
                key_id=_of("key", number),
                at=day(number % 3),
                usage=Usage(input_total=10, output_total=number),
            )
            made.user_id, made.workspace_id = _of("user", number), _of("workspace", number)
            made.agent_id, made.modality = _of("agent", number), _of("modality", number)
            made.project_id, made.run_id = _of("project", number), _of("run", number)
            charges.append(made)
        await opened.settle(charges, microseconds(day(9)))
        yield opened


def test_every_group_of_the_contract_is_tested() -> None:
    field = ListUsageRequest.DESCRIPTOR.fields_by_name["group_by"]
    [rules] = [value for option, value in field.GetOptions().ListFields() if option.name == "field"]
    assert set(rules.string.__getattribute__("in")) == {"", *GROUPS}


@pytest.mark.parametrize("group_by", GROUPS)
async def test_groups_are_exact_and_add_up(store: Store, group_by: str) -> None:
    expected: Counter[str] = Counter()
    for number in range(NUMBER):
        expected[_of(group_by, number)] += _amount(number)
    found: dict[str, int] = {}
    groups, total = await store.usage(ORGANISATION, EVER, group_by, None, 2)
    while groups:
        assert not {each.group for each in groups} & found.keys()
        found |= {each.group: each.amount for each in groups}
        groups, total = await store.usage(ORGANISATION, EVER, group_by, groups[-1].group, 2)
    assert found == dict(expected)
    assert total.amount == sum(expected.values())
    assert total.requests == NUMBER
