"""Webhooks to users, verified with the standard's own library; notifications of providers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from omnihub.common.v1.media_pb2 import ImageInput, MediaInput
from omnihub.workflow.v1 import job_service_pb2 as jobs
from omnihub.workflow.v1 import webhook_service_pb2 as pb
from standardwebhooks import Webhook, WebhookVerificationError

from services.common.rpc import RpcError
from services.workflow.store.secrets import StartupError
from tests.support.files import CALLER, STRANGER, close_bench, open_bench


async def endpoint(bench, receiver, **fields):
    request = pb.CreateWebhookEndpointRequest(url=receiver.url, **fields)
    return await bench.parts.webhooks.create_webhook_endpoint(request, CALLER)


async def ended_job(bench, endpoint_id: str):
    request = jobs.CreateJobRequest(
        input=MediaInput(image=ImageInput(prompt="a boat")), webhook_endpoint_id=endpoint_id
    )
    job = (await bench.server.create_job(request, CALLER)).job
    await bench.server.cancel_job(jobs.CancelJobRequest(job_id=job.job_id), CALLER)
    return job.job_id


async def deliveries(bench, endpoint_id: str):
    request = pb.ListWebhookDeliveriesRequest(webhook_endpoint_id=endpoint_id)
    return (await bench.parts.webhooks.list_webhook_deliveries(request, CALLER)).deliveries


async def test_the_end_of_a_job_is_told_once_and_signed(bench, receiver):
    made = await endpoint(bench, receiver)
    job_id = await ended_job(bench, made.endpoint.webhook_endpoint_id)
    await bench.work_off()
    await bench.parts.notifier.notify(job_id)
    ((headers, body),) = receiver.got
    document = Webhook(made.secret).verify(body, headers)
    assert (document["type"], document["data"]["jobId"]) == ("job.cancelled", job_id)
    with pytest.raises(WebhookVerificationError):
        Webhook(made.secret).verify(body.replace(b"cancelled", b"succeeded"), headers)
    (delivery,) = await deliveries(bench, made.endpoint.webhook_endpoint_id)
    assert (delivery.state, delivery.attempts, delivery.http_status) == ("delivered", 1, 204)
    assert delivery.delivery_id == headers["webhook-id"]


async def test_only_chosen_events_are_told(bench, receiver):
    made = await endpoint(bench, receiver, events=["job.succeeded"])
    await ended_job(bench, made.endpoint.webhook_endpoint_id)
    await bench.work_off()
    assert not receiver.got


async def test_a_failing_receiver_is_tried_again_for_a_day_then_the_letter_is_dead(bench, receiver):
    made = await endpoint(bench, receiver)
    receiver.answers = [500] * 11
    await ended_job(bench, made.endpoint.webhook_endpoint_id)
    await bench.work_off()
    (delivery,) = await deliveries(bench, made.endpoint.webhook_endpoint_id)
    assert (delivery.state, delivery.attempts) == ("pending", 1)
    assert "500" in delivery.problem
    assert delivery.HasField("next_attempt_at")
    begun = bench.micros()
    while delivery.state == "pending":
        wait = delivery.next_attempt_at.ToMicroseconds() - bench.micros()
        bench.later += timedelta(microseconds=max(0, wait) + 1)
        assert await bench.work_off() == 1
        (delivery,) = await deliveries(bench, made.endpoint.webhook_endpoint_id)
    assert (delivery.state, delivery.attempts, len(receiver.got)) == ("dead", 11, 11)
    assert timedelta(microseconds=bench.micros() - begun) > timedelta(days=1)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    # By hand, once more.
    await bench.parts.notifier.notify(delivery.delivery_id)
    (delivery,) = await deliveries(bench, made.endpoint.webhook_endpoint_id)
    assert delivery.state == "delivered"


async def test_a_receiver_that_is_gone_is_left_alone(bench, receiver):
    made = await endpoint(bench, receiver)
    receiver.answers = [410]
    await ended_job(bench, made.endpoint.webhook_endpoint_id)
    await bench.work_off()
    (delivery,) = await deliveries(bench, made.endpoint.webhook_endpoint_id)
    assert (delivery.state, delivery.http_status) == ("dead", 410)
    listed = await bench.parts.webhooks.list_webhook_endpoints(pb.ListWebhookEndpointsRequest(), CALLER)
    assert not listed.endpoints[0].enabled


async def test_after_a_rotation_both_secrets_sign_for_the_overlap(bench, receiver):
    made = await endpoint(bench, receiver)
    endpoint_id = made.endpoint.webhook_endpoint_id
    rotated = await bench.parts.webhooks.rotate_webhook_secret(
        pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id, overlap_s=60), CALLER
    )
    test = pb.TestWebhookEndpointRequest(webhook_endpoint_id=endpoint_id)
    assert (await bench.parts.webhooks.test_webhook_endpoint(test, CALLER)).http_status == 204
    headers, body = receiver.got[-1]
    for secret in (made.secret, rotated.secret):
        assert Webhook(secret).verify(body, headers)["type"] == "webhook.test"
    bench.later = timedelta(seconds=61)
    await bench.parts.webhooks.test_webhook_endpoint(test, CALLER)
    headers, body = receiver.got[-1]
    Webhook(rotated.secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(made.secret).verify(body, headers)


async def test_a_test_says_what_is_wrong(bench, receiver):
    made = await endpoint(bench, receiver)
    await receiver.stop()
    test = pb.TestWebhookEndpointRequest(webhook_endpoint_id=made.endpoint.webhook_endpoint_id)
    answer = await bench.parts.webhooks.test_webhook_endpoint(test, CALLER)
    assert (answer.http_status, "cannot be reached" in answer.problem) == (0, True)


async def test_what_is_asked_for_wrongly(bench, receiver):
    with pytest.raises(RpcError, match=r"job\.succeeded"):
        await endpoint(bench, receiver, events=["job.exploded"])
    first = await endpoint(bench, receiver, idempotency_key="k")
    again = await endpoint(bench, receiver, idempotency_key="k")
    assert (first.endpoint, first.secret) == (again.endpoint, again.secret)
    with pytest.raises(RpcError, match="IDEMPOTENCY_KEY_REUSED"):
        await endpoint(bench, receiver, idempotency_key="k", events=["job.failed"])
    endpoint_id = first.endpoint.webhook_endpoint_id
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await bench.parts.webhooks.rotate_webhook_secret(
            pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id), STRANGER
        )
    with pytest.raises(RpcError, match="webhook_endpoint_id"):
        await bench.server.create_job(
            jobs.CreateJobRequest(
                input=MediaInput(image=ImageInput(prompt="x")), webhook_endpoint_id=endpoint_id
            ),
            STRANGER,
        )
    assert not bench.books.holds
    remove = pb.DeleteWebhookEndpointRequest(webhook_endpoint_id=endpoint_id)
    await bench.parts.webhooks.delete_webhook_endpoint(remove, STRANGER)
    assert (await deliveries(bench, endpoint_id)) is not None
    await bench.parts.webhooks.delete_webhook_endpoint(remove, CALLER)
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await deliveries(bench, endpoint_id)


async def test_private_receivers_are_refused_and_secrets_sealed(database_url, tmp_path, receiver):
    bench = await open_bench(
        tmp_path, database_url, master_key="m1", provenance=False,
        private_hosts=[receiver.url.split("/")[2]],
    )  # fmt: skip
    made = await endpoint(bench, receiver)
    row = await bench.parts.webhooks._webhooks.find(made.endpoint.webhook_endpoint_id)
    assert row.sealed
    assert Webhook(made.secret)._whsecret not in bytes(row.secret)
    for url in ("https://127.0.0.1/", "http://example.com/", "https://10.0.0.1/hook", "https://2130706433/"):
        with pytest.raises(RpcError, match="URL_REFUSED"):
            await bench.parts.webhooks.create_webhook_endpoint(
                pb.CreateWebhookEndpointRequest(url=url), CALLER
            )
    await close_bench(bench)
    other = await open_bench(tmp_path, database_url, master_key="m2", provenance=False)
    with pytest.raises(StartupError, match="set the former one"):
        await other.parts.notifier.send(row, "msg_1", b"{}")
    await close_bench(other)


async def test_a_providers_notification_comes_through_as_it_was_sent(bench):
    body = b'{"b": 1,  "a": "\xc3\xa9"}'
    sent = {"X-Fal-Webhook-Signature": "abc", "Authorization": "Bearer key-one", "content-type": "text/x"}
    answer = await bench.http.post("/webhooks/fal", content=body, headers=sent)
    assert (answer.status_code, answer.json()) == (200, {"jobId": "job_7"})
    (seen,) = bench.notified
    assert (seen.provider, seen.body) == ("fal", body)
    assert seen.headers["x-fal-webhook-signature"] == "abc"
    assert "authorization" not in seen.headers


async def test_notifications_that_are_refused(bench):
    large = await bench.http.post("/webhooks/fal", content=b"x" * (1024 * 1024 + 1))
    assert (large.status_code, bench.notified) == (413, [])
    bench.refuse = RpcError("INVALID_CREDENTIAL", "forged")
    forged = await bench.http.post("/webhooks/fal", content=b"{}")
    assert (forged.status_code, forged.json()["error"]["reason"]) == (401, "INVALID_CREDENTIAL")
    assert json.loads(forged.content)["error"]["request_id"]
