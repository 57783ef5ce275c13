"""Race, comparison, cache and health through the public port, and what they leave in the books."""

from __future__ import annotations

import json
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import uuid4

import anthropic
import grpc
import httpx
import openai
import pytest
from omnihub.router.v1 import provider_health_service_pb2 as health_pb
from omnihub.router.v1 import router_service_pb2 as pb

from tests.support.deployment import CLAUDE_COST, WALL_COST
from tests.support.eventually import eventually
from tests.support.stubs import generated_stubs
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant
from tests.support.upstream import ANSWER, Upstream

TIMEOUT_S = 20
ON = {"x-omnihub-cache": "on"}


def body(model: str = "support-chat", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 50, **more}


def events_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


class TestCompare:
    MODELS = ("wall/gpt-x", "claude/claude-y", "wall/fail-500")

    def test_as_events(self, tenant: Tenant) -> None:
        document = body(models=self.MODELS)
        del document["model"]
        answer = tenant.request("POST", "/v1/chat:compare", json=document)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.text)
        texts: dict[int, str] = {0: "", 1: "", 2: ""}
        ends: dict[int, dict[str, Any]] = {}
        for event in events[:-1]:
            index, inner = event["candidate"].get("index", 0), event["candidate"]["event"]
            texts[index] += inner.get("part_delta", {}).get("text", "")
            if "end" in inner or "error" in inner:
                ends[index] = inner
        assert texts == {0: ANSWER, 1: ANSWER, 2: ""}
        assert Decimal(ends[0]["end"]["outcome"]["cost"]) == WALL_COST
        assert Decimal(ends[1]["end"]["outcome"]["cost"]) == CLAUDE_COST
        assert ends[2]["error"]["reason"].startswith("PROVIDER_")
        end = events[-1]["end"]
        assert Decimal(end["cost"]) == WALL_COST + CLAUDE_COST
        tenant.settled(2)
        assert tenant.balance() == tenant.granted - WALL_COST - CLAUDE_COST
        decision = tenant.decision(end["outcomes"][1]["decision_id"])
        assert decision["comparison_id"] == end["comparison_id"]

    def test_over_grpc(self, tenant: Tenant, suite: Suite, stubs: ModuleType) -> None:
        request = pb.CompareChatRequest()
        request.chat.messages.add(role="user", content=PROMPT)
        request.chat.models.extend(self.MODELS[:2])
        credential = [("authorization", f"Bearer {tenant.key}")]
        with grpc.insecure_channel(f"127.0.0.1:{suite.port}") as channel:
            stub = stubs.RouterServiceStub(channel)
            events = list(stub.CompareChat(request, metadata=credential, timeout=TIMEOUT_S))
        for index in (0, 1):
            own = [each.candidate.event for each in events if each.candidate.index == index]
            assert "".join(each.part_delta.text for each in own) == ANSWER
        assert [each.model_used for each in events[-1].end.outcomes] == list(self.MODELS[:2])

    def test_leaving_stops_both(self, tenant: Tenant, upstream: Upstream) -> None:
        marker = uuid4().hex
        document = {
            "models": ["wall/endless", "claude/endless"],
            "messages": [{"role": "user", "content": marker}],
        }
        headers = {"x-api-key": tenant.key}
        url = f"{tenant.url}/v1/chat:compare"
        with httpx.stream("POST", url, json=document, headers=headers, timeout=TIMEOUT_S) as answer:
            speaking: set[int] = set()
            lines = answer.iter_lines()
            while len(speaking) < 2:
                line = next(lines)
                if "part_delta" in line:
                    event = json.loads(line.removeprefix("data: "))
                    speaking.add(event["candidate"].get("index", 0))
        seen = upstream.seen(marker)
        assert len(seen) == 2
        assert upstream.wait_for(lambda: all(each.state == "left" for each in seen))
        assert tenant.settled(2)["output_tokens"] > 0

    @pytest.mark.parametrize(
        "more", [{"models": ["wall/gpt-x"]}, {"models": ["a"] * 5}, {"model": "support-chat"}]
    )
    def test_bad_lists(self, tenant: Tenant, more: dict[str, Any]) -> None:
        document = body(**more)
        if "models" in more:
            del document["model"]
        answer = tenant.request("POST", "/v1/chat:compare", json=document)
        assert answer.status_code == 400
        assert "models" in answer.json()["error"]["message"]


class TestRace:
    def test_in_the_body(self, tenant: Tenant) -> None:
        answer = tenant.request("POST", "/v1/chat", json=body(parallel=True)).raise_for_status().json()
        assert answer["output"] == ANSWER
        outcome = answer["outcome"]
        assert outcome["strategy"] == "race"
        tenant.settled(1)
        assert tenant.balance() == tenant.granted - Decimal(answer["cost"])
        decision = tenant.decision(outcome["decision_id"])
        assert {each["target"] for each in decision["attempts"]} == {"wall/gpt-x", "claude/claude-y"}
        assert [each.get("lost", False) for each in decision["attempts"]].count(True) == 1

    def test_in_the_query(self, tenant: Tenant) -> None:
        path = "/v1/chat?options.strategy=hedge&options.hedge_after_ms=5000"
        answer = tenant.request("POST", path, json=body()).raise_for_status().json()
        assert answer["outcome"]["strategy"] == "hedge"
        bad = tenant.request("POST", "/v1/chat?options.strategy=guess", json=body())
        assert bad.status_code == 400

    def test_in_headers(self, tenant_client: openai.OpenAI) -> None:
        with tenant_client.chat.completions.with_streaming_response.create(
            **body(stream=True), extra_headers={"x-omnihub-parallel": "true"}
        ) as answer:
            chunks = events_of(answer.read().decode().replace("data: [DONE]", ""))
        text = "".join(
            chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]
        )
        assert text == ANSWER


class TestCache:
    def test_openai(self, tenant: Tenant, tenant_client: openai.OpenAI, upstream: Upstream) -> None:
        marker = uuid4().hex
        document = body(messages=[{"role": "user", "content": marker}])
        seen = []
        for _ in range(2):
            answer = tenant_client.chat.completions.with_raw_response.create(**document, extra_headers=ON)
            seen.append((answer.headers["x-omnihub-cache"], answer.headers["x-omnihub-cost"]))
            assert answer.parse().choices[0].message.content == ANSWER
        assert [cache for cache, _ in seen] == ["miss", "hit"]
        assert Decimal(seen[1][1]) == 0
        stream = tenant_client.chat.completions.create(**document, stream=True, extra_headers=ON)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == ANSWER
        assert len(upstream.seen(marker)) == 1
        total = tenant.settled(3)
        assert Decimal(total["cost"]) == WALL_COST
        assert tenant.balance() == tenant.granted - WALL_COST

    def test_anthropic(self, tenant: Tenant, upstream: Upstream) -> None:
        marker = uuid4().hex
        document = {**body("claude-chat"), "messages": [{"role": "user", "content": marker}]}
        with anthropic.Anthropic(base_url=tenant.url, api_key=tenant.key, max_retries=0) as client:
            with client.messages.stream(**document, extra_headers=ON) as stream:
                assert stream.get_final_text() == ANSWER
            answer = client.messages.with_raw_response.create(**document, extra_headers=ON)
            assert answer.headers["x-omnihub-cache"] == "hit"
            assert answer.parse().content[0].text == ANSWER
        assert len(upstream.seen(marker)) == 1

    def test_rest_and_decision(self, tenant: Tenant) -> None:
        marker = uuid4().hex
        document = body(messages=[{"role": "user", "content": marker}])
        outcomes = [
            tenant.request("POST", "/v1/chat?options.cache=on", json=document).raise_for_status().json()
            for _ in range(2)
        ]
        assert [each["outcome"]["cache"] for each in outcomes] == ["miss", "hit"]
        hit = outcomes[1]["outcome"]
        assert Decimal(hit["savings"]["cache"]) == WALL_COST
        decision = tenant.decision(hit["decision_id"])
        assert (decision["cache"], decision["cached_from"]) == ("hit", outcomes[0]["outcome"]["decision_id"])

    def test_a_key_that_asks_for_it(self, tenant: Tenant, upstream: Upstream) -> None:
        made = tenant.request(
            "POST", "/api/keys", json={"name": "cached", "scopes": ["chat", "cache"]}
        ).raise_for_status()
        headers = {"authorization": f"Bearer {made.json()['secret']}"}
        marker = uuid4().hex
        document = body(messages=[{"role": "user", "content": marker}])
        url = f"{tenant.url}/v1/chat/completions"
        seen = [
            httpx.post(url, json=document, headers=headers, timeout=TIMEOUT_S).headers["x-omnihub-cache"]
            for _ in range(2)
        ]
        assert seen == ["miss", "hit"]
        assert len(upstream.seen(marker)) == 1


class TestHealth:
    def test_rest(self, tenant: Tenant) -> None:
        tenant.request("POST", "/v1/chat", json=body()).raise_for_status()

        def health() -> Any:
            return tenant.get("/api/admin/providers/health?windowMinutes=60")

        found = eventually(
            health, lambda seen: any(each["target"] == "wall/gpt-x" for each in seen["targets"])
        )
        wall = next(each for each in found["targets"] if each["target"] == "wall/gpt-x")
        assert wall["metrics"]["successes"] >= 1
        assert wall["breaker"] in ("closed", "half_open", "open")
        assert wall["metrics"]["latencyMs"]["p95"] >= wall["metrics"]["latencyMs"]["p50"]
        snake = tenant.get("/v1/router/health?provider=wall")
        assert {each["provider"] for each in snake["targets"]} == {"wall"}
        assert "latency_ms" in snake["targets"][0]["metrics"]
        minutes = tenant.get("/api/admin/providers/metrics?provider=wall&pageSize=1")["minutes"]
        assert minutes[0]["provider"] == "wall"

    def test_it_needs_the_scope(self, tenant: Tenant) -> None:
        made = tenant.request(
            "POST", "/api/keys", json={"name": "chat", "scopes": ["chat"]}
        ).raise_for_status()
        headers = {"authorization": f"Bearer {made.json()['secret']}"}
        for path in ("/api/admin/providers/health", "/api/admin/providers/metrics"):
            answer = httpx.get(f"{tenant.url}{path}", headers=headers, timeout=TIMEOUT_S)
            assert answer.status_code == 403

    def test_grpc(self, tenant: Tenant, suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("health-stubs")
        stubs = generated_stubs(folder, "omnihub/router/v1/provider_health_service.proto")
        tenant.request("POST", "/v1/chat", json=body()).raise_for_status()
        credential = [("authorization", f"Bearer {tenant.key}")]
        with grpc.insecure_channel(f"127.0.0.1:{suite.port}") as channel:
            stub = stubs.ProviderHealthServiceStub(channel)
            answer = stub.GetProviderHealth(
                health_pb.GetProviderHealthRequest(), metadata=credential, timeout=TIMEOUT_S
            )
        assert any(each.provider == "wall" for each in answer.targets)
