"""Files over HTTP and by rpc, on both databases."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from omnihub.workflow.v1 import file_content_service_pb2 as content_pb
from omnihub.workflow.v1 import file_service_pb2 as pb

from services.common.rpc import RpcError
from services.workflow.content_server import FileContentServer
from services.workflow.domain.media_types import ALLOWED
from tests.support.files import CALLER, STRANGER, bearer, close_bench, open_bench, picture, sound


def rpc(bench):
    return bench.parts.file_server


def contents(folder: Path) -> list[Path]:
    return [path for path in (folder / "files").rglob("*") if path.is_file()]


async def test_a_raw_upload_comes_back_byte_for_byte_over_its_signed_link(bench):
    data = picture()
    file = await bench.upload(data, params={"name": "boat.png"})
    assert (file["mime"], file["size"], file["name"]) == ("image/png", len(data), "boat.png")
    assert file["sha256"] == hashlib.sha256(data).hexdigest()
    answer = await bench.http.get(file["url"])
    assert answer.content == data
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_form_is_taken_in_too(bench):
    files = {"file": ("voice é.wav", sound(100_000), "audio/x-wav")}
    answer = await bench.http.post(
        "/files", files=files, data={"purpose": "evidence"}, headers=bearer("key-one")
    )
    file = answer.json()["file"]
    assert (file["mime"], file["purpose"], file["name"]) == ("audio/wav", "evidence", "voice é.wav")
    assert "expiresAt" not in file
    assert (await bench.http.get(file["url"])).content == sound(100_000)


async def test_an_upload_without_a_length_is_counted_while_it_arrives(bench, tmp_path):
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield picture()
        for _ in range(50):
            sent += 1
            yield b"\0" * 20_000

    answer = await bench.http.post("/files", content=endless(), headers=bearer("key-one"))
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "BODY_TOO_LARGE")
    assert not contents(tmp_path)


async def test_a_form_that_is_too_large_is_refused(bench, tmp_path):
    answer = await bench.http.post(
        "/files", files={"file": ("x.wav", sound(400_000), "audio/wav")}, headers=bearer("key-one")
    )
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "BODY_TOO_LARGE")
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("content", "said", "status", "reason"),
    [
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
            "image/png",
            415,
            "UNSUPPORTED_MEDIA",
        ),
        (b"<!DOCTYPE html><html></html>", "text/plain", 415, "UNSUPPORTED_MEDIA"),
        (b"hello <ScRiPt>alert(1)</script>", "text/plain", 415, "UNSUPPORTED_MEDIA"),
        (b"MZ\x90\0" + b"\0" * 300, "", 415, "UNSUPPORTED_MEDIA"),
        (b"\x7fELF\2\1\1" + b"\0" * 300, "image/png", 415, "UNSUPPORTED_MEDIA"),
        (picture(), "audio/wav", 415, "UNSUPPORTED_MEDIA"),
        (sound(), "image/png", 415, "UNSUPPORTED_MEDIA"),
        (b"", "", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_what_is_not_allowed_or_not_what_is_said_is_refused(
    light, tmp_path, content, said, status, reason
):
    headers = bearer("key-one") | ({"content-type": said} if said else {})
    answer = await light.http.post("/files", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason), answer.text
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("make", "mime"),
    [
        (lambda: picture("JPEG"), "image/jpeg"),
        (lambda: picture("WEBP"), "image/webp"),
        (lambda: picture("GIF"), "image/gif"),
        (sound, "audio/wav"),
        (lambda: b"ID3\x04\0\0\0\0\0\0\xff\xfb\x90\x64" + b"\0" * 400, "audio/mpeg"),
        (lambda: b"fLaC\0\0\0\x22" + b"\0" * 60, "audio/flac"),
        (lambda: b"OggS\0\x02" + b"\0" * 22 + b"\x01\x13OpusHead" + b"\0" * 40, "audio/ogg"),
        (lambda: b"\0\0\0\x20ftypM4A \0\0\2\0isomiso2avc1mp41" + b"\0" * 90, "audio/mp4"),
        (lambda: b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + b"\0" * 90, "video/mp4"),
        (lambda: b"%PDF-1.7\n" + b"x" * 50, "application/pdf"),
        (lambda: b'{"a": 1}', "application/json"),
        (lambda: "grüße, 世界".encode() * 900, "text/plain"),
    ],
)
async def test_types_are_told_from_the_content(light, make, mime):
    assert (await light.upload(make()))["mime"] == mime
    assert mime in ALLOWED


async def test_what_a_browser_could_run_is_only_ever_downloaded(bench):
    svg = await bench.parts.files.put(
        "org_1",
        "",
        b"<svg onload='alert(1)'/>",
        purpose="output",
        now=bench.micros(),
        mime="image/svg+xml",
        name='a"\r\n.svg',
    )
    answer = await bench.http.get(bench.parts.links.to(svg.id))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%22%0D%0A.svg"


async def test_ranges(bench):
    file = await bench.upload(data := picture(size=(300, 300)))
    size = len(data)
    for asked, status, expected in (
        ("bytes=0-9", 206, data[:10]),
        ("bytes=5-", 206, data[5:]),
        ("bytes=-7", 206, data[-7:]),
        (f"bytes=10-{size + 50}", 206, data[10:]),
        ("bytes=0-1,4-5", 200, data),
        ("lines=1-2", 200, data),
        ("bytes=9-2", 200, data),
    ):
        answer = await bench.http.get(file["url"], headers={"range": asked})
        assert (answer.status_code, answer.content) == (status, expected), asked
    first = await bench.http.get(file["url"], headers={"range": "bytes=2-4"})
    assert first.headers["content-range"] == f"bytes 2-4/{size}"
    beyond = await bench.http.get(file["url"], headers={"range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    etag = first.headers["etag"]
    assert (await bench.http.get(file["url"], headers={"if-none-match": etag})).status_code == 304
    changed = await bench.http.get(file["url"], headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert changed.status_code == 200
    head = await bench.http.head(file["url"])
    assert (head.headers["content-length"], head.content) == (str(size), b"")


async def test_a_link_opens_one_file_for_a_while(bench):
    file, other = await bench.upload(picture()), await bench.upload(sound())
    for url, message in (
        (file["url"].replace(file["fileId"], other["fileId"]), "altered"),
        (file["url"][:-1] + ("0" if file["url"][-1] != "0" else "1"), "altered"),
        (file["url"].replace("expires=", "expires=9"), "altered"),
        (file["url"].replace("signature=", "signature=é"), "altered"),
        (file["url"].replace("expires=", "expires=x"), "not complete"),
        (file["url"].partition("&")[0], "altered"),
    ):
        answer = await bench.http.get(url)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "PERMISSION_DENIED"), url
        assert message in answer.json()["error"]["message"]
    bench.later = timedelta(hours=1, seconds=5)
    assert "expired" in (await bench.http.get(file["url"])).json()["error"]["message"]


async def test_without_a_link_a_key_of_the_organisation_is_needed(bench):
    file = await bench.upload(picture())
    path = f"/files/{file['fileId']}"
    assert (await bench.http.get(path)).status_code == 401
    assert (await bench.http.get(path, headers=bearer("key-one"))).status_code == 200
    assert (await bench.http.get(path, headers=bearer("key-two"))).status_code == 404
    assert (await bench.http.post("/files", content=picture(), headers=bearer("key-poor"))).status_code == 403
    assert (await bench.http.post("/files", content=picture(), headers=bearer("wrong"))).status_code == 401


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"no boundary", "multipart/form-data"),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b"),
        (
            b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
    ],
)
async def test_broken_forms_are_refused(light, body, content_type):
    answer = await light.http.post(
        "/files", content=body, headers=bearer("key-one") | {"content-type": content_type}
    )
    assert answer.status_code == 400, answer.text


async def test_files_by_rpc(bench):
    made = [
        (await rpc(bench).upload_file(pb.UploadFileRequest(name=f"{n}.png", content=picture()), CALLER)).file
        for n in range(3)
    ]
    got = (await rpc(bench).get_file(pb.GetFileRequest(file_id=made[0].file_id), CALLER)).file
    assert (got.name, got.purpose) == ("0.png", "upload")
    assert got.expires_at.seconds - got.created_at.seconds == 30 * 86_400
    first = await rpc(bench).list_files(pb.ListFilesRequest(page_size=2), CALLER)
    rest = await rpc(bench).list_files(pb.ListFilesRequest(page_token=first.next_page_token), CALLER)
    assert [file.file_id for file in (*first.files, *rest.files)] == [file.file_id for file in made[::-1]]
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await rpc(bench).get_file(pb.GetFileRequest(file_id=made[0].file_id), STRANGER)
    assert not (await rpc(bench).list_files(pb.ListFilesRequest(), STRANGER)).files
    with pytest.raises(RpcError, match="BODY_TOO_LARGE"):
        await rpc(bench).upload_file(pb.UploadFileRequest(content=sound(200_000)), CALLER)


async def test_a_removed_file_is_gone_with_its_content(bench, tmp_path):
    file = await bench.upload(picture())
    await rpc(bench).delete_file(pb.DeleteFileRequest(file_id=file["fileId"]), STRANGER)
    assert contents(tmp_path)
    for _ in range(2):
        await rpc(bench).delete_file(pb.DeleteFileRequest(file_id=file["fileId"]), CALLER)
    assert not contents(tmp_path)
    assert (await bench.http.get(file["url"])).status_code == 404


async def test_what_has_expired_is_swept_by_one_replica(bench, database_url, tmp_path):
    await bench.upload(picture())
    evidence = await bench.upload(sound(), params={"purpose": "evidence"})
    other = await open_bench(tmp_path, database_url, instance="two", provenance=False)
    assert await bench.parts.sweeper.sweep() == 0
    bench.later = other.later = timedelta(days=31)
    assert await bench.parts.sweeper.sweep() == 1
    assert await other.parts.sweeper.sweep() == 0
    left = (await rpc(bench).list_files(pb.ListFilesRequest(), CALLER)).files
    assert [file.file_id for file in left] == [evidence["fileId"]]
    assert len(contents(tmp_path)) == 1
    # The one that swept is gone: another takes over.
    await bench.upload(picture())
    bench.later = other.later = timedelta(days=62)
    assert await other.parts.sweeper.sweep() == 1
    await close_bench(other)


async def test_a_content_without_facts_is_swept(bench, tmp_path):
    orphan = tmp_path / "files" / "org_1" / "file_lost"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"x")
    await bench.parts.files._announce("org_1/file_lost", bench.micros())
    await bench.parts.sweeper.sweep()
    assert orphan.exists()
    bench.later = timedelta(days=1, minutes=1)
    await bench.parts.sweeper.sweep()
    assert not orphan.exists()


async def test_a_content_that_cannot_be_removed_holds_up_no_other(bench, tmp_path, caplog):
    """It is tried again with the next sweep, after all others."""
    await bench.parts.sweeper.stop()
    folder = tmp_path / "files" / "org_1"
    # No file is ever removed by that name: a folder has it.
    (folder / "file_a" / "inside").mkdir(parents=True)
    for name in ("file_a", "file_b", "file_c"):
        await bench.parts.files._announce(f"org_1/{name}", bench.micros())
    for name in ("file_b", "file_c"):
        (folder / name).write_bytes(b"x")
    bench.later = timedelta(days=1, minutes=1)
    await bench.parts.sweeper.sweep()
    assert sorted(path.name for path in folder.iterdir()) == ["file_a"]
    assert caplog.text.count("content_not_removed") == 1
    # Those that were removed are not tried again.
    assert await bench.parts.files.sweep_contents(bench.micros()) == 0
    (folder / "file_a" / "inside").rmdir()
    (folder / "file_a").rmdir()
    (folder / "file_a").write_bytes(b"x")
    bench.later = timedelta(days=2)
    await bench.parts.sweeper.sweep()
    assert not list(folder.iterdir())


async def test_a_store_that_is_away_is_asked_a_few_times_not_for_everything(light, tmp_path, caplog):
    await light.parts.sweeper.stop()
    for number in range(9):
        (tmp_path / "files" / "org_1" / f"file_{number}" / "inside").mkdir(parents=True)
        await light.parts.files._announce(f"org_1/file_{number}", light.micros())
    light.later = timedelta(days=1, minutes=1)
    for failed in (3, 6, 9, 9):
        assert await light.parts.files.sweep_contents(light.micros()) == 0
        assert caplog.text.count("content_not_removed") == failed


async def test_links_of_one_replica_open_at_the_other(database_url, tmp_path):
    for key in ("", "a master key"):
        one = await open_bench(tmp_path, database_url, master_key=key, provenance=False)
        two = await open_bench(tmp_path, database_url, master_key=key, provenance=False, instance="two")
        file = await one.upload(picture())
        query = file["url"].partition("?")[2]
        assert (await two.http.get(f"/files/{file['fileId']}?{query}")).status_code == 200
        await close_bench(one)
        await close_bench(two)


async def test_a_content_that_was_changed_is_noticed(bench, tmp_path):
    file = await bench.upload(picture())
    (path,) = contents(tmp_path)
    path.write_bytes(b"\0" * len(picture()))
    with pytest.raises(RpcError, match="not what was kept"):
        await bench.parts.files.read(await bench.parts.files.find(file["fileId"]))


async def kept(bench, data: bytes):
    return await bench.parts.files.put(
        CALLER.identity.organisation_id, "", data, purpose="output", now=bench.micros(), mime="audio/wav"
    )


def reading(bench, file_id: str, call=CALLER) -> AsyncIterator[content_pb.ReadFileResponse]:
    return FileContentServer(bench.parts.files).read_file(content_pb.ReadFileRequest(file_id=file_id), call)


async def test_a_file_is_read_in_pieces_and_never_whole(light, tmp_path):
    """What is written to it while it is read is seen, and noticed: it is not in memory."""
    data = sound(5_000_000)
    row = await kept(light, data)
    first, *rest = [event async for event in reading(light, row.id)]
    assert (first.start.mime, first.start.size) == ("audio/wav", len(data))
    assert b"".join(event.data for event in rest) == data
    assert max(len(event.data) for event in rest) <= 256 * 1024
    stream = reading(light, row.id)
    await anext(stream)
    got = [(await anext(stream)).data]
    (path,) = contents(tmp_path)
    with path.open("r+b") as changing:
        changing.seek(-1_000, 2)
        changing.write(b"changed " * 125)

    async def read_on() -> None:
        async for event in stream:
            got.append(event.data)

    with pytest.raises(RpcError, match="not what was kept"):
        await read_on()
    assert b"".join(got) == data[:-1_000] + b"changed " * 125


async def test_what_cannot_be_read_is_said_before_anything_is_sent(light, tmp_path):
    row = await kept(light, sound(1_000))
    (path,) = contents(tmp_path)
    path.unlink()
    for file_id, call in (("file_none", CALLER), (row.id, STRANGER), (row.id, CALLER)):
        with pytest.raises(RpcError) as refused:
            await anext(reading(light, file_id, call))
        assert refused.value.reason == "NOT_FOUND"


@pytest.mark.parametrize("left", [0, 500])
async def test_a_content_that_was_cut_is_noticed_at_its_end(light, tmp_path, left):
    row = await kept(light, sound(1_000))
    (path,) = contents(tmp_path)
    path.write_bytes(sound(1_000)[:left])
    with pytest.raises(RpcError, match="not what was kept"):
        [event async for event in reading(light, row.id)]
