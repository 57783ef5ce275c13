"""Jobs through the public port: REST, live, native gRPC, OpenAI's shapes and the command line."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from types import ModuleType
from typing import Any

import grpc
import httpx
import openai
import pytest
from omnihub.workflow.v1 import job_service_pb2 as pb
from PIL import Image

from tests.support.stubs import generated_stubs
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant

IMAGE = {"image": {"prompt": PROMPT, "width": 64, "height": 32}}


@pytest.fixture(scope="session")
def job_stubs(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return generated_stubs(tmp_path_factory.mktemp("stubs"), "omnihub/workflow/v1/job_service.proto")


@pytest.fixture
def jobs(suite: Suite, job_stubs: ModuleType) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{suite.port}") as channel:
        yield job_stubs.JobServiceStub(channel)


def events_of(answer: httpx.Response) -> list[Any]:
    return [json.loads(line[5:]) for line in answer.iter_lines() if line.startswith("data:")]


def begun(rest: httpx.Client, **more: Any) -> Any:
    answer = rest.post("/api/generate", json={"model": "local/default", "input": IMAGE, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["job"]


def test_a_job_from_submission_to_removal(rest: httpx.Client) -> None:
    job = begun(rest)
    path = f"/api/generations/{job['jobId']}"
    with rest.stream("GET", f"{path}:watch") as live:
        assert live.headers["content-type"].startswith("text/event-stream")
        events = events_of(live)
    ended = events[-1]["end"]
    assert (ended["state"], ended["modelUsed"]) == ("succeeded", "local/default")
    assert ended["outputs"][0]["width"] == 64
    assert rest.get(path).json()["job"]["state"] == "succeeded"
    listed = rest.get("/api/generations", params={"kind": "image", "pageSize": 1}).json()
    assert [each["jobId"] for each in listed["jobs"]] == [job["jobId"]]
    assert rest.post(f"{path}:cancel", json={}).json()["job"]["state"] == "succeeded"
    assert rest.delete(path).status_code == 200
    assert rest.get(path).status_code == 404


def test_a_fast_one_answers_in_the_call_and_once_per_key(rest: httpx.Client) -> None:
    first = begun(rest, waitS=20, idempotencyKey="e2e-boat")
    again = begun(rest, waitS=20, idempotencyKey="e2e-boat")
    assert first["state"] == "succeeded"
    assert again["jobId"] == first["jobId"]
    other = rest.post("/api/generate", json={"model": "auto", "input": IMAGE, "idempotencyKey": "e2e-boat"})
    assert (other.status_code, other.json()["error"]["reason"]) == (409, "IDEMPOTENCY_KEY_REUSED")


def test_others_find_nothing(rest: httpx.Client, tenant: Tenant) -> None:
    path = f"/api/generations/{begun(rest, waitS=20)['jobId']}"
    assert tenant.request("GET", path).status_code == 404
    assert tenant.request("POST", f"{path}:cancel", json={}).status_code == 404
    assert tenant.request("DELETE", path).status_code == 404
    assert tenant.get("/api/generations") == {"jobs": [], "nextPageToken": ""}
    watched = tenant.request("GET", f"{path}:watch")
    assert watched.status_code == 404, watched.text


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": {}}, 400, "say what to make"),
        ({}, 400, "input"),
        ({"input": {"image": {"prompt": "x", "width": "wide"}}}, 400, "wid"),
        ({"model": "nope", "input": IMAGE}, 404, "nope"),
        ({"model": "local/default", "input": {"video": {"prompt": "x"}}}, 0, "video"),
        ({"input": IMAGE, "priority": "now"}, 400, "priority"),
        ({"input": IMAGE, "waitS": 61}, 400, "wait_s"),
    ],
)
def test_bad_input_is_named_and_costs_nothing(tenant: Tenant, body: Any, status: int, words: str) -> None:
    answer = tenant.request("POST", "/api/generate", json=body)
    assert answer.status_code == status or (not status and 400 <= answer.status_code < 500), answer.text
    assert words in answer.json()["error"]["message"]
    assert tenant.get("/api/generations")["jobs"] == []


@pytest.mark.parametrize("wrong", [{"width": 50_000, "height": 8}, {"format": "gif"}, {"count": 11}])
def test_what_the_provider_refuses_fails_the_job_and_costs_nothing(tenant: Tenant, wrong: Any) -> None:
    body = {"model": "local/default", "waitS": 20, "input": {"image": {"prompt": "x", **wrong}}}
    answer = tenant.request("POST", "/api/generate", json=body)
    if answer.status_code == 200:
        job = answer.json()["job"]
        assert job["state"] == "failed"
        assert job["error"]["reason"] == "INVALID_ARGUMENT"
        assert Decimal(job["cost"]) == 0
    else:
        assert answer.status_code == 400, answer.text


def test_a_voice_that_nobody_has(rest: httpx.Client) -> None:
    body = {"model": "local/default", "text": "Hello", "voice": "nobody-speaks-so", "waitS": 20}
    answer = rest.post("/api/v1/generations/voice", json=body)
    failed = answer.status_code == 200 and answer.json()["job"]["state"] == "failed"
    assert failed or 400 <= answer.status_code < 500, answer.text
    empty = rest.post("/api/v1/generations/voice", json={"voice": "en"})
    assert (empty.status_code, "text" in empty.json()["error"]["message"]) == (400, True)


def test_native_calls_with_streamed_progress(jobs: Any, suite: Suite, tenant: Tenant) -> None:
    own = [("authorization", f"Bearer {suite.key}")]
    request = pb.CreateJobRequest(model="local/default")
    request.input.image.prompt = PROMPT
    job = jobs.CreateJob(request, metadata=own, timeout=20).job
    seen = list(jobs.WatchJob(pb.WatchJobRequest(job_id=job.job_id), metadata=own, timeout=20))
    assert seen[-1].end.state == "succeeded"
    versions = [event.job.version or event.end.version for event in seen]
    assert versions == sorted(versions)
    stranger = [("authorization", f"Bearer {tenant.key}")]
    with pytest.raises(grpc.RpcError) as refused:
        list(jobs.WatchJob(pb.WatchJobRequest(job_id=job.job_id), metadata=stranger, timeout=20))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_openai_images(client: openai.OpenAI, tenant_client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(model="local/default", prompt=PROMPT, n=2, size="64x32")
    answer = raw.parse()
    assert answer.data is not None
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))) as picture:
        assert picture.size == (64, 32)
    assert len(answer.data) == 2
    assert raw.headers["x-omnihub-provider"] == "local"
    assert raw.headers["x-omnihub-job-id"].startswith("job_")
    linked = client.images.generate(model="local/default", prompt=PROMPT, response_format="url")
    assert linked.data is not None
    assert "/files/file_" in (linked.data[0].url or "")
    with pytest.raises(openai.BadRequestError) as refused:
        tenant_client.images.generate(model="local/default", prompt="x", size="60000x8")
    assert refused.value.param == "size"
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="nope", prompt="x")


def test_openai_paths_that_are_not_there_for_a_method_or_a_stranger(
    rest: httpx.Client, client: openai.OpenAI
) -> None:
    assert rest.get("/v1/images/generations").status_code == 405
    assert rest.patch("/v1/videos/job_1").status_code == 405
    assert httpx.post(rest.base_url.join("/v1/audio/speech"), json={}).status_code == 401
    job = begun(rest, waitS=20)
    answer = rest.get(f"/v1/videos/{job['jobId']}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error")
    assert rest.get("/v1/videos").json()["data"] == []


def test_the_command_line(suite: Suite, rest: httpx.Client) -> None:
    made = suite.run("generate", "image", PROMPT, "--size", "64x32")
    assert made.returncode == 0, made.stderr
    assert "succeeded, 0 credits" in made.stdout
    assert "/files/file_" in made.stdout
    job_id = made.stdout.split()[0]
    listed = suite.ask("jobs", "list", "--kind", "image", "--limit", "5")
    assert job_id in listed.stdout
    assert json.loads(suite.ask("jobs", "get", job_id).stdout)["state"] == "succeeded"
    assert suite.ask("jobs", "watch", job_id).stdout.startswith(f"{job_id} succeeded")
    assert "succeeded" in suite.ask("jobs", "cancel", job_id).stdout
    missing = suite.ask("jobs", "get", "job_none")
    assert (missing.returncode, "NOT_FOUND" in missing.stderr) == (2, True)
    refused = suite.ask("generate", "image", "x", "--size", "wide")
    assert (refused.returncode, "WIDTHxHEIGHT" in refused.stderr) == (2, True)
    away = suite.ask("jobs", "list", environment={"OMNIHUB_URL": "http://127.0.0.1:9"})
    assert (away.returncode, "omnihub serve" in away.stderr) == (2, True)
