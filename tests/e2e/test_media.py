"""Every kind of media through real Envoy, asked by the official clients, made by a vendor behind it.

The vendor is a server of our own; the same clients talk to it directly first, and must be content.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from elevenlabs.client import ElevenLabs
from PIL import Image

from tests.e2e.conftest import assert_clean
from tests.support.deployment import SHAPES
from tests.support.eventually import eventually
from tests.support.node import run_client
from tests.support.studio import POLLS, VIDEO, WORDS, Studio, a_picture, a_sound, running_studio
from tests.support.suite import Suite
from tests.support.tenant import Tenant, a_tenant

# The client says that its vendor ends its own service; the path stays.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

STUDIO_KEY, VOICE_KEY = "sk-studio-5c1e77", "xi-voice-90ab12"
CONFIG = """
[auth]
registration = "open"

[providers.studio]
adapter = "openai"
base_url = "{url}/v1"
api_key = "{studio_key}"

[providers.voices]
adapter = "elevenlabs"
base_url = "{url}"
api_key = "{voice_key}"

[billing.prices]
"studio/gpt-image-1" = {{ input_per_million = "10", output_per_million = "40" }}
"studio/tts-1" = {{ per_character = "0.001" }}
"studio/whisper-1" = {{ per_second = "0.01" }}
"studio/sora-2" = {{ per_second = "0.1" }}
"voices/eleven_v3" = {{ per_character = "0.002" }}
"voices/instant" = {{ per_request = "0.5" }}

[[billing.margins]]
model = "studio/sora-2"
basis_points = 5000
"""


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    with running_studio() as running:
        yield running


@pytest.fixture(scope="module", params=SHAPES)
def suite(
    request: pytest.FixtureRequest, studio: Studio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Suite]:
    config = CONFIG.format(url=studio.url, studio_key=STUDIO_KEY, voice_key=VOICE_KEY)
    folder = tmp_path_factory.mktemp(f"media-{request.param}")
    running = Suite(folder, config, targets=SHAPES[request.param])
    try:
        running.start()
        yield running
        statuses = running.stop()
        assert not any(statuses.values()), statuses
        assert_clean(running.logs())
        for secret in (STUDIO_KEY, VOICE_KEY, WORDS):
            assert secret not in running.logs()
    finally:
        running.stop()


@pytest.fixture
def tenant(suite: Suite) -> Tenant:
    return a_tenant(suite)


@pytest.fixture
def sdk(suite: Suite, tenant: Tenant) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=suite.openai_url, api_key=tenant.key, max_retries=0, timeout=30) as client:
        yield client


def everything(client: openai.OpenAI, prefix: str) -> dict[str, Any]:
    """Ask for one of each kind with the official client, and return what came back."""
    made = client.images.generate(model=f"{prefix}gpt-image-1", prompt="a boat", n=2, size="48x32")
    edited = client.images.edit(
        model=f"{prefix}gpt-image-1",
        prompt="blue",
        image=[("a.png", a_picture(16, 16)), ("b.png", a_picture(8, 8))],
        mask=("m.png", a_picture(16, 16)),
    )
    spoken = client.audio.speech.create(
        model=f"{prefix}tts-1", voice="nova", input="Hello", response_format="wav"
    )
    written = client.audio.transcriptions.create(model=f"{prefix}whisper-1", file=("a.wav", a_sound(2)))
    film = client.videos.create(model=f"{prefix}sora-2", prompt="a boat", seconds="4", size="1280x720")
    ended = client.videos.poll(film.id, poll_interval_ms=200)
    again = client.videos.poll(client.videos.remix(film.id, prompt="at night").id, poll_interval_ms=200)
    return {
        "images": [size_of(each.b64_json) for each in made.data or ()],
        "edited": len(edited.data or ()),
        "spoken": spoken.read()[:4],
        "written": written.text,
        "video": (ended.status, ended.progress),
        "film": client.videos.download_content(film.id).read(),
        "remix": (again.status, again.remixed_from_video_id == film.id),
    }


def size_of(encoded: str | None) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(encoded or ""))) as picture:
        return picture.size


EVERYTHING = {
    "images": [(48, 32)] * 2,
    "edited": 1,
    "spoken": b"RIFF",
    "written": WORDS,
    "video": ("completed", 100),
    "remix": ("completed", True),
}


def test_the_official_clients_accept_the_vendor(studio: Studio) -> None:
    with openai.OpenAI(base_url=f"{studio.url}/v1", api_key="k", max_retries=0) as client:
        seen = everything(client, "")
    assert seen.pop("film") == VIDEO
    assert seen == EVERYTHING
    with httpx.Client() as http:
        vendor = ElevenLabs(base_url=studio.url, api_key="k", httpx_client=http)
        voice = vendor.voices.ivc.create(name="Ada", files=[("a.wav", a_sound())])
        assert b"".join(vendor.text_to_speech.convert(voice.voice_id, text="Hello", model_id="eleven_v3"))
        vendor.voices.delete(voice.voice_id)


def test_every_kind_with_the_python_client(sdk: openai.OpenAI, tenant: Tenant, studio: Studio) -> None:
    seen = everything(sdk, "studio/")
    assert seen.pop("film") == VIDEO
    assert seen == EVERYTHING
    edit = studio.last("/v1/images/edits")
    assert [name for name, _ in edit.files] == ["image[]", "image[]", "mask"]
    assert (edit.key, edit.files[0][1]) == (STUDIO_KEY, a_picture(16, 16))
    assert studio.last("/v1/audio/transcriptions").files == [("file", a_sound(2))]
    remix = next(each for each in reversed(studio.asked) if each.path.endswith("/remix"))
    assert remix.path.split("/")[3] in studio.videos
    expected = {
        "image": Decimal("0.0001") + Decimal("0.08"),
        "image_edit": Decimal("0.0031") + Decimal("0.04"),
        "speech": Decimal("0.005"),
        "transcription": Decimal("0.02"),
        # Twice four seconds at a margin of a half.
        "video": Decimal("1.2"),
    }
    booked = eventually(
        lambda: tenant.usage("task"), lambda usage: usage["total"]["requests"] == len(expected) + 1
    )
    assert {each["group"]: Decimal(each["cost"]) for each in booked["groups"]} == expected
    assert tenant.balance() == tenant.granted - sum(expected.values())


def test_every_kind_with_the_node_client(suite: Suite, tenant: Tenant) -> None:
    body = {
        "models": {
            "image": "studio/gpt-image-1",
            "speech": "studio/tts-1",
            "transcription": "studio/whisper-1",
            "video": "studio/sora-2",
        },
        "picture": base64.b64encode(a_picture(8, 8)).decode(),
        "recording": base64.b64encode(a_sound()).decode(),
    }
    [seen] = asyncio.run(run_client("openai", suite.url, tenant.key, [{"surface": "media", "body": body}]))
    assert size_of(seen["made"]) == (32, 16)
    assert (seen["edited"], seen["written"], seen["deleted"]) == (1, WORDS, True)
    assert base64.b64decode(seen["speech"])[:4] == b"RIFF"
    assert len(base64.b64decode(seen["video"])) >= len(VIDEO)


def test_a_strangers_video_cannot_be_changed(suite: Suite, tenant: Tenant, studio: Studio) -> None:
    with openai.OpenAI(base_url=suite.openai_url, api_key=suite.key, max_retries=0) as other:
        film = other.videos.create_and_poll(model="studio/sora-2", prompt="mine", poll_interval_ms=200)
    for job_id in (film.id, next(iter(studio.videos))):
        body = {"model": "studio/sora-2", "input": {"video": {"prompt": "x", "remixOfJobId": job_id}}}
        answer = tenant.request("POST", "/api/generate", json=body)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "INVALID_ARGUMENT")
        assert "remix_of_job_id" in answer.json()["error"]["message"]
    assert tenant.get("/api/generations")["jobs"] == []


def test_progress_of_a_video_arrives_live(tenant: Tenant, suite: Suite) -> None:
    body = {"model": "studio/sora-2", "input": {"video": {"prompt": "a boat"}}}
    job = tenant.request("POST", "/api/generate", json=body).json()["job"]
    headers = {"authorization": f"Bearer {tenant.key}"}
    url = f"{suite.url}/api/generations/{job['jobId']}:watch"
    with httpx.stream("GET", url, headers=headers, timeout=30) as live:
        events = [json.loads(line[5:]) for line in live.iter_lines() if line.startswith("data:")]
    fractions = [event["job"].get("progress", 0) for event in events if "job" in event]
    assert 1 / POLLS in fractions
    assert events[-1]["end"]["state"] == "succeeded"


def consented(tenant: Tenant) -> str:
    """Upload a signed paper and record what it says; return the consent's id."""
    paper = tenant.request(
        "POST", "/files", params={"purpose": "evidence"}, files={"file": ("paper.pdf", b"%PDF-1.4\nI agree")}
    )
    assert paper.status_code == 201, paper.text
    given_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    consent = {
        "subject": "Ada",
        "scopes": ["voice"],
        "evidenceFileId": paper.json()["file"]["fileId"],
        "givenAt": given_at,
    }
    answer = tenant.request("POST", "/api/consents", json=consent)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["consent"]["consentId"])


def test_a_cloned_voice_speaks_until_its_consent_is_taken_back(
    tenant: Tenant, sdk: openai.OpenAI, studio: Studio
) -> None:
    sample = {"data": base64.b64encode(a_sound()).decode(), "name": "ada.wav"}
    clone = {"name": "Ada", "samples": [sample]}
    wanted = {"model": "voices/instant", "waitS": 20, "input": {"voiceClone": clone}}
    refused = tenant.request("POST", "/api/generate", json=wanted)
    assert refused.json()["error"]["reason"] == "CONSENT_REQUIRED"
    clone["consentId"] = consent_id = consented(tenant)
    job = tenant.request("POST", "/api/generate", json=wanted).json()["job"]
    assert job["state"] == "succeeded", job
    voice = job["outputs"][0]["resourceId"]
    assert voice.startswith("voice_")
    theirs, before = next(reversed(studio.voices)), len(studio.asked)
    speech = sdk.audio.speech.create(
        model="voices/eleven_v3", voice=voice, input="Hello", response_format="mp3"
    )
    assert speech.read()[:3] == b"ID3"
    assert studio.asked[-1].path.startswith(f"/v1/text-to-speech/{theirs}")
    assert studio.asked[-1].key == VOICE_KEY
    # By the vendor's own name nobody gets around the consent.
    for name in (theirs, voice):
        if name == voice:
            tenant.request("POST", f"/api/consents/{consent_id}:revoke", json={"reason": "no more"})
        with pytest.raises(openai.APIStatusError) as barred:
            sdk.audio.speech.create(model="voices/eleven_v3", voice=name, input="Hello")
        assert 400 <= barred.value.status_code < 500
    # And the vendor has it no more.
    told = eventually(
        lambda: tenant.request("GET", f"/api/consents/{consent_id}").json()["consent"]["voices"],
        lambda voices: voices[0]["state"] != "removing",
    )
    assert [(each["voiceId"], each["state"]) for each in told] == [(voice, "removed")]
    assert theirs not in studio.voices
    # Nothing that was refused reached the vendor, or was paid.
    assert sum(each.path.startswith("/v1/text-to-speech/") for each in studio.asked[before:]) == 1
    booked = eventually(lambda: tenant.usage("task"), lambda usage: usage["total"]["requests"] == 2)
    costs = {each["group"]: Decimal(each["cost"]) for each in booked["groups"]}
    assert costs == {"voice_clone": Decimal("0.5"), "speech": Decimal("0.01")}


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_rules_speak_without_any_provider(sdk: openai.OpenAI, tenant: Tenant) -> None:
    spoken = sdk.audio.speech.create(
        model="local/default", voice="en", input="Hello there.", response_format="wav"
    ).read()
    assert spoken[:4] == b"RIFF"
    assert len(spoken) > 20_000
    body = {"model": "local/default", "text": "Guten Tag.", "voice": "de", "waitS": 20}
    job = tenant.request("POST", "/api/v1/generations/voice", json=body).json()["job"]
    assert (job["state"], job["outputs"][0]["mime"], job["outputs"][0]["synthetic"]) == (
        "succeeded",
        "audio/wav",
        True,
    )
