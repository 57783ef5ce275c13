"""Adapters under the engine of jobs: whatever comes twice or not at all, a job ends once and is paid once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.foreign import ForeignClient
from services.common.rpc import RpcError
from services.workflow.files.outputs import Outputs
from services.workflow.files.provenance import Provenance
from tests.integration.jobs.conftest import CALLER
from tests.integration.jobs.test_engine import begin, seen
from tests.support.fake_vendor import CutAfter
from tests.support.fault_server import Head, Send, running_fault_server
from tests.support.matrix import cells

LATER_US = 60_000_000
# What a vendor's fake calls the request that begins a generation.
BEGIN = {"replicate": "create", "fal": "submit", "comfyui": "prompt", "automatic1111": "txt2img"}


async def take_in(engine, read) -> None:
    """Take in a notification, as its receiver does."""
    for attempt, job in await engine.notices.by_provider_job(read.provider_job_id):
        await engine.worker.take_in(attempt, job, read.progress, ())


async def poll(engine, after_us: int = LATER_US) -> None:
    """Ask once about everything that is due."""
    for attempt, job in await engine.rounds.due_polls(engine.now() + after_us, 60):
        await engine.worker.poll(attempt, job)


def keep_with(engine, download) -> None:
    """Keep outputs as the product does, fetched by `download`; what is fetched has no place to be kept in."""
    no_files, no_voices = None, None
    engine.worker._outputs = Outputs(
        no_files,  # type: ignore[arg-type]
        engine.router,
        download,
        no_voices,  # type: ignore[arg-type]
        Provenance(),
        0,
        engine.clock,
    )


async def last_event(engine, job_id: str):
    """Return how watching a job ends."""
    async with asyncio.timeout(60):
        events = [event async for event in engine.server.watch_job(pb.WatchJobRequest(job_id=job_id), CALLER)]
    return events[-1]


def served_together(engine, *makers) -> None:
    """Let the engine's router plan at all of these, in this order, and relay to each."""
    relays = {}
    for maker in makers:
        served(maker, each := SimpleNamespace(router=SimpleNamespace()))
        relays[maker.provider] = each.router

    async def plan_media(request, call):
        plans = [(await relay.plan_media(request, call)).targets[0] for relay in relays.values()]
        return router.PlanMediaResponse(targets=plans)

    async def submit_media(request, call):
        return await relays[request.attempt.provider].submit_media(request, call)

    engine.router.plan_media, engine.router.submit_media = plan_media, submit_media
    for name in ("poll_media", "cancel_media", "find_media"):

        async def relay(request, call, name=name):
            return await getattr(relays[request.request.provider], name)(request, call)

        setattr(engine.router, name, relay)


def served(maker, engine, **abilities) -> None:
    maker.serve(engine.router, cancels=True, webhooks=True, **abilities)


@pytest.mark.parametrize("vendor", cells(45, "replicate", "fal"))
async def test_notifications_and_polls_at_once_settle_a_job_once(engine, vendors, vendor):
    fake, maker = vendors[vendor]
    served(maker, engine)
    job = await begin(engine)
    await engine.work_off()
    fake.steps = [fake.steps[-1]]
    name = next(iter(fake.predictions if vendor == "replicate" else fake.requests))
    if vendor == "replicate":
        fake._show(fake.predictions[name])
    read = await maker.read(*fake.notification(name))
    await asyncio.gather(take_in(engine, read), poll(engine), take_in(engine, read), poll(engine))
    await take_in(engine, read)
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, len(ended.outputs), ended.attempts) == ("succeeded", 1, 1)
    assert len(engine.billing.charges) == 1


@pytest.mark.matrix(row=45, adapter="comfyui")
async def test_polls_at_once_settle_a_graph_once(engine, comfy, on_comfy):
    served(on_comfy, engine, finds=True)
    job = await begin(engine)
    await engine.work_off()
    await comfy.finish(comfy.pending[0][1])
    due = await engine.rounds.due_polls(engine.now() + LATER_US, 60)
    assert len(due) == 1
    await asyncio.gather(*(engine.worker.poll(*due[0]) for _ in range(4)))
    await engine.work_off()
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert len(engine.billing.charges) == 1


@pytest.mark.matrix(row=45, adapter="automatic1111")
async def test_a_message_that_comes_twice_makes_one_picture(engine, a1111, on_a1111):
    on_a1111.serve(engine.router, immediate=True)
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    await asyncio.gather(*(engine.worker.work(message.subject_id) for _ in range(3)))
    await engine.settler.settle(job.job_id)
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert (a1111.count("txt2img"), len(engine.billing.charges)) == (1, 1)


@pytest.mark.parametrize("vendor", cells(46, "replicate", "comfyui"))
async def test_a_create_without_an_answer_is_adopted_and_not_repeated(engine, vendors, vendor):
    (fake, maker), operation = vendors[vendor], BEGIN[vendor]
    served(maker, engine, finds=True)
    fake.faults[operation].append(CutAfter())
    job = await begin(engine)
    await engine.work_off()
    assert fake.injected == {f"{operation}_cut": 1}
    assert (await seen(engine, job.job_id)).state == "queued"
    engine.later_s = 10.0
    await engine.work_off()
    if vendor == "comfyui":
        await fake.finish(fake.pending[0][1])
    for _ in range(3):
        await poll(engine)
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, ended.attempts) == ("succeeded", 2)
    assert (fake.count(operation), len(engine.billing.charges)) == (1, 1)


async def test_what_another_job_began_with_the_same_words_is_not_adopted(engine, replicate, on_replicate):
    served(on_replicate, engine, finds=True)
    first = await begin(engine, idempotency_key="first")
    await engine.work_off()
    replicate.faults["create"].append(CutAfter())
    second = await begin(engine, idempotency_key="second")
    await engine.work_off()
    assert replicate.injected == {"create_cut": 1}
    engine.later_s = 10.0
    await engine.work_off()
    for job, prediction in zip((first, second), replicate.predictions, strict=True):
        ((_, owner),) = await engine.notices.by_provider_job(prediction)
        assert owner.id == job.job_id
    assert replicate.count("create") == 2


@pytest.mark.parametrize("vendor", cells(46, "fal", "automatic1111"))
async def test_a_submit_that_cannot_be_looked_for_is_not_repeated(engine, vendors, vendor):
    (fake, maker), operation = vendors[vendor], BEGIN[vendor]
    maker.serve(engine.router, immediate=vendor == "automatic1111")
    fake.faults[operation].append(CutAfter())
    job = await begin(engine)
    await engine.work_off()
    engine.later_s = 60.0
    await engine.work_off()
    assert fake.injected == {f"{operation}_cut": 1}
    ended = await seen(engine, job.job_id)
    assert (ended.state, ended.error.reason) == ("failed", "PROVIDER_FAILED")
    assert (fake.count(operation), len(engine.billing.charges)) == (1, 0)
    assert ended.maybe_double_charge


@pytest.mark.parametrize("winner", ["fal", "replicate"])
async def test_a_race_of_two_vendors_has_one_winner_and_the_other_is_stopped(engine, vendors, winner):
    loser = {"fal": "replicate", "replicate": "fal"}[winner]
    (won, first), (lost, second) = vendors[winner], vendors[loser]
    served_together(engine, second, first)
    job = await begin(engine, parallel=True)
    assert (await seen(engine, job.job_id)).estimate == "0.02"
    await engine.work_off()
    begun = {name: vendors[name][0].count(BEGIN[name]) for name in (winner, loser)}
    assert begun == {winner: 1, loser: 1}
    # One has made it, the other still works when both are asked.
    won.steps, lost.steps = [won.steps[-1]], [lost.steps[1]]
    if winner == "replicate":
        won._show(next(iter(won.predictions.values())))
    await poll(engine)
    won_by = (await seen(engine, job.job_id)).model_used.partition("/")[0]
    assert won_by == first.provider
    assert lost.count("cancel") == 0
    # Who waits for the job does not wait for the other one.
    assert (await last_event(engine, job.job_id)).end.state == "succeeded"
    await poll(engine)
    assert lost.count("cancel") == 1
    if loser == "fal":
        lost.steps, lost.ending = ["COMPLETED"], {"error": "cancelled", "error_type": "client_cancelled"}
    for _ in range(2):
        await poll(engine)
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, len(ended.outputs), ended.attempts) == ("succeeded", 1, 2)
    assert won.count("cancel") == 0
    assert len(engine.billing.charges) == 1
    assert not await engine.attempts.running([job.job_id])


@pytest.mark.matrix(row=47, adapter="replicate")
async def test_a_cancellation_that_comes_too_late_is_a_result_that_is_paid(engine, replicate, on_replicate):
    served(on_replicate, engine, finds=True)
    job = await begin(engine)
    await engine.work_off()
    await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)
    replicate.steps = ["succeeded"]
    replicate._show(next(iter(replicate.predictions.values())))
    await poll(engine)
    await engine.work_off()
    assert replicate.count("cancel") == 1
    assert (await seen(engine, job.job_id)).state == "succeeded"
    assert len(engine.billing.charges) == 1


@pytest.mark.matrix(row=47, adapter="fal")
async def test_what_is_cancelled_in_time_costs_nothing(engine, fal, on_fal):
    served(on_fal, engine)
    job = await begin(engine)
    await engine.work_off()
    await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)
    fal.steps, fal.ending = ["COMPLETED"], {"error": "cancelled", "error_type": "client_cancelled"}
    await poll(engine)
    await engine.work_off()
    assert fal.count("cancel") == 1
    assert (await seen(engine, job.job_id)).state == "cancelled"
    assert not engine.billing.charges
    assert engine.billing.released


@pytest.mark.parametrize("vendor", cells(48, "replicate", "fal"))
async def test_hostile_results_are_refused_and_see_no_key(engine, vendors, vendor):
    fake, maker = vendors[vendor]
    served(maker, engine)
    strict, lenient = ForeignClient(), ForeignClient(allow_private=True)
    await strict.start()
    await lenient.start()
    client = strict

    async def download(url: str, most: int) -> bytes:
        return await client.download(url, min(1000, most))

    keep_with(engine, download)
    fake.steps = [fake.steps[-1]]
    async with running_fault_server() as host:
        host.scripts = {
            "/away": [Head(302, {"Location": "ftp://127.0.0.1/x"})],
            "/huge": [Head(content_type="image/png"), Send(b"x" * 5000)],
        }
        cases = [
            (strict, f"{host.url}/a.png", "URL_REFUSED"),
            (strict, "https://127.0.0.1/a.png", "URL_REFUSED"),
            (strict, "https://169.254.169.254/latest/meta-data", "URL_REFUSED"),
            (strict, "https://key@example.org/a.png", "URL_REFUSED"),
            (lenient, f"{host.url}/away", "URL_REFUSED"),
            (lenient, f"{host.url}/huge", "BODY_TOO_LARGE"),
        ]
        if vendor == "fal":  # What is no address of the web is a text at Replicate.
            cases.append((strict, "file:///etc/passwd", "URL_REFUSED"))
        for number, (guard, url, reason) in enumerate(cases):
            client = guard
            fake.output = {"file": url}
            fake.result = {"images": [{"url": url, "content_type": "image/png"}]}
            job = await begin(engine, idempotency_key=f"case {number}")
            await engine.work_off()
            await poll(engine)
            await engine.work_off()
            ended = await seen(engine, job.job_id)
            assert (ended.state, ended.error.reason) == ("failed", reason), url
        assert [each.path for each in host.requests] == ["/away", "/huge"]
        assert host.injected == {"status_302": 1}
        assert all("Authorization" not in each.headers for each in host.requests)
    await strict.stop()
    await lenient.stop()
    assert not engine.billing.charges


async def test_a_result_that_cannot_be_fetched_yet_is_no_end(engine, fal, on_fal):
    served(on_fal, engine)
    fal.steps = ["COMPLETED"]
    refused = []

    async def download(url: str, most: int) -> bytes:
        refused.append(url)
        raise RpcError("PROVIDER_FAILED", "v3.fal.media answered 503")

    keep_with(engine, download)
    job = await begin(engine)
    await engine.work_off()
    await poll(engine)
    assert len(refused) == 1
    assert (await seen(engine, job.job_id)).state == "running"


async def test_an_expired_job_is_over_though_its_provider_goes_on_and_is_paid(engine, fal, on_fal):
    on_fal.serve(engine.router)
    job = await begin(engine, deadline_s=3)
    await engine.work_off()
    engine.shift_s = 4.0
    await engine.clockwork.sweep()
    assert (await last_event(engine, job.job_id)).end.state == "expired"
    fal.steps = ["COMPLETED"]
    await poll(engine)
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, ended.error.reason, len(ended.outputs)) == ("expired", "DEADLINE_EXCEEDED", 0)
    assert (fal.count("cancel"), len(engine.billing.charges)) == (0, 1)
