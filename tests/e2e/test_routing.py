"""Automatic routing in the running suite: evaluated, enabled, explained, replayed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from services.router.domain.evaluation import passes
from services.router.planning.evaluating import WORKLOAD, read_workload
from tests.support.competence import MODELS, RunningSimulation, config, is_right
from tests.support.suite import Suite

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("routing")]


class Running:
    """A suite with simulated models."""

    def __init__(self, suite: Suite, simulation: RunningSimulation, http: httpx.AsyncClient) -> None:
        self.suite = suite
        self.simulation = simulation.simulation
        self.http = http

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run `omnihub router ...` beside it."""
        done = await asyncio.to_thread(self.suite.run, "router", *arguments)
        return done.returncode, done.stdout, done.stderr


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("routing")
    async with RunningSimulation() as simulation:
        settings = 'baseline_model = "sim/large"\nseed_models = false\n'
        prices = "".join(
            f'"sim/{name}" = {{ input_per_million = "{model.input_per_million}",'
            f' output_per_million = "{model.output_per_million}" }}\n'
            for name, model in MODELS.items()
        )
        suite = Suite(folder, f"[router]\n{settings}\n[billing.prices]\n{prices}\n{config(simulation.url)}")
        (folder / "data").mkdir()
        (folder / "key").write_text(suite.key)
        try:
            await asyncio.to_thread(suite.start)
            headers = {"authorization": f"Bearer {suite.key}"}
            async with httpx.AsyncClient(base_url=suite.url, headers=headers, timeout=30) as http:
                yield Running(suite, simulation, http)
        finally:
            await asyncio.to_thread(suite.stop)


async def evaluate(running: Running, *arguments: str) -> tuple[int, str, str]:
    key = str(running.suite.folder / "key")
    return await running.command("evaluate", "--url", running.suite.url, "--key-file", key, *arguments)


async def test_automatic_routing_saves_a_fifth_and_is_proved(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    policies = ("--policy", "cheap", "--policy", "balanced", "--policy", "best")
    status, out, error = await evaluate(running, *policies, "--json", str(file))
    assert (status, error) == (0, ""), error
    measured = json.loads(file.read_text())
    verdicts = {verdict["result"]["name"]: verdict for verdict in measured["verdicts"]}
    balanced = verdicts["balanced"]
    assert balanced["saving"] >= 0.2
    assert balanced["gain"][1] > 0
    assert "balanced: quality against the control" in out
    assert re.search(r"balanced: costs \d+\.\d% less than always large, quality against it [-+]\d", out)
    # The command judges as the simulation does.
    prompts = {prompt.name: prompt for prompt in read_workload(WORKLOAD)}
    for model, answers in measured["answers"].items():
        assert {name: each["right"] for name, each in answers.items()} == {
            name: is_right(model, prompt) for name, prompt in prompts.items()
        }


async def test_what_is_not_proved_is_not_enabled(running: Running, tmp_path: Path) -> None:
    blind = tmp_path / "blind.json"
    weights = {"cost": 1, "latency": 0, "task": 0}
    blind.write_text(json.dumps({"weights": {"balanced": {"normal": weights}}}))
    status, out, error = await evaluate(running, "--policy", str(blind), "--enable")
    assert (status, error) == (1, "")
    assert "blind is not enabled: its gain against the control may be nothing (+0.0 points" in out
    policy = (await running.http.get("/api/admin/routing-policy")).json()
    assert policy["version"] == "default"
    status, out, _ = await evaluate(running, "--policy", str(blind), "--enable", "--force")
    assert (status, "although it is not proved" in out) == (0, True)
    policy = (await running.http.get("/api/admin/routing-policy")).json()
    assert json.loads(policy["policyJson"])["weights"]["balanced"]["normal"]["cost"] == 1
    # Without the latencies of a busy machine its choices are the same each time.
    steady = tmp_path / "steady.json"
    weights = {"cost": 0.3, "latency": 0, "task": 0.7}
    steady.write_text(json.dumps({"weights": {"balanced": {"normal": weights}}}))
    status, out, _ = await evaluate(running, "--policy", str(steady), "--enable")
    assert (status, "steady is enabled.\n" in out) == (0, True)


async def test_a_decision_through_the_public_port(running: Running) -> None:
    body: dict[str, Any] = {
        "model": "auto",
        "priority": "balanced",
        "messages": [{"role": "user", "content": next(iter(read_workload(WORKLOAD))).text}],
    }
    before = len(running.simulation.asked)
    explained = (await running.http.post("/v1/router/debug", json=body)).json()
    typed = (await running.http.post("/v1/router/explain", json=body)).json()
    assert explained["chain"] == typed["chain"]
    estimate = (await running.http.post("/v1/router/estimate", json=body)).json()
    assert [each["target"] for each in estimate["estimates"]] == ["sim/small", "sim/medium", "sim/large"]
    cheapest = await running.http.post("/v1/router/cheapest", json={"task": "coding", "messages": []})
    assert cheapest.json()["cheapest"]["target"] == "sim/small"
    assert len(running.simulation.asked) == before
    answer = (await running.http.post("/v1/chat", json=body)).json()
    assert [answer["model_used"]] == explained["chain"][:1]
    assert float(answer["savings_estimate"]) > 0
    decision = await running.http.get(f"/v1/router/decisions/{answer['outcome']['decision_id']}")
    assert decision.json()["decision"]["inputs"]["task"] == explained["inputs"]["task"]
    # Refused: the error names its decision.
    refused = await running.http.post("/v1/chat", json={**body, "max_cost": "0.0000001"})
    details = refused.json()["error"]["details"]
    assert (refused.status_code, details["metadata"]["constraint"]) == (400, "max_cost")
    found = await running.http.get(f"/v1/router/decisions/{details['metadata']['decision_id']}")
    assert found.json()["decision"]["state"] == "refused"


async def test_a_step_of_an_agent(running: Running) -> None:
    prompt = next(prompt for prompt in read_workload(WORKLOAD) if prompt.name == "ag-search")
    body = {
        "chat": {"model": "auto", "messages": [{"role": "user", "content": prompt.text}]},
        "state": "loop 7",
    }
    answer = await running.http.post("/v1/agent-step", json=body)
    document = answer.json()
    assert (answer.status_code, document["state"], document["done"]) == (200, "loop 7", True)
    assert passes(document["output"], prompt.check)
    assert float(document["outcome"]["cost"]) > 0


async def test_all_decisions_are_decided_again_as_they_were(running: Running) -> None:
    status, out, error = await running.command("replay")
    assert (status, error) == (0, "")
    assert re.search(r"^\d{3,} replayed, 100\.00% agree; 0 had nothing to replay$", out.strip())
