"""ComfyUI, against our own fake: no other client judges it, its shapes are those of the source."""

from __future__ import annotations

import asyncio

import pytest
from omnihub.common.v1.media_pb2 import ImageEditInput, ImageInput, MediaFile, MediaInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.common.rpc import RpcError
from services.common.service import StartupError
from tests.support.fake_comfyui import PNG, graphs
from tests.support.fake_vendor import CutAfter, Refuse, StallAfter
from tests.support.media import Maker, running_media


async def fraction(on_comfy, job: str, wanted: float) -> None:
    """Ask until the adapter has heard of this much."""
    async with asyncio.timeout(60):
        while (await on_comfy.poll(job)).fraction != pytest.approx(wanted):
            pass


@pytest.mark.matrix(row=43, adapter="comfyui")
async def test_a_graph_goes_through_its_states_by_our_own_fake(comfy, on_comfy):
    job = (await on_comfy.submit()).provider_job_id
    behind = (await on_comfy.submit(effect_key="eff_2")).provider_job_id
    assert [(await on_comfy.poll(each)).queue_position for each in (job, behind)] == [0, 1]
    await asyncio.wait_for(comfy.connected.wait(), 20)
    await comfy.start(job)
    assert (await on_comfy.poll(job)).state == "running"
    await comfy.say("execution_cached", prompt_id=job, nodes=["4"])
    await comfy.say("executing", prompt_id=job, node="3")
    await comfy.say("progress", value=10, max=20)  # Older servers name no prompt here.
    await fraction(on_comfy, job, 1.5 / 4)
    await comfy.say("executing", prompt_id=job, node="9")
    await fraction(on_comfy, job, 2 / 4)
    await comfy.finish(job)
    end = await on_comfy.poll(job)
    (output,) = end.outputs
    assert (end.state, end.usage.images, end.usage.compute_seconds) == ("succeeded", 1, 2.5)
    assert await on_comfy.fetch(output.fetch_reference) == PNG
    assert dict(comfy.last("view").query) == {
        "filename": "out_00001_.png",
        "subfolder": "sub/day",
        "type": "output",
    }
    assert await on_comfy.poll(job) == end


async def test_placeholders_are_filled_and_each_parameter_has_its_receipt(comfy, on_comfy):
    given = MediaInput(image=ImageInput(prompt='a "boat" {{steps}}', steps=8, seed=0, style="oil"))
    begun = await on_comfy.submit(given)
    graph = comfy.last("prompt").document["prompt"]
    assert graph["3"]["inputs"] == {"seed": 0, "steps": 8, "cfg": 7.5, "model": ["4", 0]}
    # What a caller writes is text, and never read for placeholders.
    assert graph["6"]["inputs"]["text"] == 'a "boat" {{steps}}, masterpiece'
    assert graph["9"]["inputs"]["filename_prefix"] == "omnihub/eff_1"
    outcomes = {entry.name: entry.outcome for entry in begun.receipt}
    assert outcomes == {"prompt": "forwarded", "steps": "forwarded", "seed": "forwarded", "style": "dropped"}
    with pytest.raises(RpcError) as caught:
        await on_comfy.submit(given, strict=True)
    assert (caught.value.reason, comfy.count("prompt")) == ("PARAMETER_UNSUPPORTED", 1)
    with pytest.raises(RpcError, match="sdxl needs it") as caught:
        await on_comfy.submit(MediaInput(image=ImageInput(steps=8)))
    assert caught.value.violations[0].field == "input.image.prompt"
    # Without a seed each effect has its own, or the server would answer from its cache.
    seeds = set()
    for effect in ("eff_a", "eff_b", "eff_a"):
        await on_comfy.submit(effect_key=effect)
        seeds.add(comfy.last("prompt").document["prompt"]["3"]["inputs"]["seed"])
    assert len(seeds) == 2


async def test_files_are_uploaded_and_addresses_refused(comfy, on_comfy):
    on_comfy.model = "edit"
    given = MediaInput(image_edit=ImageEditInput(images=[MediaFile(data=b"picture", mime="image/png")]))
    begun = await on_comfy.submit(given)
    ((name, data),) = comfy.uploads.items()
    graph = comfy.last("prompt").document["prompt"]
    assert (data, graph["1"]["inputs"]["image"]) == (b"picture", name)
    assert graph["2"]["inputs"]["filename_prefix"] == "none"
    assert begun.receipt[0].outcome == "translated"
    for images in ([MediaFile(url="https://x.example/a.png")], [MediaFile(data=b"x")] * 2):
        with pytest.raises(RpcError) as caught:
            await on_comfy.submit(MediaInput(image_edit=ImageEditInput(images=images)))
        assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert comfy.count("prompt") == 1


async def test_models_are_the_graphs_that_are_configured(on_comfy):
    for model, kind in (("nothing", "MODEL_NOT_FOUND"), ("edit", "PARAMETER_UNSUPPORTED")):
        with pytest.raises(RpcError) as caught:
            await on_comfy.submit(model=model)
        assert caught.value.reason == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ('{"nodes": [], "links": []}', "export it in API format"),
        ('{"1": {"inputs": {}}}', "class_type"),
        ("[]", "class_type"),
        (None, "cannot be read"),
    ],
)
async def test_a_graph_that_is_none_stops_the_start(tmp_path, text, message):
    file = tmp_path / "graph.json"
    if text is not None:
        file.write_text(text)
    settings = {
        "adapter": "comfyui",
        "base_url": "http://127.0.0.1:9",
        "workflows": {"m": {"file": str(file)}},
    }
    with pytest.raises(StartupError, match=message):
        async with running_media(comfy=settings):
            pass
    with pytest.raises(StartupError, match="name at least one model"):
        async with running_media(comfy={"adapter": "comfyui", "base_url": "http://127.0.0.1:9"}):
            pass


async def test_a_graph_that_the_server_refuses_names_the_node(comfy, on_comfy):
    with pytest.raises(RpcError, match="Value not in list: ckpt_name") as caught:
        await on_comfy.submit(model="broken")
    assert caught.value.reason == "PROVIDER_REJECTED"


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "PROVIDER_CREDENTIAL_REFUSED"), (429, "PROVIDER_RATE_LIMITED"), (500, "PROVIDER_FAILED")],
)
@pytest.mark.matrix(row=19, adapter="comfyui")
@pytest.mark.matrix(row=21, adapter="comfyui")
@pytest.mark.matrix(row=24, adapter="comfyui")
async def test_refusals_of_a_proxy_in_front_are_classed(comfy, on_comfy, status, reason):
    comfy.faults["prompt"].append(Refuse(status, "<html>proxy</html>"))
    with pytest.raises(RpcError) as caught:
        await on_comfy.submit()
    assert comfy.injected[f"prompt_{status}"] == 1
    assert caught.value.reason == reason


@pytest.mark.matrix(row=46, adapter="comfyui")
@pytest.mark.parametrize("fault", [CutAfter(), StallAfter()])
async def test_a_prompt_without_an_answer_is_found_again(comfy, on_comfy, fault):
    comfy.faults["prompt"].append(fault)
    with pytest.raises(RpcError) as caught:
        await on_comfy.submit(total_ms=1000)
    assert sum(comfy.injected.values()) == 1
    assert caught.value.metadata["accepted"] == "unknown"
    job = comfy.pending[0][1]
    assert await on_comfy.find("eff_1") == job
    await comfy.start(job)
    assert await on_comfy.find("eff_1") == job
    await comfy.finish(job)
    assert await on_comfy.find("eff_1") == job
    assert await on_comfy.find("eff_2") == ""


@pytest.mark.matrix(row=49, adapter="comfyui")
async def test_a_lost_socket_loses_nothing(comfy, on_comfy):
    job = (await on_comfy.submit()).provider_job_id
    await asyncio.wait_for(comfy.connected.wait(), 20)
    await comfy.start(job)
    await comfy.lose_sockets()
    assert comfy.injected["socket_lost"] == 1
    # The next look opens it again, and goes by queue and history meanwhile.
    async with asyncio.timeout(60):
        while not comfy.connected.is_set():
            assert (await on_comfy.poll(job)).state == "running"
    await comfy.say("progress", prompt_id=job, value=1, max=2)
    await fraction(on_comfy, job, 0.5 / 4)
    await comfy.lose_sockets()
    await comfy.finish(job)
    assert (await on_comfy.poll(job)).state == "succeeded"


@pytest.mark.matrix(row=49, adapter="comfyui")
async def test_a_server_without_a_socket_works_all_the_same(comfy, tmp_path):
    settings = {"adapter": "comfyui", "base_url": f"{comfy.url}/api", "workflows": graphs(tmp_path)}
    async with running_media(comfy=settings) as client:
        maker = Maker(client, "comfy", "sdxl")
        job = (await maker.submit()).provider_job_id
        await comfy.start(job)
        assert (await maker.poll(job)).state == "running"
        await comfy.finish(job)
        assert (await maker.poll(job)).state == "succeeded"
    assert not comfy.sockets


@pytest.mark.matrix(row=49, adapter="comfyui")
async def test_a_cached_run_has_no_events_and_ends_by_the_history(comfy, on_comfy):
    job = (await on_comfy.submit()).provider_job_id
    await comfy.finish(job, messages=[["execution_cached", {"nodes": ["3", "4", "6", "9"]}]])
    end = await on_comfy.poll(job)
    assert (end.state, len(end.outputs)) == ("succeeded", 1)
    bare = (await on_comfy.submit()).provider_job_id
    await comfy.finish(bare, outputs={})
    end = await on_comfy.poll(bare)
    assert (end.state, end.reason, end.unbilled) == ("failed", "PROVIDER_FAILED", True)
    assert "{{job}}" in end.message


@pytest.mark.parametrize(
    ("began", "ended", "seconds"),
    [
        (1000, 3500, 2.5),
        (1000, 1000 + 7 * 86_400_000, 604_800),
        (3500, 1000, 0),
        ("then", None, 0),
        (1000, 1001 + 7 * 86_400_000, None),
        (0, 1e300, None),
        (-1, 10**400, None),
    ],
)
async def test_a_time_that_cannot_be_is_not_paid(comfy, on_comfy, began, ended, seconds):
    job = (await on_comfy.submit()).provider_job_id
    times = [["execution_start", {"timestamp": began}], ["execution_success", {"timestamp": ended}]]
    await comfy.finish(job, messages=times)
    end = await on_comfy.poll(job)
    if seconds is not None:
        assert (end.state, end.usage.compute_seconds) == ("succeeded", seconds)
        return
    assert (end.state, end.reason, end.retryable, end.unbilled) == (
        "failed",
        "PROVIDER_PROTOCOL",
        False,
        True,
    )
    assert "longer than 604800 s" in end.message


@pytest.mark.matrix(row=47, adapter="comfyui")
async def test_errors_of_a_run(comfy, on_comfy):
    for kind, text, reason, retryable in (
        ("torch.OutOfMemoryError", "Allocation on device", "PROVIDER_OVERLOADED", True),
        ("ValueError", "bad thing", "PROVIDER_FAILED", False),
    ):
        job = (await on_comfy.submit()).provider_job_id
        error = {"exception_type": kind, "exception_message": text, "node_type": "KSampler"}
        await comfy.finish(job, messages=[["execution_error", error]], status="error")
        end = await on_comfy.poll(job)
        assert (end.state, end.reason, end.retryable) == ("failed", reason, retryable)
        assert end.message == f"comfy: KSampler: {text}"


@pytest.mark.matrix(row=47, adapter="comfyui")
@pytest.mark.matrix(row=40, adapter="comfyui")
async def test_only_our_own_prompt_is_cancelled(comfy, on_comfy):
    job = (await on_comfy.submit()).provider_job_id
    other = (await on_comfy.submit(effect_key="eff_2")).provider_job_id
    await comfy.start(other)
    assert await on_comfy.cancel(job) == "requested"
    assert (comfy.count("interrupt"), [row[1] for row in comfy.running]) == (0, [other])
    end = await on_comfy.poll(job)
    assert (end.state, end.unbilled) == ("cancelled", True)
    assert await on_comfy.cancel(other) == "requested"
    assert comfy.interrupted == [other]
    assert (await on_comfy.poll(other)).state == "cancelled"
    assert await on_comfy.cancel(other) == "already_ended"
    assert await on_comfy.cancel("nothing") == "unknown"
    assert comfy.count("interrupt") == 1


@pytest.mark.matrix(row=48, adapter="comfyui")
@pytest.mark.parametrize(
    "file",
    [
        {"filename": "../../etc/passwd", "subfolder": "", "type": "output"},
        {"filename": "a.png", "subfolder": "../..", "type": "output"},
        {"filename": "a.png", "subfolder": "/etc", "type": "output"},
        {"filename": "a\\b.png", "subfolder": "", "type": "output"},
        {"filename": "C:a.png", "subfolder": "", "type": "output"},
        {"filename": "a.png\0", "subfolder": "", "type": "output"},
        {"filename": "a.png", "subfolder": "", "type": "models"},
        {"filename": "", "subfolder": "", "type": "output"},
    ],
)
async def test_a_path_that_leads_out_is_refused(comfy, on_comfy, file):
    job = (await on_comfy.submit()).provider_job_id
    await comfy.finish(job, outputs={"9": {"images": [file]}})
    with pytest.raises(RpcError, match="leads out") as caught:
        await on_comfy.poll(job)
    assert caught.value.reason == "PROVIDER_PROTOCOL"
    assert comfy.count("view") == 0


@pytest.mark.matrix(row=48, adapter="comfyui")
async def test_references_lead_to_the_server_alone(comfy, on_comfy):
    for reference in (
        "//127.0.0.1:9/view",
        "http://127.0.0.1:9/view",
        "@127.0.0.1:9/",
        "/view?filename=gone",
    ):
        with pytest.raises(RpcError):
            await on_comfy.fetch(reference)
    comfy.faults["view"].append(Refuse(302, {}, {"location": "http://127.0.0.1:9/x"}))
    with pytest.raises(RpcError) as caught:
        await on_comfy.fetch("/view?filename=out_00001_.png&type=output")
    assert comfy.injected["view_302"] == 1
    assert caught.value.reason == "PROVIDER_FAILED"


async def test_a_forgotten_prompt_is_not_found(on_comfy):
    with pytest.raises(RpcError) as caught:
        await on_comfy.poll("gone")
    assert caught.value.reason == "NOT_FOUND"


async def test_capabilities_are_those_of_the_graphs(on_comfy):
    answer = await on_comfy.client.get_media_capabilities(pb.GetMediaCapabilitiesRequest(), on_comfy._call)
    told = {each.provider: each for each in answer.providers}
    assert (list(told["comfy"].kinds), told["comfy"].finds) == (["image", "image_edit"], True)
    assert sorted(told) == ["comfy", "local"]
