"""What goes into generations and comes out: inputs, consents, cloned voices, provenance, object stores."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta

import boto3
import c2pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from moto.server import ThreadedMotoServer
from omnihub.common.v1.media_pb2 import (
    ImageEditInput,
    ImageInput,
    MediaFile,
    MediaInput,
    MediaOutput,
    SpeechInput,
    TranscriptionInput,
    UpscaleInput,
    VideoInput,
    VoiceCloneInput,
)
from omnihub.provider.v1 import media_provider_service_pb2 as provider
from omnihub.workflow.v1 import consent_service_pb2 as pb
from omnihub.workflow.v1 import file_service_pb2 as files
from omnihub.workflow.v1 import job_service_pb2 as jobs

from services.common.rpc import RpcError
from services.workflow.domain.errors import JobError
from services.workflow.files.provenance import Provenance, development_certificate
from services.workflow.files.store import open_contents
from tests.support.files import CALLER, STRANGER, close_bench, open_bench, picture, sound
from tests.support.ports import free_port


def cloning(consent_id: str, **fields) -> MediaInput:
    samples = [MediaFile(data=sound())]
    return MediaInput(
        voice_clone=VoiceCloneInput(name="Ada", samples=samples, consent_id=consent_id, **fields)
    )


async def begin(bench, given: MediaInput, call=CALLER, **fields):
    return (await bench.server.create_job(jobs.CreateJobRequest(input=given, **fields), call)).job


async def consent(bench, scopes=("voice",), **fields):
    evidence = await bench.upload(sound(), params={"purpose": "evidence"})
    given_at = Timestamp(seconds=bench.micros() // 1_000_000 - 60)
    request = pb.CreateConsentRequest(
        subject="Ada", scopes=scopes, evidence_file_id=evidence["fileId"], given_at=given_at, **fields
    )
    return (await bench.consents.create_consent(request, CALLER)).consent


async def test_files_become_ids_and_providers_get_contents(bench):
    uploaded = await bench.upload(data := picture())
    for source in ({"file_id": uploaded["fileId"]}, {"data": data}, {"url": uploaded["url"]}):
        await begin(bench, MediaInput(upscale=UpscaleInput(file=MediaFile(**source))))
        planned = bench.router.planned[-1].input.upscale.file
        assert (planned.WhichOneof("source"), planned.mime) == ("file_id", "image/png")
        await bench.work_off()
        sent = bench.router.sent[-1].input.upscale.file
        assert (sent.data, sent.mime) == (data, "image/png")


async def test_files_of_a_job_are_limited_together(bench):
    agreed = await consent(bench)
    held = set(bench.books.holds)
    samples = [MediaFile(data=sound(140_000)), MediaFile(data=sound(140_000))]
    clone = VoiceCloneInput(name="Ada", samples=samples, consent_id=agreed.consent_id)
    with pytest.raises(RpcError, match="larger than 500000 bytes together") as refused:
        await begin(bench, MediaInput(voice_clone=clone))
    assert refused.value.reason == "BODY_TOO_LARGE"
    assert refused.value.violations[0].field == "input.voice_clone.samples[1]"
    assert set(bench.books.holds) == held
    del clone.samples[1]
    await begin(bench, MediaInput(voice_clone=clone))


@pytest.mark.parametrize(
    ("given", "reason", "field"),
    [
        (MediaInput(image=ImageInput()), "INVALID_ARGUMENT", "image.prompt"),
        (MediaInput(image=ImageInput(prompt="x", width=8, height=64)), "INVALID_ARGUMENT", "width"),
        (MediaInput(image=ImageInput(prompt="x", width=64)), "INVALID_ARGUMENT", "height"),
        (MediaInput(image=ImageInput(prompt="x", width=16384, height=16384)), "INVALID_ARGUMENT", "width"),
        (MediaInput(image=ImageInput(prompt="x", count=21)), "INVALID_ARGUMENT", "count"),
        (MediaInput(image=ImageInput(prompt="x", aspect_ratio="wide")), "INVALID_ARGUMENT", "aspect_ratio"),
        (MediaInput(image=ImageInput(prompt="x", strength=float("nan"))), "INVALID_ARGUMENT", "strength"),
        (MediaInput(image=ImageInput(prompt="x", format="svg")), "INVALID_ARGUMENT", "format"),
        (MediaInput(image=ImageInput(prompt="x"), extension_json="[]"), "INVALID_ARGUMENT", "extension_json"),
        (MediaInput(image=ImageInput(prompt="x", init_image=MediaFile())), "INVALID_ARGUMENT", "init_image"),
        (MediaInput(image_edit=ImageEditInput(prompt="x")), "INVALID_ARGUMENT", "images"),
        (MediaInput(video=VideoInput(prompt="x", duration_s=6000)), "INVALID_ARGUMENT", "duration_s"),
        (MediaInput(speech=SpeechInput(text="x", speed=9)), "INVALID_ARGUMENT", "speed"),
        (MediaInput(speech=SpeechInput(text="x", voice="voice_none")), "INVALID_ARGUMENT", "voice"),
        (MediaInput(transcription=TranscriptionInput()), "INVALID_ARGUMENT", "audio"),
        (MediaInput(upscale=UpscaleInput(file=MediaFile(file_id="file_no"))), "NOT_FOUND", "upscale.file"),
        (MediaInput(upscale=UpscaleInput(file=MediaFile(data=sound()))), "UNSUPPORTED_MEDIA", "file"),
        (
            MediaInput(upscale=UpscaleInput(file=MediaFile(data=picture(), mime="image/gif"))),
            "UNSUPPORTED_MEDIA",
            "file",
        ),
        (
            MediaInput(transcription=TranscriptionInput(audio=MediaFile(data=picture()))),
            "UNSUPPORTED_MEDIA",
            "audio",
        ),
        (MediaInput(upscale=UpscaleInput(file=MediaFile(data=b"\0" * 4_000))), "UNSUPPORTED_MEDIA", "file"),
        (MediaInput(upscale=UpscaleInput(file=MediaFile(data=sound(200_000)))), "BODY_TOO_LARGE", "file"),
        (MediaInput(upscale=UpscaleInput(file=MediaFile(url="ftp://a.b/c"))), "URL_REFUSED", "file"),
        (cloning(""), "CONSENT_REQUIRED", ""),
        (cloning("consent_none"), "CONSENT_REQUIRED", ""),
    ],
)
async def test_what_cannot_be_made_is_refused_before_anything_is_spent(light, given, reason, field):
    with pytest.raises((RpcError, JobError)) as refused:
        await begin(light, given)
    assert refused.value.reason == reason
    fields = [violation.field for violation in refused.value.violations]
    assert not field or any(name.endswith(field) for name in fields), (fields, refused.value)
    assert not light.books.holds
    assert not light.router.planned


async def test_the_files_of_others_do_not_exist(bench):
    file = await bench.upload(picture(), key="key-two")
    given = MediaInput(upscale=UpscaleInput(file=MediaFile(file_id=file["fileId"])))
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await begin(bench, given)


async def test_a_clone_is_bound_to_its_consent_and_a_revocation_stops_its_use(bench):
    given = await consent(bench)
    job = await begin(bench, cloning(given.consent_id))
    voice_id = await bench.parts.consents.keep_resource(job.job_id, "fake0", "v-raw", bench.micros())
    assert voice_id == await bench.parts.consents.keep_resource(job.job_id, "fake0", "v-raw", 5)
    speaking = MediaInput(speech=SpeechInput(text="hello", voice=voice_id))
    await bench.work_off()
    await begin(bench, speaking)
    await bench.work_off()
    assert bench.router.sent[-1].input.speech.voice == "v-raw"
    with pytest.raises(RpcError, match="no voice"):
        await begin(bench, speaking, STRANGER)
    with pytest.raises(RpcError, match="by its"):
        await begin(bench, MediaInput(speech=SpeechInput(text="hello", voice="v-raw")))
    waiting = await begin(bench, speaking)
    unconcerned = await begin(bench, MediaInput(speech=SpeechInput(text="hello", voice="alloy")))
    asked = pb.RevokeConsentRequest(consent_id=given.consent_id, reason="asked to")
    for _ in range(2):
        revoked = (await bench.consents.revoke_consent(asked, CALLER)).consent
        assert revoked.HasField("revoked_at")
    for row, state in ((waiting, "cancelled"), (unconcerned, "queued")):
        seen = (await bench.server.get_job(jobs.GetJobRequest(job_id=row.job_id), CALLER)).job
        assert seen.state == state
    for refused in (speaking, cloning(given.consent_id)):
        with pytest.raises(RpcError, match=r"CONSENT_REQUIRED.*revoked"):
            await begin(bench, refused)
    events = [event.type for event in await bench.parts.consents.events(given.consent_id)]
    assert (events[0], events[-1], events.count("consent.revoked")) == (
        "consent.recorded",
        "consent.revoked",
        1,
    )
    assert events.count("consent.used") == 3


async def cloned(bench, consent_id: str, *names: str) -> list[str]:
    """Clone voices under a consent; return their ids."""
    job = await begin(bench, cloning(consent_id))
    ids = [
        await bench.parts.consents.keep_resource(job.job_id, "fake0", name, bench.micros()) for name in names
    ]
    await bench.work_off()
    return ids


async def revoke(bench, consent_id: str):
    return (
        await bench.consents.revoke_consent(pb.RevokeConsentRequest(consent_id=consent_id), CALLER)
    ).consent


async def shown(bench, consent_id: str):
    """Return what a consent tells of its voices."""
    answer = await bench.consents.get_consent(pb.GetConsentRequest(consent_id=consent_id), CALLER)
    return [(voice.state, voice.attempts, voice.problem) for voice in answer.consent.voices]


async def test_a_revocation_removes_what_was_cloned_at_its_provider(bench):
    given, other = await consent(bench), await consent(bench, idempotency_key="other")
    ids = await cloned(bench, given.consent_id, "v-1", "v-2")
    await cloned(bench, other.consent_id, "v-3")
    assert await shown(bench, given.consent_id) == [("kept", 0, "")] * 2
    revoked = await revoke(bench, given.consent_id)
    assert [(voice.voice_id, voice.state) for voice in revoked.voices] == [(each, "removing") for each in ids]
    await revoke(bench, given.consent_id)
    await bench.work_off()
    assert sorted(bench.router.deleted) == [("fake0", "v-1"), ("fake0", "v-2")]
    assert await shown(bench, given.consent_id) == [("removed", 1, "")] * 2
    assert await shown(bench, other.consent_id) == [("kept", 0, "")]
    # The same message again asks nobody.
    await bench.parts.voices.remove(ids[0])
    assert len(bench.router.deleted) == 2
    events = [event.type for event in await bench.parts.consents.events(given.consent_id)]
    assert events[-3:] == ["consent.revoked", "voice.removed", "voice.removed"]


async def test_a_provider_that_is_away_is_asked_until_it_has_removed_the_voice(bench):
    given = await consent(bench)
    await cloned(bench, given.consent_id, "v-1")
    bench.router.delete_failures = [RpcError("UNAVAILABLE", "down"), RpcError("PROVIDER_TIMEOUT", "slow")]
    await revoke(bench, given.consent_id)
    # A worker takes the message and dies before it has asked: the message is there again.
    assert len(await bench.outbox.take(bench.micros(), ["voice.remove"])) == 1
    assert not bench.router.deleted
    bench.later = timedelta(seconds=11)
    await bench.work_off()
    assert await shown(bench, given.consent_id) == [("removing", 1, "UNAVAILABLE: down")]
    await bench.work_off()
    assert len(bench.router.deleted) == 1
    bench.later += timedelta(seconds=6)
    await bench.work_off()
    assert await shown(bench, given.consent_id) == [("removing", 2, "PROVIDER_TIMEOUT: slow")]
    bench.later += timedelta(seconds=31)
    await bench.work_off()
    assert await shown(bench, given.consent_id) == [("removed", 3, "")]


@pytest.mark.parametrize("reason", ["NOT_IMPLEMENTED", "PROVIDER_REJECTED"])
async def test_a_voice_that_its_provider_does_not_remove_is_shown_and_can_be_sent_again(bench, reason):
    given = await consent(bench)
    (voice_id,) = await cloned(bench, given.consent_id, "v-1")
    bench.router.delete_failures = [RpcError(reason, "no")] * 2
    await revoke(bench, given.consent_id)
    await bench.work_off()
    assert await shown(bench, given.consent_id) == [("left", 1, f"{reason}: no")]
    for attempts, state in ((2, "left"), (3, "removed")):
        listed = await bench.server.list_dead_letters(jobs.ListDeadLettersRequest(), CALLER)
        letter = listed.dead_letters[0]
        assert (letter.queue, letter.subject_id, letter.redriven) == ("voice.remove", voice_id, False)
        again = jobs.RedriveDeadLetterRequest(dead_letter_id=letter.dead_letter_id)
        for _ in range(2):
            await bench.server.redrive_dead_letter(again, CALLER)
        await bench.work_off()
        assert [(told[0], told[1]) for told in await shown(bench, given.consent_id)] == [(state, attempts)]
    assert len(bench.router.deleted) == 3


async def test_what_is_cloned_after_a_revocation_is_removed_too(bench):
    """The provider had finished before it heard that the job is cancelled."""
    given = await consent(bench)
    job = await begin(bench, cloning(given.consent_id))
    await revoke(bench, given.consent_id)
    for _ in range(2):
        await bench.parts.consents.keep_resource(job.job_id, "fake0", "v-late", bench.micros())
    await bench.work_off()
    assert bench.router.deleted == [("fake0", "v-late")]
    assert await shown(bench, given.consent_id) == [("removed", 1, "")]


async def test_a_revocation_between_admission_and_the_provider_holds(bench):
    given = await consent(bench)
    job = await begin(bench, cloning(given.consent_id))
    # As if the job had been written a moment after the revocation looked for it.
    await bench.parts.consents.revoke(given.consent_id, "", bench_actor(), bench.micros())
    await bench.work_off()
    seen = (await bench.server.get_job(jobs.GetJobRequest(job_id=job.job_id), CALLER)).job
    assert (seen.state, seen.error.reason) == ("failed", "CONSENT_REQUIRED")
    assert not bench.router.sent


def bench_actor():
    from services.workflow.store.consents import Actor

    return Actor("key_1", "req_9")


async def test_consents_that_do_not_hold(bench):
    face = await consent(bench, scopes=["face"])
    with pytest.raises(RpcError, match="not for a voice"):
        await begin(bench, cloning(face.consent_id))
    soon = Timestamp(seconds=bench.micros() // 1_000_000 + 60)
    short = await consent(bench, expires_at=soon)
    bench.later = timedelta(minutes=2)
    with pytest.raises(RpcError, match="expired"):
        await begin(bench, cloning(short.consent_id))
    other = await consent(bench)
    with pytest.raises(RpcError, match="no consent"):
        await begin(bench, cloning(other.consent_id), STRANGER)
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await bench.consents.get_consent(pb.GetConsentRequest(consent_id=other.consent_id), STRANGER)
    listed = (await bench.consents.list_consents(pb.ListConsentsRequest(page_size=1), CALLER)).consents
    assert [each.consent_id for each in listed] == [other.consent_id]
    future = pb.CreateConsentRequest(
        subject="x", scopes=["voice"], evidence_file_id="f", given_at=Timestamp(seconds=2**33)
    )
    with pytest.raises(RpcError, match="future"):
        await bench.consents.create_consent(future, CALLER)
    future.given_at.seconds = 1
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await bench.consents.create_consent(future, CALLER)


async def test_evidence_stays_as_long_as_its_consent_holds(bench):
    given = await consent(bench)
    remove = files.DeleteFileRequest(file_id=given.evidence_file_id)
    with pytest.raises(RpcError, match="PRECONDITION_FAILED"):
        await bench.parts.file_server.delete_file(remove, CALLER)
    await bench.consents.revoke_consent(pb.RevokeConsentRequest(consent_id=given.consent_id), CALLER)
    await bench.parts.file_server.delete_file(remove, CALLER)


async def kept(bench, data: bytes, mime: str, synthetic: bool = False):
    output = provider.ProviderOutput(data=data, facts=MediaOutput(mime=mime, synthetic=synthetic))
    made = await bench.parts.outputs.keep("org_1", "job_1", "fake0", output)
    if made.facts is not None:
        await bench.parts.files.record(made.facts)
    return made.output


async def verified(bench, file_id: str):
    request = files.VerifyProvenanceRequest(file_id=file_id)
    return await bench.parts.file_server.verify_provenance(request, CALLER)


async def test_provenance_is_signed_and_checked_beside_the_loop(monkeypatch):
    threads = set()

    class Builder(c2pa.Builder):
        def sign(self, *given):
            threads.add(threading.get_ident())
            return super().sign(*given)

    class Reader(c2pa.Reader):
        def get_validation_state(self):
            threads.add(threading.get_ident())
            return super().get_validation_state()

    monkeypatch.setattr(c2pa, "Builder", Builder)
    monkeypatch.setattr(c2pa, "Reader", Reader)
    provenance = Provenance()
    chain, _, key = development_certificate().partition(b"\0")
    provenance.open(chain, key)
    signed = await provenance.sign(picture(), "image/png", "local", True)
    assert (await provenance.verify(signed, "image/png")).state == "valid"
    provenance.close()
    assert threads
    assert threading.get_ident() not in threads


async def test_outputs_carry_provenance_that_shows_tampering(database_url, tmp_path):
    bench = await open_bench(tmp_path, database_url, master_key="m")
    for data, mime in (
        (picture("PNG"), "image/png"),
        (picture("JPEG"), "image/jpeg"),
        (picture("WEBP"), "image/webp"),
        (sound(), "audio/wav"),
    ):
        output = await kept(bench, data, mime, synthetic=mime == "audio/wav")
        answer = await verified(bench, output.file_id)
        assert answer.state == "valid", (mime, answer.problems)
        source = "algorithmicMedia" if mime == "audio/wav" else "trainedAlgorithmicMedia"
        assert source in answer.manifest_json
        assert "OmniHub" in json.loads(answer.manifest_json)["claim_generator_info"][0]["name"]
        signed = await bench.parts.files.read(await bench.parts.files.find(output.file_id))
        place = signed.index(data[-30:-20]) if data[-30:-20] in signed else len(signed) - 30
        tampered = bytearray(signed)
        tampered[place] ^= 1
        file = await bench.upload(bytes(tampered))
        assert (await verified(bench, file["fileId"])).state == "invalid", mime
    plain = await bench.upload(picture())
    assert (await verified(bench, plain["fileId"])).state == "absent"
    broken = await kept(bench, picture()[:60], "image/png")
    assert (await verified(bench, broken.file_id)).state in ("absent", "invalid")
    # The certificate is made once, for all replicas.
    two = await open_bench(tmp_path, database_url, master_key="m", instance="two")
    assert await two.parts._certificate(0) == await bench.parts._certificate(0)
    await close_bench(two)
    await close_bench(bench)


async def test_a_certificate_that_cannot_sign_stops_the_start(database_url, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    with pytest.raises(ValueError, match="private key for provenance"):
        await open_bench(tmp_path, database_url, provenance_certificate_file=bad, provenance_key_file=bad)


async def test_outputs_that_are_not_what_their_provider_says_are_refused(bench):
    for data, mime in ((b"<html>error</html>", "image/png"), (sound(), "image/png"), (b"{}", "image/png")):
        with pytest.raises(RpcError, match="UNSUPPORTED_MEDIA"):
            await kept(bench, data, mime)
    with pytest.raises(RpcError, match="PROVIDER_PROTOCOL"):
        await kept(bench, b"", "image/png")
    assert (await kept(bench, b"\x01\x02" * 200, "audio/pcm")).mime == "audio/pcm"


async def test_a_removed_job_takes_its_files_along(bench):
    job = await begin(bench, MediaInput(image=ImageInput(prompt="x")))
    output = await kept(bench, picture(), "image/png")
    await bench.parts.remove_outputs([output.file_id])
    assert await bench.parts.files.find(output.file_id) is None
    assert job.job_id


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{port}"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ALLOW_HTTP", "true"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="media")
    yield "s3://media/omnihub"
    client.close()
    server.stop()


async def test_an_object_store_keeps_files_like_a_folder(database_url, tmp_path, bucket):
    bench = await open_bench(tmp_path, database_url, storage_url=bucket, provenance=False)
    data = sound(9 * 2**19)
    for content in (picture(), data):
        file = await bench.upload(content)
        assert (await bench.http.get(file["url"])).content == content
        part = await bench.http.get(file["url"], headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, content[100:200])
        row = await bench.parts.files.find(file["fileId"])
        assert await bench.parts.files.read(row) == content
        await bench.parts.files.remove([row.id], bench.micros())
        with pytest.raises(RpcError, match="NOT_FOUND"):
            await bench.parts.files.open(row, 0, 10)
    assert not list((tmp_path).glob("files/**/*"))
    await close_bench(bench)


def test_a_storage_address_that_is_none_is_refused(tmp_path):
    for url in ("https://example.com/bucket", "nonsense", "what://x"):
        with pytest.raises(ValueError, match="storage_url"):
            open_contents(url, tmp_path)
