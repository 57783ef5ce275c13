"""Videos through the official client."""

from __future__ import annotations

import httpx
import openai
import pytest
from omnihub.workflow.v1 import job_service_pb2 as pb

from services.common.rpc import RpcError
from tests.support.media_facade import COST, VIDEO, MediaFacade, a_picture

# The client says that its vendor ends its own service; the path stays.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


async def test_a_video_from_prompt_to_file(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.immediate, facade.maker.polls = False, 2
    video = await client.videos.create(
        model="fake0/m", prompt="a boat", seconds="4", size="1280x720", input_reference=("a.png", a_picture())
    )
    assert (video.object, video.status, video.prompt, video.seconds) == ("video", "queued", "a boat", "4")
    assert video.size == "1280x720"
    asked = facade.maker.plans[0].input.video
    assert (asked.duration_s, asked.width, asked.first_frame.mime) == (4, 1280, "image/png")
    # It is planned by its id, and made from its content.
    assert asked.first_frame.file_id.startswith("file_")
    ended = await client.videos.poll(video.id, poll_interval_ms=200)
    made_from = facade.maker.attempts[0].input.video
    assert (made_from.duration_s, made_from.width, made_from.first_frame.data) == (4, 1280, a_picture())
    assert (ended.status, ended.progress, ended.model) == ("completed", 100, "fake0/m")
    assert ended.completed_at is not None
    assert ended.completed_at >= ended.created_at
    content = await client.videos.download_content(video.id)
    assert content.read() == VIDEO
    assert content.response.headers["content-type"] == "video/mp4"
    raw = await client.videos.with_raw_response.retrieve(video.id)
    assert raw.headers["x-omnihub-cost"] == COST
    assert raw.headers["x-omnihub-job-id"] == video.id


async def test_a_remix_a_list_and_a_removal(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.immediate, facade.maker.polls = False, 1
    first = await client.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    second = await client.videos.remix(first.id, prompt="at night")
    assert second.remixed_from_video_id == first.id
    assert facade.maker.plans[-1].model == "fake0/m"
    await client.videos.poll(second.id, poll_interval_ms=200)
    # The provider knows the first one by its own id.
    assert facade.maker.attempts[1].input.video.remix_of_job_id == "pj-0"
    await client.images.generate(model="fake0/m", prompt="no video")
    assert [video.id async for video in client.videos.list(limit=1)] == [second.id, first.id]
    deleted = await client.videos.delete(first.id)
    assert deleted.deleted
    assert deleted.id == first.id
    with pytest.raises(openai.NotFoundError):
        await client.videos.retrieve(first.id)


async def test_a_video_that_is_being_made_is_stopped_when_it_is_deleted(
    client: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    facade.maker.immediate, facade.maker.polls = False, 1000
    video = await client.videos.create(model="fake0/m", prompt="a boat")
    await facade.maker.entered.wait()
    for call in (client.videos.download_content(video.id), client.videos.remix(video.id, prompt="x")):
        with pytest.raises(openai.APIStatusError, match="needs one that is completed"):
            await call
    assert (await client.videos.delete(video.id)).deleted
    assert not facade.till.charges


async def test_a_video_that_fails(client: openai.AsyncOpenAI, facade: MediaFacade) -> None:
    facade.maker.failures = [RpcError("INVALID_ARGUMENT", "input.video.duration_s: at most 8")]
    video = await client.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    assert video.status == "failed"
    assert video.error is not None
    assert "at most 8" in video.error.message


async def test_only_a_finished_video_of_ones_own_can_be_changed(
    client: openai.AsyncOpenAI, stranger: openai.AsyncOpenAI, facade: MediaFacade
) -> None:
    at_once = await client.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    picture = await client.images.with_raw_response.generate(model="fake0/m", prompt="a boat")
    facade.maker.immediate, facade.maker.polls = False, 1
    theirs = await stranger.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    begun = len(facade.maker.attempts)
    for job_id, words in (
        (at_once.id, "keeps nothing that can be changed"),
        (picture.headers["x-omnihub-job-id"], "is no finished video, but image, succeeded"),
        (theirs.id, f"there is no job {theirs.id}"),
        # How the provider calls it, which everybody could guess.
        ("pj-0", "there is no job pj-0"),
    ):
        request = pb.CreateJobRequest(model="fake0/m")
        request.input.video.prompt, request.input.video.remix_of_job_id = "at night", job_id
        with pytest.raises(RpcError, match=words) as refused:
            await facade.jobs.create_job(request, facade.caller)
        assert refused.value.violations[0].field == "input.video.remix_of_job_id"
    assert len(facade.maker.attempts) == begun


async def test_other_keys_and_other_kinds_find_nothing(
    client: openai.AsyncOpenAI, stranger: openai.AsyncOpenAI
) -> None:
    video = await client.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    image = await client.images.with_raw_response.generate(model="fake0/m", prompt="a boat")
    for asking in (
        stranger.videos.retrieve(video.id),
        stranger.videos.download_content(video.id),
        stranger.videos.delete(video.id),
        stranger.videos.remix(video.id, prompt="mine"),
        client.videos.retrieve(image.headers["x-omnihub-job-id"]),
        client.videos.retrieve("job_none"),
    ):
        with pytest.raises(openai.NotFoundError):
            await asking
    assert [each.id async for each in stranger.videos.list()] == []


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"seconds": "long"}, "seconds"),
        ({"size": "big"}, "size"),
        ({"input_reference": {"nothing": 1}}, "input_reference"),
    ],
)
async def test_bad_videos_cost_nothing(
    http: httpx.AsyncClient, facade: MediaFacade, wrong: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/videos", json={"model": "m", "prompt": "a boat", **wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not facade.till.holds


async def test_lists_and_downloads_refuse_what_they_do_not_know(
    http: httpx.AsyncClient, client: openai.AsyncOpenAI
) -> None:
    video = await client.videos.create_and_poll(model="fake0/m", prompt="a boat", poll_interval_ms=200)
    for path, param in (
        ("/v1/videos?limit=0", "limit"),
        ("/v1/videos?order=asc", "order"),
        (f"/v1/videos/{video.id}/content?variant=gif", "variant"),
        (f"/v1/videos/{video.id}/content?variant=thumbnail", "variant"),
    ):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert (await http.get("/v1/videos?after=job_none")).status_code == 404
