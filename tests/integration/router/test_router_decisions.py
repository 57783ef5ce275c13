"""Decisions as they are stored: refused ones too, decided again, and the policies they were made by."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.common.v1.chat_pb2 import ChatInput
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1 import explain_pb2 as explain
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1 import routing_policy_service_pb2 as policy
from omnihub.router.v1.decision_pb2 import Decision
from omnihub.router.v1.router_service_api import RouterService
from omnihub.router.v1.routing_policy_service_api import RoutingPolicyService

from services.common.ids import new_id
from services.common.rpc import Connector, Identity, Registry, RpcError
from services.common.service import Infrastructure
from services.router import app
from services.router.domain.record import replay
from services.router.planning import replaying
from services.router.settings import RouterSettings, RouteSettings
from tests.support.fakes import Fake, FakeBilling, FakeBudgets, FakeProviders
from tests.support.router import IDENTITY, a_call, a_chat, an_answer, bounded, chat_request

ROUTES = {
    "cheap": RouteSettings(route=["a/small"], strengths={"chat": 0.5, "coding": 0.2}),
    "dear": RouteSettings(route=["b/large"], strengths={"chat": 0.6, "coding": 1.0}),
}


class Peers:
    def __init__(self) -> None:
        self.billing = FakeBilling()
        self.billing.price("a/small", 100_000, 200_000)
        self.billing.price("b/large", 10_000_000, 20_000_000)
        self.providers = FakeProviders("a", "b", "local")
        self.providers.answers["a/small"] = [an_answer() for _ in range(20)]
        self.providers.answers["b/large"] = [an_answer() for _ in range(20)]


class Running:
    def __init__(self, connector: Connector) -> None:
        self.router: Any = connector.connect(RouterService, "router")
        self.policies: Any = connector.connect(RoutingPolicyService, "router")

    async def decision(self, decision_id: str) -> Decision:
        found = await self.router.get_decision(pb.GetDecisionRequest(decision_id=decision_id), a_call())
        decision: Decision = found.decision
        return decision

    async def refused(self, identity: Identity = IDENTITY, **fields: Any) -> tuple[RpcError, Decision]:
        """Ask for what is refused; return the error and the decision it names, once it is written."""
        with pytest.raises(RpcError) as caught:
            await self.router.chat(chat_request(**fields), a_call(identity))
        while True:
            try:
                return caught.value, await self.decision(caught.value.metadata["decision_id"])
            except RpcError as error:
                # Nobody waits for the record of a refusal, the caller included.
                if error.reason != "NOT_FOUND":
                    raise
                await asyncio.sleep(0)


@asynccontextmanager
async def running(peers: Peers, database_url: str, folder: Path, **settings: Any) -> AsyncIterator[Running]:
    registry = Registry()
    registry.add(BillingService, peers.billing)
    registry.add(ProviderService, peers.providers)
    registry.add(BudgetService, FakeBudgets())
    registry.add(StoredResponseService, Fake())
    registry.add(MediaProviderService, Fake())
    connector = Connector(registry, {})
    infrastructure = Infrastructure(
        connector=connector, data_dir=folder, database_url=database_url, instance_id=new_id("proc")
    )
    service = app.build(RouterSettings(**settings), infrastructure, routes=ROUTES, vendors={})
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
    try:
        async with bounded(20):
            await service.start()
            yield Running(connector)
    finally:
        await service.stop()


def options(**chosen: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"since": None, "until": None, "decision": "", **chosen})


async def test_decisions_of_all_kinds_are_decided_again(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = Peers()
    async with running(peers, database_url, tmp_path) as suite:
        wishes: list[dict[str, Any]] = [
            {"model": "auto", "text": "Write a Python function that sorts a list."},
            {"model": "auto", "priority": "cheap"},
            {"model": "auto", "priority": "best", "latency_pref": "fast"},
            {"model": "", "mode": "flash", "max_cost": 0.01},
            {"model": "cheap"},
            {"model": "a/small"},
        ]
        ids = []
        for wish in wishes:
            answer = await suite.router.chat(chat_request(**wish), a_call())
            ids.append(answer.outcome.decision_id)
        decisions = [await suite.decision(each) for each in ids]
        error, refusal = await suite.refused(model="auto", max_cost=0.000001)
        assert (error.reason, refusal.state, refusal.reason) == ("NO_CANDIDATE", "refused", "NO_CANDIDATE")
    coding = decisions[0]
    assert (coding.task, coding.inputs.task_source, coding.model_used) == ("coding", "local", "b/large")
    assert coding.candidates[0].parts.task == pytest.approx(0.6)
    assert decisions[1].model_used == "a/small"
    assert decisions[4].inputs.scored is False
    assert [replay(decision) for decision in [*decisions, refusal]] == [[]] * 7
    assert "Python" not in str(coding)
    status = await asyncio.to_thread(replaying.run, database_url, None, options())
    assert (status, capsys.readouterr().out) == (0, "7 replayed, 100.00% agree; 0 had nothing to replay\n")
    one = await asyncio.to_thread(replaying.run, database_url, None, options(decision=ids[0]))
    assert (one, capsys.readouterr().out) == (0, "1 replayed, 100.00% agree; 0 had nothing to replay\n")
    assert await asyncio.to_thread(replaying.run, database_url, None, options(decision="dec_x")) == 2
    assert "there is no decision" in capsys.readouterr().err
    long_ago = await asyncio.to_thread(replaying.run, database_url, None, options(until=1))
    assert (long_ago, capsys.readouterr().out) == (0, "0 replayed; 0 had nothing to replay\n")


async def test_refused_requests_leave_a_decision_and_no_charge(database_url: str, tmp_path: Path) -> None:
    peers = Peers()
    async with running(peers, database_url, tmp_path) as suite:
        error, decision = await suite.refused(model="nobody/knows")
        assert (error.reason, decision.reason, decision.requested_model) == (
            "MODEL_NOT_FOUND",
            "MODEL_NOT_FOUND",
            "nobody/knows",
        )
        assert not decision.HasField("inputs")
        error, decision = await suite.refused(model="auto", require=["vision"])
        assert error.metadata["constraint"] == "capabilities"
        assert "lacks vision" in decision.message
        assert {each.constraint for each in decision.candidates} == {"capabilities"}
        limited = replace(IDENTITY, allowed_models=("cheap",))
        error, decision = await suite.refused(model="dear", identity=limited)
        assert decision.reason == "MODEL_NOT_ALLOWED"
        peers.billing.available = 0
        error, decision = await suite.refused(model="dear", max_tokens=1_000_000)
        assert (error.reason, decision.state) == ("INSUFFICIENT_CREDITS", "refused")
        assert decision.candidates[0].target == "b/large"
    assert peers.billing.charges == {}


async def test_a_policy_of_an_organisation(database_url: str, tmp_path: Path) -> None:
    async with running(Peers(), database_url, tmp_path) as suite:
        read = await suite.policies.get_routing_policy(policy.GetRoutingPolicyRequest(), a_call())
        assert (read.version, json.loads(read.policy_json)["default_priority"]) == ("default", "balanced")
        text = "Write a Python function that sorts a list."
        first = await suite.router.chat(chat_request(model="auto", text=text), a_call())
        assert first.model_used == "b/large"
        wanted = json.dumps({"default_priority": "cheap"})
        tried = explain.ExplainRouteRequest(chat=a_chat(model="auto", text=text), policy_json=wanted)
        tried.chat.messages[0].content += " Please."
        answer = await suite.router.explain_route(tried, a_call())
        assert (answer.chain[0], answer.inputs.policy_version) == ("a/small", "tried")
        request = policy.SetRoutingPolicyRequest(policy_json=wanted, expected_version="default")
        written = await suite.policies.set_routing_policy(request, a_call())
        # Another conversation: one that has begun keeps its model.
        second = await suite.router.chat(chat_request(model="auto", text=f"{text} Thanks."), a_call())
        assert second.model_used == "a/small"
        decision = await suite.decision(second.outcome.decision_id)
        assert decision.inputs.policy_version == written.version
        stranger = a_call(replace(IDENTITY, organisation_id="org_2"))
        read = await suite.policies.get_routing_policy(policy.GetRoutingPolicyRequest(), stranger)
        assert read.version == "default"
        with pytest.raises(RpcError, match=r"CONFLICT.*read it again"):
            await suite.policies.set_routing_policy(request, a_call())
        for wrong in ("{", "[]", '{"default_priority": "free"}'):
            with pytest.raises(RpcError) as caught:
                await suite.policies.set_routing_policy(
                    policy.SetRoutingPolicyRequest(policy_json=wrong), a_call()
                )
            assert caught.value.reason == "INVALID_ARGUMENT"
            assert caught.value.violations
        await suite.policies.delete_routing_policy(policy.DeleteRoutingPolicyRequest(), a_call())
        read = await suite.policies.get_routing_policy(policy.GetRoutingPolicyRequest(), a_call())
        assert read.version == "default"


async def test_explaining_costs_nothing_and_asks_nobody(database_url: str, tmp_path: Path) -> None:
    peers = Peers()
    async with running(peers, database_url, tmp_path) as suite:
        asked = explain.ExplainRouteRequest(chat=a_chat(model="auto", text="Translate to French: hello"))
        answer = await suite.router.explain_route(asked, a_call())
        assert (answer.inputs.task, answer.tasks[0].task) == ("translation", "translation")
        assert sum(each.probability for each in answer.tasks) == pytest.approx(1)
        assert set(answer.chain) == {"a/small", "b/large"}
        assert answer.estimated_cost
        asked.chat.max_cost = 0.000001
        answer = await suite.router.explain_route(asked, a_call())
        assert (answer.refusal.reason, answer.refusal.constraint) == ("NO_CANDIDATE", "max_cost")
        # The model that is always there has no price here.
        assert [each.constraint for each in answer.candidates] == ["price", "max_cost", "max_cost"]
        with pytest.raises(RpcError, match="MODEL_NOT_FOUND"):
            await suite.router.explain_route(explain.ExplainRouteRequest(chat=a_chat(model="x")), a_call())
        conflict = a_chat(model="auto", mode="ultra-think", priority="cheap")
        with pytest.raises(RpcError, match="say the opposite"):
            await suite.router.explain_route(explain.ExplainRouteRequest(chat=conflict), a_call())
    assert peers.providers.asked == []
    assert peers.billing.leases == peers.billing.closed == {}


async def test_estimates_and_the_cheapest_model(database_url: str, tmp_path: Path) -> None:
    async with running(Peers(), database_url, tmp_path) as suite:
        request = explain.EstimateCostRequest(chat=a_chat(model="auto", max_tokens=1000))
        answer = await suite.router.estimate_cost(request, a_call())
        assert [each.target for each in answer.estimates] == ["a/small", "b/large"]
        assert [each.chosen for each in answer.estimates].count(True) == 1
        # 1,000 tokens at 0.2 and 20 credits a million, and the input.
        costs = [float(each.largest_cost) for each in answer.estimates]
        assert costs[0] == pytest.approx(0.0002, rel=0.2)
        assert costs[1] == pytest.approx(0.02, rel=0.2)
        assert answer.input_tokens <= answer.input_tokens_bound
        cheapest = await suite.router.cheapest_model(explain.CheapestModelRequest(chat=ChatInput()), a_call())
        assert (cheapest.cheapest.model, cheapest.others[0].model) == ("cheap", "dear")
        coding = explain.CheapestModelRequest(chat=ChatInput(task="coding"), least_match=0.8)
        assert (await suite.router.cheapest_model(coding, a_call())).cheapest.target == "b/large"
        coding.chat.task = "chat"
        with pytest.raises(RpcError, match=r"the best is b/large with 0\.6") as caught:
            await suite.router.cheapest_model(coding, a_call())
        assert caught.value.metadata["constraint"] == "least_match"


async def test_a_conversation_keeps_its_model_within_its_organisation(
    database_url: str, tmp_path: Path
) -> None:
    async with running(Peers(), database_url, tmp_path) as suite:
        text = "Write a Python function that sorts a list."
        first = await suite.router.chat(chat_request(model="auto", text=text), a_call())
        later = chat_request(model="auto", text=text)
        later.chat.messages.add(role="assistant", content="def ...")
        later.chat.messages.add(role="user", content="Thank you, and good night!")
        second = await suite.router.chat(later, a_call())
        assert (first.model_used, second.model_used) == ("b/large", "b/large")
        decision = await suite.decision(second.outcome.decision_id)
        assert (decision.task, decision.inputs.sticky, decision.inputs.stuck) == ("chat", "b/large", True)
        stranger = a_call(replace(IDENTITY, organisation_id="org_2"))
        asked = explain.ExplainRouteRequest(chat=later.chat)
        assert not (await suite.router.explain_route(asked, stranger)).inputs.sticky
        assert (await suite.router.explain_route(asked, a_call())).inputs.sticky == "b/large"


async def test_a_step_of_an_agent(database_url: str, tmp_path: Path) -> None:
    async with running(Peers(), database_url, tmp_path) as suite:
        state = '{"step": 3, "big": 12345678901234567890}'
        answer = await suite.router.agent_step(
            pb.AgentStepRequest(chat=a_chat(model="auto"), state=state), a_call()
        )
        assert (answer.output, answer.done, answer.state) == ("hi", True, state)
        decision = await suite.decision(answer.outcome.decision_id)
        assert (decision.task, decision.inputs.task_source) == ("agent_step", "request")


async def test_a_cheap_model_names_the_task_and_is_done_without(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peers = Peers()
    peers.providers.answers["b/judge"] = [
        an_answer("Coding."),
        RpcError("PROVIDER_FAILED", "down, and asked: Good evening, how are you?"),
        an_answer("no idea"),
    ]
    async with running(peers, database_url, tmp_path, task_model="b/judge") as suite:

        async def task_of(text: str) -> tuple[str, str]:
            request = explain.ExplainRouteRequest(chat=a_chat(model="auto", text=text))
            answer = await suite.router.explain_route(request, a_call())
            return answer.inputs.task, answer.inputs.task_source

        assert await task_of("Hello, how are you?") == ("coding", "model")
        assert await task_of("Hello, how are you?") == ("coding", "model")
        assert await task_of("Good evening, how are you?") == ("chat", "local")
        assert "task_model_failed target=b/judge PROVIDER_FAILED" in caplog.text
        assert "Good evening" not in caplog.text
        assert await task_of("Good morning, how are you?") == ("chat", "local")
        assert [f"{each.provider}/{each.model}" for each in peers.providers.asked] == ["b/judge"] * 3
        # Whoever names the model does not pay for this.
        await suite.router.chat(chat_request(model="cheap"), a_call())
        assert len(peers.providers.asked) == 4
