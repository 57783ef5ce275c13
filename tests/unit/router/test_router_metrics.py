"""What is counted for Prometheus, and that callers cannot make it grow without end."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from services.common.rpc import Call
from services.router import metrics
from tests.support.router import IDENTITY, an_answer, build, chat_request, until
from tests.support.spans import recorded_spans


def counted(model: str) -> float:
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_request_model": model,
        "gen_ai_provider_name": "a",
        "omnihub_state": "complete",
    }
    return REGISTRY.get_sample_value("gen_ai_server_request_duration_seconds_count", labels) or 0.0


async def test_names_that_callers_make_up_share_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "NAMED_DIRECTLY", 2)
    monkeypatch.setattr(metrics, "_named", set[str]())
    router = build("a/configured-last")
    invented = [f"a/invented-{number}" for number in range(5)]
    for name in invented:
        router.billing.price(name, 1000, 1000)
    router.providers.answers.update({name: [an_answer()] * 2 for name in (*invented, "a/configured-last")})
    before = counted(metrics.OTHER)
    with recorded_spans() as spans:
        # Twice: a name that is known stays known.
        for name in (*invented, *invented, "m"):
            await router.client.chat(chat_request(model=name), Call(f"req_{name}", IDENTITY))
        await until(lambda: counted("a/configured-last") == 1)
    assert [counted(name) for name in invented] == [2, 2, 0, 0, 0]
    assert counted(metrics.OTHER) - before == 6
    # A trace names each.
    names = [span.name for span in spans.get_finished_spans()]
    assert names == [f"chat {name}" for name in (*invented, *invented, "a/configured-last")]
