"""How large a request's input is taken to be: read from the words of its body, once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput

from services.router import asked as asked_module
from services.router.asked import Asked
from services.router.domain.estimate import input_sizes
from tests.support.router import INPUT_NANO, a_call, an_answer, build, chat_request


async def test_tools_of_a_foreign_body_count() -> None:
    """What is in the words of the body itself: a name in a text offers nothing."""
    bodies = {
        "none": b'{"model":"m","messages":[{"role":"user","content":"\\"tools\\""}]}',
        "some": b'{"model":"m","messages":[{"role":"user","content":"hi"}],"tools":[{}]}',
    }
    estimates = {}
    for name, body in bodies.items():
        router = build()
        router.providers.answers["a/x"] = [an_answer()]
        await router.client.chat(chat_request(body), a_call())
        (decision,) = router.journal.decisions
        estimates[name] = float(decision.estimate)
    # 512 tokens at the price of the input.
    assert estimates["some"] - estimates["none"] == pytest.approx(500 * INPUT_NANO / 1e9, rel=0.05)


async def test_a_body_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def counted(*arguments: Any, **named: Any) -> tuple[int, int]:
        looks.append(len(arguments[0]))
        return input_sizes(*arguments, **named)

    monkeypatch.setattr(asked_module, "input_sizes", counted)
    asked = Asked(ChatInput(), "chat", b'{"messages":[]}')
    assert asked.input_sizes == asked.input_sizes == input_sizes(asked.raw_body, asked.chat)
    assert len(looks) == 1
    # Another body is another one.
    assert replace(asked, raw_body=b"{}").input_sizes != asked.input_sizes
