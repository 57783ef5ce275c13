"""fal, against a fake that the official client accepts (its address is changed: TLS is not judged)."""

from __future__ import annotations

import time

import fal_client
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from omnihub.common.v1.media_pb2 import (
    ImageEditInput,
    ImageInput,
    MediaFile,
    MediaInput,
    TranscriptionInput,
    UpscaleInput,
    VideoInput,
)

from services.common.rpc import RpcError
from services.providers.media.signing_keys import SigningKeys
from tests.support.fake_fal import KEY
from tests.support.fake_vendor import CutAfter, Refuse, StallAfter

PICTURE = MediaFile(data=b"png", mime="image/png")


async def test_the_official_client_accepts_the_fake(fal, monkeypatch):
    monkeypatch.setattr("fal_client.client.QUEUE_URL_FORMAT", f"{fal.url}/")
    client = fal_client.AsyncClient(key=KEY)
    handle = await client.submit(
        "fal-ai/flux/schnell", {"prompt": "x"}, webhook_url="https://hub.example/w", priority="low"
    )
    sent = fal.last("submit")
    assert sent.query["fal_webhook"] == "https://hub.example/w"
    assert sent.headers["X-Fal-Queue-Priority"] == "low"
    seen = [event async for event in handle.iter_events(with_logs=True, interval=0.001)]
    assert [type(event) for event in seen] == [
        fal_client.Queued,
        fal_client.InProgress,
        fal_client.Completed,
    ]
    assert fal.last("status").path == f"/fal-ai/flux/requests/{handle.request_id}/status"
    assert await handle.get() == fal.result
    with pytest.raises(fal_client.client.FalClientHTTPError):
        await handle.cancel()
    other = await client.submit("fal-ai/flux/schnell", {"prompt": "x"})
    await other.cancel()
    fal.ending = {"error": "boom", "error_type": "runner_disconnected"}
    failed = [event async for event in other.iter_events(interval=0.001)][-1]
    assert (failed.error, failed.error_type) == ("boom", "runner_disconnected")
    await (await client._client).aclose()


@pytest.mark.matrix(row=43, adapter="fal")
async def test_a_request_goes_through_its_states_and_ends_once(fal, on_fal):
    begun = await on_fal.submit(priority="low", webhook_url="https://hub.example/webhooks/fal")
    assert (begun.progress.state, begun.progress.queue_position) == ("queued", 2)
    sent = fal.last("submit")
    assert (sent.path, sent.query["fal_webhook"]) == (
        "/fal-ai/flux/schnell",
        "https://hub.example/webhooks/fal",
    )
    assert sent.headers["X-Fal-Queue-Priority"] == "low"
    seen = await on_fal.poll_to_end(begun.provider_job_id)
    assert [each.state for each in seen] == ["queued", "running", "succeeded"]
    assert (seen[0].queue_position, list(seen[1].logs)) == (1, ["20/50"])
    end = seen[-1]
    (output,) = end.outputs
    assert (output.url, output.facts.width, output.facts.seed) == (
        "https://v3.fal.media/files/a/out.png",
        1024,
        7,
    )
    assert (end.usage.images, end.usage.compute_seconds, end.usage.provider_units) == (1, 1.5, 0.75)
    assert end.usage.megapixels == pytest.approx(0.786432)
    # Addresses below owner and alias, without the path of the model.
    assert fal.last("response").path == f"/fal-ai/flux/requests/{begun.provider_job_id}"
    assert await on_fal.poll(begun.provider_job_id) == end


@pytest.mark.matrix(row=48, adapter="fal")
async def test_addresses_in_answers_are_not_followed(fal, on_fal):
    fal.named_host = "http://127.0.0.1:9"
    begun = await on_fal.submit()
    assert (await on_fal.poll_to_end(begun.provider_job_id))[-1].state == "succeeded"
    assert await on_fal.cancel(begun.provider_job_id) == "already_ended"


async def test_a_workflow_has_a_namespace(fal, on_fal):
    on_fal.model = "workflows/owner/mine/deep"
    begun = await on_fal.submit()
    assert (await on_fal.poll_to_end(begun.provider_job_id))[-1].state == "succeeded"
    assert fal.last("status").path.startswith("/workflows/owner/mine/requests/")


@pytest.mark.parametrize(
    "model", ["flux", "a/../b", "fal-ai//x", "workflows/a", "a/b?x", "a/b#x", "a/%2e%2e"]
)
async def test_what_is_no_application_is_refused_before_anything_is_sent(fal, on_fal, model):
    with pytest.raises(RpcError) as caught:
        await on_fal.submit(model=model)
    assert caught.value.violations[0].field == "model"
    assert not fal.seen


async def test_parameters_are_written_and_each_has_its_receipt(fal, on_fal):
    given = MediaInput(
        image=ImageInput(
            prompt="a boat",
            count=3,
            width=640,
            height=480,
            guidance=3.5,
            steps=8,
            loras=[{"name": "https://x.example/l", "weight": 0.7}],
        ),
        extension_json='{"enable_safety_checker": false}',
    )
    begun = await on_fal.submit(given, strict=True)
    assert fal.last("submit").document == {
        "prompt": "a boat",
        "num_images": 3,
        "image_size": {"width": 640, "height": 480},
        "guidance_scale": 3.5,
        "num_inference_steps": 8,
        "loras": [{"path": "https://x.example/l", "scale": 0.7}],
        "enable_safety_checker": False,
    }
    assert {entry.outcome for entry in begun.receipt} == {"forwarded", "translated"}
    assert len(begun.receipt) == 8
    video = MediaInput(video=VideoInput(prompt="x", width=10, duration_s=5))
    begun = await on_fal.submit(video)
    assert fal.last("submit").document == {"prompt": "x", "duration": "5"}
    assert [entry.name for entry in begun.receipt if entry.outcome == "dropped"] == ["width"]
    with pytest.raises(RpcError) as caught:
        await on_fal.submit(video, strict=True)
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"


async def test_other_kinds_are_written_in_their_words(fal, on_fal):
    clip = MediaFile(url="https://x.example/v.mp4", mime="video/mp4")
    data = "data:image/png;base64,cG5n"
    for given, written in (
        (MediaInput(upscale=UpscaleInput(file=clip, factor=2)), {"video_url": clip.url, "upscale_factor": 2}),
        (
            MediaInput(image_edit=ImageEditInput(images=[PICTURE], mask=PICTURE)),
            {"image_url": data, "mask_url": data},
        ),
        (MediaInput(image_edit=ImageEditInput(images=[PICTURE] * 2)), {"image_urls": [data, data]}),
        (
            MediaInput(transcription=TranscriptionInput(audio=clip, timestamps=["word"])),
            {"audio_url": clip.url, "chunk_level": "word"},
        ),
    ):
        await on_fal.submit(given)
        assert fal.last("submit").document == written


async def test_results_of_other_shapes_are_read(fal, on_fal):
    fal.steps = ["COMPLETED"]
    for result, kind, seconds in (
        ({"video": {"url": "https://v3.fal.media/v.mp4", "duration": 5.0}}, "url", 5),
        ({"audio": {"url": "data:audio/wav;base64,UklGRg=="}}, "data", 0),
        ({"text": "hello", "chunks": [{"timestamp": [0, 1]}]}, "text", 0),
        ({"images": [{"url": "https://v3.fal.media/a"}], "has_nsfw_concepts": [True]}, "url", 0),
    ):
        fal.result = result
        end = await on_fal.poll((await on_fal.submit()).provider_job_id)
        assert (end.outputs[0].WhichOneof("content"), end.usage.seconds) == (kind, seconds)
        assert end.outputs[0].facts.flagged is ("has_nsfw_concepts" in result)
    for result in ({}, [], "x", {"images": []}):
        fal.result = result
        job = (await on_fal.submit()).provider_job_id
        with pytest.raises(RpcError, match="without a file") as caught:
            await on_fal.poll(job)
        assert caught.value.reason == "PROVIDER_PROTOCOL"


@pytest.mark.parametrize(
    ("status", "document", "headers", "reason"),
    [
        (401, {"detail": f"Invalid key {KEY}"}, {}, "PROVIDER_CREDENTIAL_REFUSED"),
        (403, {"detail": "User is locked. Reason: Exhausted balance."}, {}, "PROVIDER_BILLING"),
        (404, {"detail": "Application 'flux' not found"}, {}, "MODEL_NOT_FOUND"),
        (
            422,
            {"detail": [{"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}]},
            {},
            "PROVIDER_REJECTED",
        ),
        (
            422,
            {"detail": [{"loc": ["body"], "msg": "no", "type": "content_policy_violation"}]},
            {},
            "CONTENT_FILTERED",
        ),
        (429, {"detail": "Too many requests"}, {"retry-after": "3"}, "PROVIDER_RATE_LIMITED"),
        (429, {"detail": "Concurrent requests limit of 10 reached"}, {}, "PROVIDER_CONCURRENCY"),
        (500, {"detail": "x"}, {"x-fal-error-type": "internal_server_error"}, "PROVIDER_FAILED"),
        (504, {"detail": "x", "error_type": "startup_timeout"}, {}, "PROVIDER_OVERLOADED"),
        (502, "<html><center>nginx</center></html>", {}, "PROVIDER_FAILED"),
    ],
)
@pytest.mark.matrix(row=19, adapter="fal")
@pytest.mark.matrix(row=21, adapter="fal")
@pytest.mark.matrix(row=24, adapter="fal")
async def test_refusals_are_classed_and_hold_no_key(fal, on_fal, status, document, headers, reason):
    fal.faults["submit"].append(Refuse(status, document, headers))
    with pytest.raises(RpcError) as caught:
        await on_fal.submit()
    assert fal.injected[f"submit_{status}"] == 1
    assert (caught.value.reason, caught.value.metadata["http_status"]) == (reason, str(status))
    assert KEY not in str(caught.value) + str(caught.value.metadata)
    assert len(fal.seen) == 1


@pytest.mark.matrix(row=46, adapter="fal")
@pytest.mark.parametrize("fault", [CutAfter(), StallAfter()])
async def test_a_submit_without_an_answer_is_in_doubt_and_not_to_be_repeated(fal, on_fal, fault):
    fal.faults["submit"].append(fault)
    with pytest.raises(RpcError) as caught:
        await on_fal.submit(total_ms=1000)
    assert sum(fal.injected.values()) == 1
    assert (caught.value.metadata["accepted"], caught.value.metadata["retryable"]) == ("unknown", "false")
    assert (len(fal.requests), fal.count("submit")) == (1, 1)
    # Its queue cannot be searched, and it says so.
    with pytest.raises(RpcError) as caught:
        await on_fal.find()
    assert caught.value.reason == "NOT_IMPLEMENTED"


@pytest.mark.matrix(row=44, adapter="fal")
async def test_only_genuine_notifications_are_accepted(fal, on_fal):
    job = (await on_fal.submit()).provider_job_id
    headers, body = fal.notification(job)
    read = await on_fal.read(headers, body)
    assert (read.provider_job_id, read.event_id, read.progress.state) == (job, job, "succeeded")
    assert read.progress.usage.images == 1
    # Delivered again it says the same under the same id: who asks knows it.
    assert await on_fal.read(headers, body) == read
    name = "x-fal-webhook-"
    forged = [
        (headers, body.replace(b'"OK"', b'"ERROR"')),
        (headers, body + b" "),
        fal.notification(job, age_s=301),
        fal.notification(job, age_s=-301),
        fal.notification(job, key=Ed25519PrivateKey.generate()),
        (headers | {name + "user-id": "someone"}, body),
        (headers | {name + "request-id": "other"}, body),
        (headers | {name + "timestamp": str(int(time.time()) - 1)}, body),
        (headers | {name + "timestamp": "9" * 30}, body),
        (headers | {name + "timestamp": "²"}, body),
        (headers | {name + "signature": "not hexadecimal"}, body),
        (headers | {name + "signature": "00"}, body),
        (headers | {name + "signature": ""}, body),
        ({}, body),
    ]
    for wrong_headers, wrong_body in forged:
        with pytest.raises(RpcError) as caught:
            await on_fal.read(wrong_headers, wrong_body)
        assert caught.value.reason == "INVALID_CREDENTIAL", wrong_headers
    # However many are forged, the keys are asked for once and once again, and never with our own key.
    asked = [seen for seen in fal.seen if seen.operation == "jwks"]
    assert len(asked) == 2
    assert all("Authorization" not in seen.headers for seen in asked)


@pytest.mark.matrix(row=44, adapter="fal")
async def test_a_rotated_key_is_learned(fal, on_fal):
    job = (await on_fal.submit()).provider_job_id
    await on_fal.read(*fal.notification(job))
    fal.key = Ed25519PrivateKey.generate()
    assert (await on_fal.read(*fal.notification(job))).provider_job_id == job
    assert fal.count("jwks") == 2


async def test_keys_are_kept_for_a_day_and_renewed_once_a_minute():
    now, fetched = [0.0], []

    async def fetch():
        fetched.append(now[0])
        return [len(fetched)]

    keys = SigningKeys(fetch, lambda: now[0])
    assert [await keys.current(), await keys.current()] == [[1], [1]]
    assert [await keys.renewed(), await keys.renewed()] == [[2], ()]
    now[0] = 61.0
    assert await keys.renewed() == [3]
    now[0] = 61.0 + 24 * 3600
    assert await keys.current() == [4]
    assert fetched == [0.0, 0.0, 61.0, 61.0 + 24 * 3600]


@pytest.mark.parametrize("keys", [{}, {"keys": []}, {"keys": [{"crv": "X25519", "x": "AA"}, 3, {"x": "AA"}]}])
async def test_without_a_usable_key_nothing_is_accepted(fal, on_fal, keys):
    job = (await on_fal.submit()).provider_job_id
    fal.faults["jwks"].append(Refuse(200, keys))
    with pytest.raises(RpcError) as caught:
        await on_fal.read(*fal.notification(job))
    assert fal.injected["jwks_200"] == 1
    assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_a_signed_notification_that_says_nothing_is_refused(fal, on_fal):
    headers, body = fal.notification("x", request_id="")
    with pytest.raises(RpcError) as caught:
        await on_fal.read(headers, body)
    assert caught.value.reason == "INVALID_ARGUMENT"


async def test_notifications_of_failures_and_without_their_payload(fal, on_fal):
    job = (await on_fal.submit()).provider_job_id
    detail = {"detail": [{"loc": ["body"], "msg": "flagged", "type": "content_policy_violation"}]}
    read = await on_fal.read(*fal.notification(job, status="ERROR", error="x", payload=detail))
    assert (read.progress.state, read.progress.reason) == ("failed", "CONTENT_FILTERED")
    large = fal.notification(job, payload=None, payload_error="Response payload is too large")
    assert (await on_fal.read(*large)).progress.state == "running"


@pytest.mark.matrix(row=47, adapter="fal")
@pytest.mark.parametrize(
    ("ending", "reason", "retryable"),
    [
        ({"error": "Runner died", "error_type": "runner_disconnected"}, "PROVIDER_FAILED", True),
        ({"error": "Request timed out", "error_type": "request_timeout"}, "PROVIDER_TIMEOUT", False),
        ({"error": "NSFW content was found"}, "CONTENT_FILTERED", False),
        ({"error_type": "internal_error"}, "PROVIDER_FAILED", True),
    ],
)
async def test_completed_with_an_error_is_a_failure(fal, on_fal, ending, reason, retryable):
    fal.ending = ending
    job = (await on_fal.submit()).provider_job_id
    end = (await on_fal.poll_to_end(job))[-1]
    assert (end.state, end.reason, end.retryable) == ("failed", reason, retryable)
    assert fal.count("response") == 0
    assert not end.usage.images


@pytest.mark.matrix(row=47, adapter="fal")
async def test_completed_whose_result_is_an_error_is_a_failure(fal, on_fal):
    fal.steps = ["COMPLETED"]
    job = (await on_fal.submit()).provider_job_id
    detail = {"detail": [{"loc": ["body", "seed"], "msg": "too large", "type": "less_than_equal"}]}
    fal.faults["response"] += [Refuse(422, detail), Refuse(503, {"detail": "gateway"})]
    end = await on_fal.poll(job)
    assert (end.state, end.reason, end.message) == (
        "failed",
        "PROVIDER_REJECTED",
        "fal: body.seed: too large",
    )
    # The gateway's own trouble is no end: the next poll may do better.
    with pytest.raises(RpcError) as caught:
        await on_fal.poll(job)
    assert caught.value.reason == "PROVIDER_OVERLOADED"
    assert fal.injected == {"response_422": 1, "response_503": 1}
    assert (await on_fal.poll(job)).state == "succeeded"


@pytest.mark.matrix(row=47, adapter="fal")
@pytest.mark.matrix(row=40, adapter="fal")
async def test_to_cancel_in_time_too_late_and_what_is_unknown(fal, on_fal):
    job = (await on_fal.submit()).provider_job_id
    assert await on_fal.cancel(job) == "requested"
    fal.ending = {"error": "Request was cancelled", "error_type": "client_cancelled"}
    assert (await on_fal.poll_to_end(job))[-1].state == "cancelled"
    fal.ending = {}
    late = (await on_fal.submit()).provider_job_id
    await on_fal.poll_to_end(late)
    assert await on_fal.cancel(late) == "already_ended"
    assert (await on_fal.poll(late)).state == "succeeded"
    assert await on_fal.cancel("nothing") == "unknown"


async def test_a_state_that_is_new_is_not_the_end_and_a_forgotten_request_not_found(fal, on_fal):
    fal.steps = ["DREAMING", "COMPLETED"]
    job = (await on_fal.submit()).provider_job_id
    assert [each.state for each in await on_fal.poll_to_end(job)] == ["running", "succeeded"]
    for name in ("gone", "../x", "a/b"):
        with pytest.raises(RpcError) as caught:
            await on_fal.poll(name)
        assert caught.value.reason == "NOT_FOUND"
