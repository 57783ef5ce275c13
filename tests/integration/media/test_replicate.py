"""Replicate, against a fake that the official client accepts."""

from __future__ import annotations

import time

import pytest
from omnihub.common.v1.media_pb2 import (
    ImageEditInput,
    ImageInput,
    MediaFile,
    MediaInput,
    TranscriptionInput,
    UpscaleInput,
)
from replicate.client import Client
from replicate.exceptions import ReplicateError
from replicate.webhook import InvalidSignatureError, InvalidTimestampError, Webhooks, WebhookSigningSecret

from services.common.rpc import RpcError
from tests.support.fake_replicate import KEY, VERSION
from tests.support.fake_vendor import CutAfter, Refuse, StallAfter
from tests.support.media import Maker, running_media


async def test_the_official_client_accepts_the_fake(replicate):
    client = Client(api_token=KEY, base_url=replicate.url)
    client.poll_interval = 0.001
    made = await client.predictions.async_create(model="owner/name", input={"prompt": "x"})
    await made.async_wait()
    assert (made.status, made.output) == ("succeeded", replicate.output)
    assert made.progress.percentage == 0.4
    versioned = await client.predictions.async_create(VERSION, {"prompt": "x"}, wait=1)
    stopped = await client.predictions.async_cancel(versioned.id)
    assert stopped.status == "canceled"
    assert replicate.last("create").headers["Prefer"] == "wait=1"
    listed = await client.predictions.async_list()
    assert [row.id for row in listed.results] == [versioned.id, made.id]
    deployed = await client.deployments.predictions.async_create(("owner", "name"), {"prompt": "x"})
    assert deployed.status == "starting"
    assert (await client.webhooks.default.async_secret()).key == replicate.secret
    stranger = Client(api_token="wrong", base_url=replicate.url)
    with pytest.raises(ReplicateError, match="valid token"):
        await stranger.webhooks.default.async_secret()
    for each in (client, stranger):
        await each._async_client.aclose()


async def test_the_official_validator_accepts_the_fakes_signatures(replicate, on_replicate):
    job = (await on_replicate.submit()).provider_job_id
    headers, body = replicate.notification(job)
    secret = WebhookSigningSecret(key=replicate.secret)
    Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)
    with pytest.raises(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=body.decode() + " ", secret=secret)
    headers, body = replicate.notification(job, age_s=400)
    with pytest.raises(InvalidTimestampError):
        Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)


@pytest.mark.matrix(row=43, adapter="replicate")
async def test_a_prediction_goes_through_its_states_and_ends_once(replicate, on_replicate):
    begun = await on_replicate.submit()
    assert (begun.provider_job_id, begun.progress.state) == (f"pred{0:022d}", "queued")
    seen = await on_replicate.poll_to_end(begun.provider_job_id)
    assert [each.state for each in seen] == ["running", "succeeded"]
    assert seen[0].fraction == pytest.approx(0.4)
    end = seen[-1]
    assert [each.url for each in end.outputs] == replicate.output
    assert (end.usage.images, end.usage.compute_seconds) == (1, 2.5)
    # To look again changes nothing.
    assert await on_replicate.poll(begun.provider_job_id) == end


@pytest.mark.parametrize(
    ("model", "path", "version"),
    [
        ("owner/name", "/v1/models/owner/name/predictions", None),
        (f"owner/name:{VERSION}", "/v1/predictions", VERSION),
        (VERSION, "/v1/predictions", VERSION),
        ("deployments/owner/name", "/v1/deployments/owner/name/predictions", None),
    ],
)
async def test_every_form_of_a_model_has_its_place(replicate, on_replicate, model, path, version):
    await on_replicate.submit(model=model, webhook_url="https://hub.example/webhooks/rep")
    sent = replicate.last("create")
    assert (sent.path, sent.document.get("version")) == (path, version)
    assert sent.headers["Prefer"] == "wait=5"
    assert sent.document["webhook"] == "https://hub.example/webhooks/rep"
    assert sent.document["webhook_events_filter"] == ["completed"]


@pytest.mark.parametrize("model", ["name", "a/b/c", "a/../b", "owner/name?x", "deployments/x", "..//x"])
async def test_what_is_no_model_is_refused_before_anything_is_sent(replicate, on_replicate, model):
    with pytest.raises(RpcError) as caught:
        await on_replicate.submit(model=model)
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert not replicate.seen


async def test_what_is_done_within_the_wait_needs_no_poll(replicate, on_replicate):
    replicate.steps = ["succeeded"]
    begun = await on_replicate.submit()
    assert (begun.progress.state, len(begun.progress.outputs)) == ("succeeded", 1)


async def test_parameters_are_written_and_each_has_its_receipt(replicate, on_replicate):
    given = MediaInput(
        image=ImageInput(
            prompt="a boat",
            count=2,
            guidance=3.3,
            seed=0,
            init_image=MediaFile(data=b"png", mime="image/png"),
            loras=[{"name": "x", "weight": 1}],
        ),
        extension_json='{"go_fast": true}',
    )
    begun = await on_replicate.submit(given)
    assert replicate.last("create").document["input"] == {
        "prompt": "a boat",
        "num_outputs": 2,
        "guidance_scale": 3.3,
        "seed": 0,
        "image": "data:image/png;base64,cG5n",
        "go_fast": True,
    }
    outcomes = {entry.name: (entry.outcome, entry.detail) for entry in begun.receipt}
    assert outcomes == {
        "prompt": ("forwarded", ""),
        "count": ("translated", "as num_outputs"),
        "guidance": ("translated", "as guidance_scale"),
        "seed": ("forwarded", ""),
        "init_image": ("translated", "as image"),
        "loras": ("dropped", "this provider has no such parameter"),
        "go_fast": ("forwarded", ""),
    }
    with pytest.raises(RpcError) as caught:
        await on_replicate.submit(given, strict=True)
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert "loras" in caught.value.message
    assert replicate.count("create") == 1


@pytest.mark.parametrize("text", ["[1]", "nonsense", '"x"'])
async def test_an_extension_that_is_no_object_is_refused(replicate, on_replicate, text):
    with pytest.raises(RpcError) as caught:
        await on_replicate.submit(MediaInput(image=ImageInput(prompt="x"), extension_json=text))
    assert caught.value.violations[0].field == "input.extension_json"
    assert not replicate.seen


async def test_other_kinds_are_written_in_their_words(replicate, on_replicate):
    picture, clip = (
        MediaFile(data=b"i", mime="image/png"),
        MediaFile(url="https://x.example/v", mime="video/mp4"),
    )
    for given, written in (
        (MediaInput(upscale=UpscaleInput(file=clip, factor=4)), {"video": clip.url, "scale": 4}),
        (MediaInput(image_edit=ImageEditInput(images=[picture, picture])), ["image_edit"]),
        (
            MediaInput(transcription=TranscriptionInput(audio=clip, diarise=True)),
            {"audio": clip.url, "diarize": True},
        ),
    ):
        await on_replicate.submit(given)
        sent = replicate.last("create").document["input"]
        if isinstance(written, dict):
            assert sent == written
        else:
            assert len(sent["images"]) == 2


@pytest.mark.parametrize(
    ("output", "kinds"),
    [
        ("https://replicate.delivery/a.mp4", [("url", "video/mp4")]),
        (
            ["https://replicate.delivery/a.webp", "https://replicate.delivery/b"],
            [("url", "image/webp"), ("url", "")],
        ),
        ({"mask": "https://replicate.delivery/m.png", "score": 3}, [("url", "image/png")]),
        ("data:image/png;base64,cG5n", [("data", "image/png")]),
        ("a poem", [("text", "")]),
        (["a ", "poem"], [("text", "")]),
        ({"transcription": "hello"}, [("text", "")]),
        ([[1.5, 2.5]], [("text", "")]),
    ],
)
async def test_outputs_of_every_shape_are_read(replicate, on_replicate, output, kinds):
    replicate.steps, replicate.output = ["succeeded"], output
    made = (await on_replicate.submit()).progress.outputs
    assert [(each.WhichOneof("content"), each.facts.mime) for each in made] == kinds


async def test_an_output_of_nothing_is_no_success(replicate, on_replicate):
    replicate.output = None
    job = (await on_replicate.submit()).provider_job_id
    await on_replicate.poll(job)
    with pytest.raises(RpcError, match="without an output") as caught:
        await on_replicate.poll(job)
    assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_only_files_at_the_vendors_own_host_are_fetched_with_the_key(replicate, on_replicate):
    replicate.steps = ["succeeded"]
    replicate.output = [f"{replicate.url}/v1/files/x", "http://127.0.0.1:9/v1/files/y"]
    own, foreign = (await on_replicate.submit()).progress.outputs
    assert own.fetch_reference == "/v1/files/x"
    assert await on_replicate.fetch(own.fetch_reference) == b"a file of the vendor"
    assert replicate.last("file").headers["Authorization"] == f"Bearer {KEY}"
    assert foreign.url == "http://127.0.0.1:9/v1/files/y"


@pytest.mark.parametrize(
    ("status", "document", "headers", "reason"),
    [
        (401, {"title": "Unauthenticated", "detail": f"bad {KEY}"}, {}, "PROVIDER_CREDENTIAL_REFUSED"),
        (
            402,
            {"title": "Insufficient credit", "detail": "You have insufficient credit"},
            {},
            "PROVIDER_BILLING",
        ),
        (
            404,
            {"title": "Not found", "detail": "The requested resource could not be found."},
            {},
            "MODEL_NOT_FOUND",
        ),
        (
            422,
            {"title": "Input validation failed", "detail": "- input: prompt is required"},
            {},
            "PROVIDER_REJECTED",
        ),
        (
            429,
            {"detail": "Request was throttled.", "status": 429},
            {"retry-after": "7"},
            "PROVIDER_RATE_LIMITED",
        ),
        (500, "<html>oops</html>", {}, "PROVIDER_FAILED"),
        (503, {"detail": "unavailable"}, {}, "PROVIDER_OVERLOADED"),
        (302, {}, {"location": "https://elsewhere.example/"}, "PROVIDER_FAILED"),
    ],
)
@pytest.mark.matrix(row=19, adapter="replicate")
@pytest.mark.matrix(row=21, adapter="replicate")
@pytest.mark.matrix(row=24, adapter="replicate")
async def test_refusals_are_classed_and_hold_no_key(
    replicate, on_replicate, status, document, headers, reason
):
    replicate.faults["create"].append(Refuse(status, document, headers))
    with pytest.raises(RpcError) as caught:
        await on_replicate.submit()
    assert replicate.injected[f"create_{status}"] == 1
    assert (caught.value.reason, caught.value.metadata["http_status"]) == (reason, str(status))
    assert KEY not in str(caught.value) + str(caught.value.metadata)
    assert caught.value.retry_after_s == (7 if status == 429 else None)
    assert caught.value.metadata.get("accepted") == ("unknown" if status == 500 else None)
    assert len(replicate.seen) == 1


@pytest.mark.matrix(row=46, adapter="replicate")
@pytest.mark.parametrize("fault", [CutAfter(), StallAfter()])
async def test_a_create_without_an_answer_is_in_doubt_and_found_again(replicate, on_replicate, fault):
    began = time.time()
    replicate.faults["create"].append(fault)
    with pytest.raises(RpcError) as caught:
        await on_replicate.submit(total_ms=1000)
    assert sum(replicate.injected.values()) == 1
    assert caught.value.reason in ("PROVIDER_FAILED", "PROVIDER_TIMEOUT")
    assert caught.value.metadata["accepted"] == "unknown"
    assert caught.value.metadata["retryable"] == "true"
    assert await on_replicate.find(since=began) == f"pred{0:022d}"
    assert replicate.count("create") == 1


async def test_what_never_left_is_in_no_doubt(replicate):
    settings = {"adapter": "replicate", "base_url": "http://127.0.0.1:9/v1", "api_key": KEY}
    async with running_media(rep=settings) as client:
        with pytest.raises(RpcError) as caught:
            await Maker(client, "rep", "owner/name").submit()
    assert caught.value.reason == "PROVIDER_FAILED"
    assert "accepted" not in caught.value.metadata


async def test_only_what_is_the_attempts_own_is_found(replicate, on_replicate):
    replicate.page = 1
    began = time.time()
    other = MediaInput(image=ImageInput(prompt="a house"))
    await on_replicate.submit(other)
    await on_replicate.submit(model="owner/another")
    twin = (await on_replicate.submit()).provider_job_id
    assert await on_replicate.find(since=began, known=[twin]) == ""
    mine = (await on_replicate.submit()).provider_job_id
    assert await on_replicate.find(since=began, known=[twin]) == mine
    assert await on_replicate.find(since=began + 3600) == ""
    replicate.predictions[mine]["status"] = "failed"
    assert await on_replicate.find(since=began, known=[twin]) == ""


@pytest.mark.matrix(row=44, adapter="replicate")
async def test_only_genuine_notifications_are_accepted(replicate, on_replicate):
    replicate.steps = ["starting", "succeeded"]
    job = (await on_replicate.submit()).provider_job_id
    await on_replicate.poll(job)
    headers, body = replicate.notification(job)
    read = await on_replicate.read(headers, body)
    assert (read.provider_job_id, read.event_id, read.progress.state) == (job, f"msg_{job}", "succeeded")
    assert [each.url for each in read.progress.outputs] == replicate.output
    # Delivered again it says the same under the same id: who asks knows it.
    assert await on_replicate.read(headers, body) == read
    old, old_body = replicate.notification(job, age_s=301)
    wrong, wrong_body = replicate.notification(job, secret="whsec_" + "d3Jvbmc=" * 3)
    forged = [
        (headers, body.replace(b"succeeded", b"processing")),
        (headers, body + b" "),
        (old, old_body),
        (headers | {"webhook-timestamp": str(int(time.time()) + 400)}, body),
        (wrong, wrong_body),
        ({name: value for name, value in headers.items() if name != "webhook-signature"}, body),
        (headers | {"webhook-signature": "v1"}, body),
        (headers | {"webhook-signature": "v1,%%%"}, body),
        (headers | {"webhook-signature": ""}, body),
        (headers | {"webhook-id": "msg_other"}, body),
        (headers, b"\xff\xfe"),
    ]
    for wrong_headers, wrong_document in forged:
        with pytest.raises(RpcError) as caught:
            await on_replicate.read(wrong_headers, wrong_document)
        assert caught.value.reason == "INVALID_CREDENTIAL", wrong_headers
    # However many are forged, the secret is asked for once and once again.
    assert replicate.count("webhook_secret") == 2


@pytest.mark.matrix(row=44, adapter="replicate")
async def test_a_rotated_secret_is_learned(replicate, on_replicate):
    job = (await on_replicate.submit()).provider_job_id
    await on_replicate.read(*replicate.notification(job))
    replicate.secret = "whsec_" + "c2Vjb25kIHNlY3JldCBvZiByZXBsaWNhdGU="
    read = await on_replicate.read(*replicate.notification(job))
    assert read.provider_job_id == job
    assert replicate.count("webhook_secret") == 2


@pytest.mark.matrix(row=47, adapter="replicate")
async def test_aborted_is_a_failure_that_costs_nothing(replicate, on_replicate):
    replicate.steps = ["starting", "aborted"]
    job = (await on_replicate.submit()).provider_job_id
    end = (await on_replicate.poll_to_end(job))[-1]
    assert (end.state, end.reason, end.unbilled, end.retryable) == ("failed", "PROVIDER_TIMEOUT", True, True)


@pytest.mark.matrix(row=47, adapter="replicate")
@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        ("NSFW content detected. Try running it again.", "CONTENT_FILTERED", False),
        ("The input or output was flagged as sensitive. (E005)", "CONTENT_FILTERED", False),
        ("CUDA out of memory. Tried to allocate 2 GiB", "PROVIDER_OVERLOADED", True),
        ("Prediction interrupted; please retry (code: PA)", "PROVIDER_OVERLOADED", True),
        ("'NoneType' object is not subscriptable", "PROVIDER_FAILED", False),
    ],
)
async def test_a_failed_prediction_says_why(replicate, on_replicate, error, reason, retryable):
    replicate.steps, replicate.error = ["starting", "failed"], error
    job = (await on_replicate.submit()).provider_job_id
    end = (await on_replicate.poll_to_end(job))[-1]
    assert (end.state, end.reason, end.retryable, end.unbilled) == ("failed", reason, retryable, False)
    assert end.usage.compute_seconds == 2.5


@pytest.mark.matrix(row=47, adapter="replicate")
@pytest.mark.matrix(row=40, adapter="replicate")
async def test_to_cancel_in_time_too_late_and_what_is_unknown(replicate, on_replicate):
    replicate.steps = ["starting", "processing", "processing"]
    job = (await on_replicate.submit()).provider_job_id
    assert await on_replicate.cancel(job) == "requested"
    end = await on_replicate.poll(job)
    assert (end.state, end.unbilled) == ("cancelled", True)
    replicate.steps = ["succeeded"]
    late = (await on_replicate.submit()).provider_job_id
    assert await on_replicate.cancel(late) == "already_ended"
    assert (await on_replicate.poll(late)).state == "succeeded"
    assert await on_replicate.cancel("nothing") == "unknown"
    assert await on_replicate.cancel("../../account") == "unknown"


async def test_a_state_that_is_new_is_not_the_end(replicate, on_replicate):
    replicate.steps = ["starting", "dreaming", "succeeded"]
    job = (await on_replicate.submit()).provider_job_id
    assert [each.state for each in await on_replicate.poll_to_end(job)] == ["running", "succeeded"]


async def test_a_forgotten_prediction_is_not_found(replicate, on_replicate):
    for job in ("gone", "../predictions", "a/b"):
        with pytest.raises(RpcError) as caught:
            await on_replicate.poll(job)
        assert caught.value.reason == "NOT_FOUND"
    assert replicate.count("get") == 1
