"""Automatic1111, against our own fake: nobody else's client judges it, its shapes are those of the source."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest
from omnihub.common.v1.media_pb2 import ImageEditInput, ImageInput, MediaFile, MediaInput, UpscaleInput
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from tests.integration.jobs.conftest import CALLER
from tests.integration.jobs.test_engine import begin, seen
from tests.support.fake_automatic1111 import LOGIN, picture
from tests.support.fake_vendor import CutAfter, Refuse, StallAfter

# What other processes may take from us meanwhile.
SLOW_MACHINE_S = 2.0
PICTURE = MediaFile(data=base64.b64decode(picture()), mime="image/png")


@pytest.mark.matrix(row=43, adapter="automatic1111")
async def test_a_picture_is_made_within_the_call_by_our_own_fake(a1111, on_a1111):
    given = MediaInput(
        image=ImageInput(prompt="a boat", count=2, width=24, height=16, seed=7, steps=9, guidance=6.5)
    )
    made = await on_a1111.submit(given)
    sent = a1111.last("txt2img").document
    assert sent == {
        "prompt": "a boat",
        "n_iter": 2,
        "width": 24,
        "height": 16,
        "seed": 7,
        "steps": 9,
        "cfg_scale": 6.5,
        "send_images": True,
        "save_images": False,
        "force_task_id": "eff_1",
        "override_settings": {"sd_model_checkpoint": "dreamshaper"},
    }
    facts = [each.facts for each in made.progress.outputs]
    # The grid that the server puts first is none of the pictures.
    assert [(each.mime, each.width, each.height, each.seed) for each in facts] == [
        ("image/png", 24, 16, 7),
        ("image/png", 24, 16, 8),
    ]
    assert (made.provider_job_id, made.progress.state, made.progress.usage.images) == ("", "succeeded", 2)
    assert made.progress.usage.megapixels == pytest.approx(2 * 24 * 16 / 1e6)


@pytest.mark.matrix(row=43, adapter="automatic1111")
@pytest.mark.matrix(row=49, adapter="automatic1111")
async def test_two_jobs_are_made_one_after_the_other_by_our_own_fake(a1111, on_a1111):
    a1111.gate.clear()
    first = asyncio.create_task(on_a1111.submit(effect_key="eff_a"))
    await a1111.until(lambda: a1111.current == "eff_a")
    second = asyncio.create_task(on_a1111.submit(effect_key="eff_b"))
    progress = await on_a1111.poll("eff_a")
    assert (progress.state, progress.fraction) == ("running", 0.25)
    # The server has not even heard of the second: it waits here.
    with pytest.raises(RpcError) as caught:
        await on_a1111.poll("eff_b")
    assert caught.value.reason == "NOT_FOUND"
    assert a1111.count("txt2img") == 1
    a1111.gate.set()
    assert [(await each).progress.state for each in (first, second)] == ["succeeded"] * 2
    assert (a1111.most_at_once, a1111.completed) == (1, ["eff_a", "eff_b"])
    assert (await on_a1111.poll("eff_a")).fraction == 1.0


async def test_a_task_of_somebody_else_is_waited_for_and_shown_as_queued(a1111, on_a1111):
    await a1111.lock.acquire()
    mine = asyncio.create_task(on_a1111.submit())
    await a1111.until(lambda: a1111.waiting == ["eff_1"])
    assert (await on_a1111.poll("eff_1")).state == "queued"
    assert await on_a1111.cancel("eff_1") == "unknown"
    a1111.lock.release()
    assert (await mine).progress.state == "succeeded"
    assert a1111.interrupts == 0


async def test_parameters_are_written_and_each_has_its_receipt(a1111, on_a1111):
    given = MediaInput(
        image=ImageInput(
            prompt="a boat",
            negative_prompt="fog",
            init_image=PICTURE,
            strength=0.4,
            style="oil",
            format="png",
            quality="high",
            loras=[{"name": "ink", "weight": 0.8}],
        ),
        extension_json='{"sampler_name": "Euler a", "override_settings": {"CLIP_stop_at_last_layers": 2}}',
    )
    made = await on_a1111.submit(given)
    sent = a1111.last("img2img").document
    assert sent["prompt"] == "a boat <lora:ink:0.8>"
    assert (sent["init_images"], sent["denoising_strength"]) == ([picture()], 0.4)
    assert (sent["styles"], sent["sampler_name"]) == (["oil"], "Euler a")
    assert sent["override_settings"] == {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "dreamshaper"}
    dropped = [entry.name for entry in made.receipt if entry.outcome == "dropped"]
    assert (dropped, len(made.receipt)) == (["quality"], 10)
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit(given, strict=True)
    assert (caught.value.reason, a1111.count("img2img")) == ("PARAMETER_UNSUPPORTED", 1)
    await on_a1111.submit(MediaInput(image=ImageInput(prompt="x")), model="default")
    assert "override_settings" not in a1111.last("txt2img").document


async def test_edits_and_upscaling(a1111, on_a1111):
    edit = MediaInput(image_edit=ImageEditInput(prompt="x", images=[PICTURE], mask=PICTURE))
    assert (await on_a1111.submit(edit)).progress.usage.images == 1
    sent = a1111.last("img2img").document
    assert (sent["init_images"], sent["mask"]) == ([picture()], picture())
    larger = await on_a1111.submit(
        MediaInput(upscale=UpscaleInput(file=PICTURE, factor=4)), model="ESRGAN_4x"
    )
    assert a1111.last("upscale").document == {
        "image": picture(),
        "upscaling_resize": 4,
        "resize_mode": 0,
        "upscaler_1": "ESRGAN_4x",
    }
    assert larger.progress.outputs[0].facts.width == 32
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit(MediaInput(upscale=UpscaleInput(file=MediaFile(url="https://x.example/a"))))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"


@pytest.mark.parametrize(
    ("status", "document", "reason"),
    [
        (401, {"detail": "Incorrect username or password"}, "PROVIDER_CREDENTIAL_REFUSED"),
        (
            404,
            {"error": "HTTPException", "detail": "Sampler not found", "body": "", "errors": ""},
            "MODEL_NOT_FOUND",
        ),
        (422, {"detail": [{"loc": ["body", "steps"], "msg": "not an integer"}]}, "PROVIDER_REJECTED"),
        (
            500,
            {"error": "OutOfMemoryError", "detail": "", "errors": "CUDA out of memory"},
            "PROVIDER_OVERLOADED",
        ),
        (500, {"error": "RuntimeError", "detail": "", "errors": f"oops {LOGIN}"}, "PROVIDER_FAILED"),
        (502, "<html>proxy</html>", "PROVIDER_FAILED"),
    ],
)
@pytest.mark.matrix(row=19, adapter="automatic1111")
@pytest.mark.matrix(row=24, adapter="automatic1111")
async def test_refusals_are_classed_and_hold_no_login(a1111, on_a1111, status, document, reason):
    a1111.faults["txt2img"].append(Refuse(status, document))
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit()
    assert a1111.injected[f"txt2img_{status}"] == 1
    assert caught.value.reason == reason
    text = str(caught.value) + str(caught.value.metadata)
    assert not any(secret in text for secret in (LOGIN, LOGIN.partition(":")[2]))


@pytest.mark.parametrize(
    "answer", [{"images": []}, {"images": ["%%%"]}, {"images": ["bm8gcGljdHVyZQ=="]}, {"images": None}]
)
async def test_what_is_no_picture_is_no_success(a1111, on_a1111, answer):
    a1111.answer = answer
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit()
    assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_an_info_that_cannot_be_read_costs_only_the_seed(a1111, on_a1111):
    a1111.answer = {"info": "{not json"}
    made = await on_a1111.submit()
    assert (made.progress.state, made.progress.outputs[0].facts.HasField("seed")) == ("succeeded", False)


@pytest.mark.matrix(row=46, adapter="automatic1111")
@pytest.mark.parametrize("fault", [CutAfter(), StallAfter()])
async def test_an_answer_that_never_comes_is_in_doubt_and_not_repeated(a1111, on_a1111, fault):
    a1111.faults["txt2img"].append(fault)
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit(total_ms=1000)
    assert sum(a1111.injected.values()) == 1
    assert (caught.value.metadata["accepted"], caught.value.metadata["retryable"]) == ("unknown", "false")
    assert a1111.count("txt2img") == 1
    # The turn is free again.
    assert (await on_a1111.submit(effect_key="eff_2")).progress.state == "succeeded"


@pytest.mark.matrix(row=47, adapter="automatic1111")
async def test_who_takes_too_long_is_interrupted_and_only_ours(a1111, on_a1111):
    a1111.gate.clear()
    with pytest.raises(RpcError) as caught:
        await on_a1111.submit(total_ms=1000)
    assert caught.value.reason == "PROVIDER_TIMEOUT"
    a1111.current = "somebody-else"
    assert await on_a1111.cancel("eff_1") in ("unknown", "already_ended")
    assert a1111.interrupts <= 1


@pytest.mark.matrix(row=47, adapter="automatic1111")
async def test_a_running_task_is_interrupted_and_one_that_ended_is_not(a1111, on_a1111):
    a1111.gate.clear()
    mine = asyncio.create_task(on_a1111.submit())
    await a1111.until(lambda: a1111.current == "eff_1")
    assert await on_a1111.cancel("eff_1") == "requested"
    assert a1111.interrupts == 1
    # What an interrupted server had made so far comes as the answer.
    assert (await mine).progress.state == "succeeded"
    assert await on_a1111.cancel("eff_1") == "already_ended"
    assert await on_a1111.cancel("nothing") == "unknown"
    assert a1111.interrupts == 1


@pytest.mark.matrix(row=40, adapter="automatic1111")
@pytest.mark.parametrize("waiting", [False, True], ids=["running", "waits for its turn"])
async def test_a_cancelled_job_is_stopped_within_a_second_and_costs_nothing(engine, a1111, on_a1111, waiting):
    on_a1111.serve(engine.router, immediate=True, cancels=True)
    a1111.gate.clear()
    other = asyncio.create_task(on_a1111.submit(effect_key="other")) if waiting else None
    if waiting:
        await a1111.until(lambda: a1111.current == "other")
    job = await begin(engine)
    (message,) = await engine.outbox.take(engine.now())
    working = asyncio.create_task(engine.worker.work(message.subject_id))
    if not waiting:
        await a1111.until(lambda: bool(a1111.current))
    while (await seen(engine, job.job_id)).state != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    before = time.monotonic()
    cancelled = await engine.server.cancel_job(pb.CancelJobRequest(job_id=job.job_id), CALLER)
    assert cancelled.job.state == "cancel_requested"
    await working
    assert time.monotonic() - before < 1 + SLOW_MACHINE_S
    # Somebody else's task is not interrupted, and ours has never been sent when it had no turn yet.
    assert (a1111.interrupts, a1111.count("txt2img")) == ((0, 1) if waiting else (1, 1))
    a1111.gate.set()
    if other is not None:
        assert (await other).progress.state == "succeeded"
    await engine.work_off()
    ended = await seen(engine, job.job_id)
    assert (ended.state, ended.cost, len(ended.outputs)) == ("cancelled", "0", 0)
    assert not engine.billing.charges
    assert engine.billing.released == list(engine.billing.holds)
    # The server is free for the next one.
    assert (await on_a1111.submit(effect_key="next")).progress.state == "succeeded"
    assert a1111.at_once == 0
