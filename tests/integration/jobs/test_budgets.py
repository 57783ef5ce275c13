"""Jobs and limits, with real books: refused before anything is begun, counted, freed at their end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from omnihub.billing.v1 import budget_service_pb2 as budget
from omnihub.billing.v1 import report_service_pb2 as report
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.price_pb2 import Price
from omnihub.billing.v1.report_service_api import ReportService
from omnihub.workflow.v1 import job_service_pb2 as jobs
from omnihub.workflow.v1.job_pb2 import Job

from services.billing.domain.usage import parse_moment
from services.common.clock import now
from services.common.rpc import Call, RpcError
from tests.integration.jobs.conftest import CALLER, Engine
from tests.integration.jobs.test_batch import batch
from tests.integration.jobs.test_engine import wanted
from tests.support.billing import Directory, billing_connector, call_of

OF_PROJECT = replace(CALLER, identity=replace(CALLER.identity, project_id="proj_1"))
ORGANISATION = CALLER.identity.organisation_id


@pytest_asyncio.fixture
async def books(engine: Engine, tmp_path: Any, database_url: str) -> AsyncIterator[Any]:
    # The same PostgreSQL, or a file beside that of the jobs.
    shared = "" if database_url.startswith("sqlite") else database_url
    directory = Directory(ORGANISATION, bootstrap=ORGANISATION)
    async with billing_connector(shared, tmp_path, directory) as connector:
        engine.billing.books = connector.connect(BillingService, "billing")
        yield connector


async def limit(books: Any, measure: str, amount: str, window: str = "total") -> None:
    terms = LimitTerms(scope="project", scope_id="proj_1", measure=measure, window=window, amount=amount)
    limits = books.connect(BudgetService, "billing")
    await limits.set_limit(budget.SetLimitRequest(terms=terms), call_of(ORGANISATION))


async def used(books: Any) -> list[tuple[str, str]]:
    limits = books.connect(BudgetService, "billing")
    listed = await limits.list_limits(budget.ListLimitsRequest(), call_of(ORGANISATION))
    return [(each.spent, each.leased) for each in listed.limits]


@pytest.mark.parametrize(
    ("measure", "amount", "drawn", "left"),
    [("requests", "1", ("0", "1"), ("1", "0")), ("credits", "0.015", ("0", "0.01"), ("0.007", "0"))],
)
async def test_a_job_beyond_a_limit_is_never_begun(
    engine: Engine, books: Any, measure: str, amount: str, drawn: Any, left: Any
) -> None:
    await limit(books, measure, amount)
    job = (await engine.server.create_job(wanted(), OF_PROJECT)).job
    assert await used(books) == [drawn]
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), OF_PROJECT)
    assert caught.value.reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    await engine.work_off()
    assert (await engine.server.list_jobs(jobs.ListJobsRequest(), OF_PROJECT)).jobs[0].state == "succeeded"
    assert await used(books) == [left]
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), OF_PROJECT)
    assert (caught.value.reason, caught.value.metadata["scope_id"]) == ("BUDGET_LIMIT", "proj_1")
    assert engine.router.submitted.total() == 1
    # Whoever is not of the project is not refused.
    await engine.server.create_job(wanted(), CALLER)
    listed = report.ListUsageEventsRequest()
    events = books.connect(ReportService, "billing")
    (event,) = (await events.list_usage_events(listed, call_of(ORGANISATION))).events
    assert (event.request_id, parse_moment("at", event.at)) == (job.job_id, job.created_at.ToMicroseconds())


async def test_a_batch_beyond_a_limit_leaves_nothing_set_aside(engine: Engine, books: Any) -> None:
    await limit(books, "requests", "2")
    with pytest.raises(RpcError, match=r"items\[\d\]") as caught:
        await engine.server.create_batch(batch(3), OF_PROJECT)
    assert caught.value.reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    assert await used(books) == [("0", "0")]
    job = (await engine.server.create_batch(batch(2), OF_PROJECT)).job
    await engine.work_off()
    found = (await engine.server.get_job(jobs.GetJobRequest(job_id=job.job_id), OF_PROJECT)).job
    assert found.items.succeeded == 2
    assert await used(books) == [("2", "0")]


async def test_a_job_that_fails_gives_back_what_it_drew(engine: Engine, books: Any) -> None:
    await limit(books, "requests", "1")
    engine.router.failures = [RpcError("PROVIDER_REJECTED", "no")]
    await engine.server.create_job(wanted(), OF_PROJECT)
    await engine.work_off()
    assert engine.billing.released
    assert await used(books) == [("0", "0")]


async def test_a_race_keeps_its_hold_until_its_last_loser_has_ended(engine: Engine, books: Any) -> None:
    """What others could take of it would be missing when the losers are paid."""
    await limit(books, "credits", "0.03")
    engine.router.immediate, engine.router.targets = False, 3
    job = (await engine.server.create_job(wanted(parallel=True), OF_PROJECT)).job
    await engine.work_off()
    winner, *losers = await engine.rounds.due_polls(engine.now() + 60_000_000, 60)
    await engine.worker.poll(*winner)
    await engine.work_off()
    assert (await seen_by(OF_PROJECT, engine, job.job_id)).state == "succeeded"
    assert await used(books) == [("0", "0.03")]
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), OF_PROJECT)
    assert caught.value.reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    for loser in losers:
        await engine.worker.poll(*loser)
    await engine.work_off()
    assert await used(books) == [("0.021", "0")]
    assert (await seen_by(OF_PROJECT, engine, job.job_id)).cost == "0.021"


async def test_a_race_whose_loser_never_ends_is_paid_before_its_hold_expires(
    engine: Engine, books: Any
) -> None:
    engine.router.immediate, engine.router.targets = False, 2
    await engine.server.create_job(wanted(parallel=True), OF_PROJECT)
    await engine.work_off()
    (winner, _) = await engine.rounds.due_polls(engine.now() + 60_000_000, 60)
    await engine.worker.poll(*winner)
    await engine.work_off()
    assert not engine.billing.charges
    engine.shift_s = 2 * 3600.0 - 30.0
    await engine.work_off()
    assert list(engine.billing.charges.values()) == [7_000_000]


async def seen_by(call: Call, engine: Engine, job_id: str) -> Job:
    return (await engine.server.get_job(jobs.GetJobRequest(job_id=job_id), call)).job


async def test_free_jobs_count_as_requests_too(engine: Engine, books: Any) -> None:
    engine.router.price, engine.router.estimate = Price(version="p1", source="configured"), 0
    engine.clock.stopped_at = now().replace(second=30)
    await limit(books, "requests", "1", "minute")
    await engine.server.create_job(wanted(), OF_PROJECT)
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), OF_PROJECT)
    assert caught.value.reason == "RATE_LIMITED"
    await engine.work_off()
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), OF_PROJECT)
    assert caught.value.reason == "RATE_LIMITED"
    assert list(engine.billing.charges.values()) == [0]
    # Nobody else is held up, and in the next minute there is room again; one that fails gives it back.
    await engine.server.create_job(wanted(), CALLER)
    await engine.work_off()
    engine.shift_s = 60.0
    for _ in range(2):
        engine.router.failures = [RpcError("PROVIDER_REJECTED", "no")]
        await engine.server.create_job(wanted(), OF_PROJECT)
        await engine.work_off()
    assert len(engine.billing.released) == 2


async def test_free_jobs_need_no_credits(engine: Engine, books: Any) -> None:
    engine.router.price, engine.router.estimate = Price(version="p1", source="configured"), 0
    poor = replace(CALLER, identity=replace(CALLER.identity, organisation_id="org_poor"))
    await engine.server.create_job(wanted(), poor)
    await engine.work_off()
    (job,) = (await engine.server.list_jobs(jobs.ListJobsRequest(), poor)).jobs
    assert job.state == "succeeded"
    engine.router.estimate = 1
    with pytest.raises(RpcError) as caught:
        await engine.server.create_job(wanted(), poor)
    assert caught.value.reason == "INSUFFICIENT_CREDITS"
