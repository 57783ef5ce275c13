"""Answers are paid once and exactly, whatever the surface and however they end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from http.client import HTTPConnection
from types import ModuleType
from typing import Any
from uuid import uuid4

import grpc
import openai
import pytest
from omnihub.router.v1 import router_service_pb2 as pb

from tests.support.deployment import CLAUDE_COST, WALL_COST
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant
from tests.support.upstream import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, Upstream

MESSAGES: Any = [{"role": "user", "content": PROMPT}]
LIMIT = 64
COSTS = {"support-chat": WALL_COST, "claude-chat": CLAUDE_COST}


@dataclass(frozen=True)
class Told:
    """What a surface says of an answer."""

    content: str
    input_tokens: int
    output_tokens: int
    cost: Decimal
    finish: str
    decision_id: str


@dataclass(frozen=True)
class Caller:
    """Asks the same question through every surface."""

    suite: Suite
    tenant: Tenant
    client: openai.OpenAI
    stubs: ModuleType

    def facade(self, model: str) -> Told:
        raw = self.client.chat.completions.with_raw_response.create(
            model=model, messages=MESSAGES, max_tokens=LIMIT
        )
        answer = raw.parse()
        assert answer.usage is not None
        return Told(
            answer.choices[0].message.content or "",
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
            Decimal(raw.headers["x-omnihub-cost"]),
            answer.choices[0].finish_reason,
            raw.headers["x-omnihub-decision-id"],
        )

    def facade_stream(self, model: str) -> Told:
        with self.client.chat.completions.create(
            model=model,
            messages=MESSAGES,
            max_tokens=LIMIT,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            *chunks, finish, usage = stream
        assert usage.usage is not None
        facts = (finish.model_extra or {})["omnihub"]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return Told(
            text,
            usage.usage.prompt_tokens,
            usage.usage.completion_tokens,
            Decimal(facts["cost"]),
            finish.choices[0].finish_reason or "",
            facts["decision_id"],
        )

    def rest(self, model: str) -> Told:
        body = {"model": model, "messages": MESSAGES, "max_tokens": LIMIT}
        answer = self.tenant.request("POST", "/v1/chat", json=body).raise_for_status().json()
        return self._told(answer["output"], answer["outcome"])

    def rest_stream(self, model: str) -> Told:
        body = {"model": model, "messages": MESSAGES, "max_tokens": LIMIT}
        answer = self.tenant.request("POST", "/v1/chat:stream", json=body).raise_for_status()
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        text = "".join(event.get("part_delta", {}).get("text", "") for event in events)
        return self._told(text, events[-1]["end"]["outcome"])

    def _told(self, text: str, outcome: Any) -> Told:
        usage = outcome["usage"]
        tokens = usage["input_total"], usage["output_total"]
        finish = outcome["finish"]["reason"]
        return Told(text, *tokens, Decimal(outcome["cost"]), finish, outcome["decision_id"])

    def grpc(self, model: str) -> Told:
        with grpc.insecure_channel(f"127.0.0.1:{self.suite.port}") as channel:
            answer = self.stubs.RouterServiceStub(channel).Chat(
                self._message(pb.ChatRequest(), model), metadata=self._metadata(), timeout=20
            )
        return self._told_by_message(answer.output, answer.outcome)

    def grpc_stream(self, model: str) -> Told:
        with grpc.insecure_channel(f"127.0.0.1:{self.suite.port}") as channel:
            events = list(
                self.stubs.RouterServiceStub(channel).StreamChat(
                    self._message(pb.StreamChatRequest(), model), metadata=self._metadata(), timeout=20
                )
            )
        text = "".join(event.part_delta.text for event in events)
        return self._told_by_message(text, events[-1].end.outcome)

    def _metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.tenant.key}")]

    def _message(self, request: Any, model: str) -> Any:
        request.chat.model = model
        request.chat.max_tokens = LIMIT
        request.chat.messages.add(role="user", content=PROMPT)
        return request

    def _told_by_message(self, text: str, outcome: pb.Outcome) -> Told:
        tokens = outcome.usage.input_total, outcome.usage.output_total
        return Told(text, *tokens, Decimal(outcome.cost), outcome.finish.reason, outcome.decision_id)

    @property
    def surfaces(self) -> list[Callable[[str], Told]]:
        return [
            self.facade,
            self.facade_stream,
            self.rest,
            self.rest_stream,
            self.grpc,
            self.grpc_stream,
        ]


@pytest.fixture
def caller(suite: Suite, tenant: Tenant, tenant_client: openai.OpenAI, stubs: ModuleType) -> Caller:
    return Caller(suite, tenant, tenant_client, stubs)


@pytest.mark.parametrize("model", ["support-chat", "claude-chat"])
def test_every_surface_gives_the_same_answer_at_the_same_cost(caller: Caller, model: str) -> None:
    told = [surface(model) for surface in caller.surfaces]
    for each in told:
        assert (each.content, each.finish) == (ANSWER, "stop")
        assert (each.input_tokens, each.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)
        assert each.cost == COSTS[model]
    assert len({each.decision_id for each in told}) == len(told)
    for each in told:
        decision = caller.tenant.decision(each.decision_id)
        assert decision["state"] == "complete"
        assert decision["requested_model"] == model
        assert Decimal(decision["cost"]) == each.cost
        assert decision["key_id"] == caller.tenant.key_id
        assert decision["usage"]["output_total"] == OUTPUT_TOKENS
        assert [attempt["state"] for attempt in decision["attempts"]] == ["complete"]
        assert decision["candidates"][0]["target"] == decision["model_used"]


def test_what_is_taken_is_the_sum_of_what_was_told(caller: Caller) -> None:
    tenant = caller.tenant
    assert tenant.balance() == tenant.granted
    told = [surface(model) for model in COSTS for surface in caller.surfaces]
    total = tenant.settled(len(told))
    cost = sum(each.cost for each in told)
    assert cost == 6 * (WALL_COST + CLAUDE_COST)
    assert Decimal(total["cost"]) == cost
    assert total["input_tokens"] == len(told) * INPUT_TOKENS
    assert tenant.granted - tenant.balance() == cost
    for group_by in ("model", "provider", "key", "agent", "task", "day"):
        groups = tenant.usage(group_by)["groups"]
        assert sum(Decimal(group["cost"]) for group in groups) == cost
        assert sum(group["requests"] for group in groups) == len(told)
    by_model = {group["group"]: Decimal(group["cost"]) for group in tenant.usage("model")["groups"]}
    assert by_model == {"wall/gpt-x": 6 * WALL_COST, "claude/claude-y": 6 * CLAUDE_COST}
    assert tenant.get("/api/usage?groupBy=model")["total"]["cost"] == total["cost"]


@pytest.mark.parametrize("stream", [False, True])
def test_failover_is_not_noticed_and_not_billed(
    tenant: Tenant, tenant_client: openai.OpenAI, stream: bool
) -> None:
    create: Any = tenant_client.chat.completions.with_raw_response.create
    raw = create(model="failover", messages=MESSAGES, stream=stream)
    answer = raw.parse()
    if stream:
        content = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        content = answer.choices[0].message.content
    assert content == ANSWER
    assert raw.headers["x-omnihub-model"] == "wall/gpt-x"
    decision = tenant.decision(raw.headers["x-omnihub-decision-id"])
    attempts = [(attempt["target"], attempt["state"]) for attempt in decision["attempts"]]
    assert attempts == [("dead/gone", "failed"), ("wall/fail-500", "failed"), ("wall/gpt-x", "complete")]
    assert all(attempt["reason"] for attempt in decision["attempts"][:2])
    assert Decimal(tenant.settled(1)["cost"]) == WALL_COST
    assert [group["group"] for group in tenant.usage("model")["groups"]] == ["wall/gpt-x"]


def test_when_nobody_answers_nothing_is_billed(tenant: Tenant, tenant_client: openai.OpenAI) -> None:
    for model in ("dead/gone", "wall/fail-400"):
        with pytest.raises(openai.APIStatusError):
            tenant_client.chat.completions.create(model=model, messages=MESSAGES)
    answer = tenant_client.chat.completions.create(model="support-chat", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    # The answer came after the failures, and it alone is booked.
    assert Decimal(tenant.settled(1)["cost"]) == WALL_COST


@pytest.mark.parametrize("model", ["wall/cut", "claude/cut"])
def test_a_cut_stream_is_an_error_and_charged_once(
    tenant: Tenant, tenant_client: openai.OpenAI, model: str
) -> None:
    with tenant_client.chat.completions.create(model=model, messages=MESSAGES, stream=True) as stream:
        chunks: list[Any] = []
        decision_id = stream.response.headers["x-omnihub-decision-id"]
        with pytest.raises(openai.APIError) as raised:
            chunks.extend(stream)
    assert raised.value.code == "stream_truncated"
    decision = tenant.decision(decision_id)
    assert decision["state"] == "truncated"
    assert decision["usage"]["estimated"] is True
    assert Decimal(decision["cost"]) > 0
    assert Decimal(tenant.settled(1)["cost"]) == Decimal(decision["cost"])
    assert tenant.granted - tenant.balance() == Decimal(decision["cost"])


@pytest.mark.parametrize("model", ["wall/endless", "claude/endless"])
def test_who_leaves_a_stream_stops_the_spending(
    tenant: Tenant, tenant_client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    marker = uuid4().hex
    messages: Any = [{"role": "user", "content": marker}]
    with tenant_client.chat.completions.create(model=model, messages=messages, stream=True) as stream:
        decision_id = stream.response.headers["x-omnihub-decision-id"]
        for _ in range(5):
            next(stream)
    (seen,) = upstream.seen(marker)
    assert upstream.wait_for(lambda: seen.state == "left"), "the provider still writes"
    decision = tenant.decision(decision_id)
    assert decision["state"] == "cancelled"
    assert decision["usage"]["estimated"] is True
    total = tenant.settled(1)
    assert Decimal(total["cost"]) == Decimal(decision["cost"]) > 0
    assert tenant.granted - tenant.balance() == Decimal(decision["cost"])


def test_who_leaves_before_a_whole_answer_stops_it_too(tenant: Tenant, upstream: Upstream) -> None:
    marker = uuid4().hex
    body = {"model": "wall/paced-1000-100", "messages": [{"role": "user", "content": marker}]}
    headers = {"x-api-key": tenant.key, "content-type": "application/json"}
    with contextlib.closing(HTTPConnection(tenant.url.removeprefix("http://"), timeout=20)) as caller:
        caller.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        assert upstream.wait_for(lambda: bool(upstream.seen(marker)))
    (seen,) = upstream.seen(marker)
    assert upstream.wait_for(lambda: seen.state == "left")


def test_local_answers_are_free_and_counted(tenant: Tenant, tenant_client: openai.OpenAI) -> None:
    tenant_client.chat.completions.create(model="local/echo", messages=MESSAGES)
    tenant_client.embeddings.create(model="local/hash", input=["a", "b"])
    total = tenant.settled(2)
    assert Decimal(total["cost"]) == 0
    assert tenant.balance() == tenant.granted
