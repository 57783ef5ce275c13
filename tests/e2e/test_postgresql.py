"""The suite on PostgreSQL: the same answers, the same money, also after a restart."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import psycopg
import pytest

from tests.support.deployment import WALL_COST, running_suite
from tests.support.eventually import eventually
from tests.support.suite import Suite
from tests.support.tenant import PASSWORD, PROMPT
from tests.support.upstream import ANSWER, Upstream

MESSAGES: Any = [{"role": "user", "content": PROMPT}]
SCHEMAS = {"auth", "billing", "router"}


@pytest.mark.postgresql
@pytest.mark.new_database
@pytest.mark.parametrize("shape", ["all in one", "split"])
def test_chat_usage_and_balance(tmp_path: Path, upstream: Upstream, postgresql_url: str, shape: str) -> None:
    environment = {"OMNIHUB_DATABASE_URL": postgresql_url}
    targets = "many" if shape == "split" else "one"
    with running_suite(tmp_path, upstream, targets, environment, registration="invite") as suite:
        ask(suite)
        refused = httpx.post(
            f"{suite.url}/api/auth/register", json={"email": "somebody@example.com", "password": PASSWORD}
        )
        assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "REGISTRATION_CLOSED")
        assert not any(suite.stop().values())
        with psycopg.connect(postgresql_url) as connection:
            found = connection.execute("SELECT schema_name FROM information_schema.schemata").fetchall()
            amounts = connection.execute("SELECT amount FROM billing.usage_event").fetchall()
            reserved = connection.execute("SELECT COUNT(*) FROM billing.account WHERE held + leased != 0")
            assert reserved.fetchone() == (0,), "an orderly stop returns what it leased"
        assert {name for (name,) in found} >= SCHEMAS
        assert [amount for (amount,) in amounts] == [int(WALL_COST * 10**9)] * 2
        assert not list((tmp_path / "data").glob("*.db")), "nothing is kept in files"
    # However many processes it was: what follows is another one, with a folder of its own.
    folder = tmp_path / "again"
    folder.mkdir()
    with running_suite(folder, upstream, "one", environment) as suite:
        assert balance(suite) == Decimal(100) - 2 * WALL_COST


def ask(suite: Suite) -> None:
    with openai.OpenAI(base_url=suite.openai_url, api_key=suite.key, max_retries=0, timeout=20) as client:
        answer = client.chat.completions.create(model="support-chat", messages=MESSAGES)
        assert answer.choices[0].message.content == ANSWER
        with client.chat.completions.create(model="support-chat", messages=MESSAGES, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == ANSWER
    headers = {"x-api-key": suite.key}
    total = eventually(
        lambda: httpx.get(f"{suite.url}/v1/usage", headers=headers).json()["total"],
        lambda seen: seen["requests"] == 2,
    )
    assert Decimal(total["cost"]) == 2 * WALL_COST
    assert balance(suite) == Decimal(100) - 2 * WALL_COST


def balance(suite: Suite) -> Decimal:
    answer = httpx.get(f"{suite.url}/api/balance", headers={"x-api-key": suite.key}, timeout=20)
    return Decimal(answer.raise_for_status().json()["balance"])
