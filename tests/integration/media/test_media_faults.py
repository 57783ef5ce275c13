"""What OpenAI-shaped and ElevenLabs' servers may do wrong. Each test shows that the fault happened."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest
from omnihub.common.v1.media_pb2 import MediaFile, MediaInput, SpeechInput, TranscriptionInput
from omnihub.provider.v1.media_provider_service_api import MediaProviderService

from services.common.rpc import RpcError
from services.providers.media import http_media
from tests.support.fault_server import (
    Disconnect,
    Endless,
    FaultServer,
    Head,
    Send,
    Stall,
    answer,
    running_fault_server,
)
from tests.support.matrix import cells
from tests.support.media import Maker, running_media

KEY = "sk-test-0123456789"
ADAPTERS = ("openai", "elevenlabs")
LIMITS = {"connect_s": 1, "idle_s": 0.3, "total_s": 2}
SPEECH = MediaInput(speech=SpeechInput(text="hello", voice="v1"))
TRANSCRIPT = MediaInput(transcription=TranscriptionInput(audio=MediaFile(data=b"x")))


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[MediaProviderService]:
    settings = {
        name: {"adapter": name, "base_url": server.url, "api_key": KEY, "timeouts": LIMITS}
        for name in ADAPTERS
    }
    async with running_media(**settings) as client:
        yield client


async def failure(client: MediaProviderService, adapter: str, given: MediaInput = SPEECH) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await Maker(client, adapter, "m").submit(given)
    return caught.value


@pytest.mark.parametrize("adapter", cells(19, *ADAPTERS))
async def test_a_refused_key_is_in_no_log(
    server: FaultServer,
    client: MediaProviderService,
    adapter: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script = answer({"error": {"message": f"bad key {KEY}", "type": "x"}}, 401)
    error = await failure(client, adapter)
    assert (error.reason, error.metadata["retryable"]) == ("PROVIDER_CREDENTIAL_REFUSED", "false")
    assert "bad key ***" in error.message
    assert KEY not in caplog.text
    assert server.injected["status_401"] == 1


@pytest.mark.parametrize("adapter", cells(21, *ADAPTERS))
async def test_it_says_how_long_to_wait(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    server.script = answer({}, 429, {"retry-after": "7"})
    error = await failure(client, adapter)
    assert (error.reason, error.retry_after_s) == ("PROVIDER_RATE_LIMITED", 7)


@pytest.mark.parametrize("adapter", cells(24, *ADAPTERS))
@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (500, "PROVIDER_FAILED", "true"),
        (503, "PROVIDER_OVERLOADED", "true"),
        (529, "PROVIDER_OVERLOADED", "true"),
        # A gateway does not know what became of it: it may have been paid.
        (502, "PROVIDER_FAILED", "false"),
        (504, "PROVIDER_TIMEOUT", "false"),
    ],
)
async def test_what_a_broken_server_says(
    server: FaultServer,
    client: MediaProviderService,
    adapter: str,
    status: int,
    reason: str,
    retryable: str,
) -> None:
    server.script = answer({}, status)
    error = await failure(client, adapter)
    assert (error.reason, error.metadata["retryable"]) == (reason, retryable)
    assert (error.metadata.get("accepted") == "unknown") == (retryable == "false")
    assert server.injected[f"status_{status}"] == 1


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_nobody_listens(adapter: str) -> None:
    settings = {"adapter": adapter, "base_url": "http://127.0.0.1:9", "api_key": KEY}
    async with running_media(**{adapter: settings}) as client:
        error = await failure(client, adapter)
    assert (error.reason, error.metadata["retryable"]) == ("PROVIDER_FAILED", "true")
    assert "accepted" not in error.metadata


@pytest.mark.parametrize("adapter", cells(46, *ADAPTERS))
@pytest.mark.parametrize("script", [[Stall()], [Disconnect()]], ids=["stall", "disconnect"])
async def test_silence_after_it_was_sent_is_a_doubt(
    server: FaultServer, client: MediaProviderService, adapter: str, script: list
) -> None:
    server.script = script
    error = await failure(client, adapter)
    assert (error.metadata["accepted"], error.metadata["retryable"]) == ("unknown", "false")
    assert error.reason in ("PROVIDER_TIMEOUT", "PROVIDER_FAILED")
    assert len(server.requests) == 1
    assert server.injected.total() == 1


@pytest.mark.parametrize("adapter", cells(39, *ADAPTERS))
async def test_a_page_is_no_answer(server: FaultServer, client: MediaProviderService, adapter: str) -> None:
    server.script = [Head(content_type="text/html"), Send(b"<html>Sign in</html>")]
    for given in (SPEECH, TRANSCRIPT):
        error = await failure(client, adapter, given)
        assert error.reason == "PROVIDER_PROTOCOL"
        assert "text/html" in error.message


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_malformed_documents(server: FaultServer, client: MediaProviderService, adapter: str) -> None:
    for body in (b'{"text": ', b"[]", b'{"text": 7}', b"\xff\xfe"):
        server.script = answer(body)
        assert (await failure(client, adapter, TRANSCRIPT)).reason == "PROVIDER_PROTOCOL"


@pytest.mark.parametrize("adapter", cells(38, *ADAPTERS))
async def test_an_endless_answer_is_stopped(
    server: FaultServer,
    client: MediaProviderService,
    adapter: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_media, "BODY_LIMIT", 2**20)
    server.script = [Head(content_type="audio/mpeg"), Endless(bytes(2**16))]
    error = await failure(client, adapter)
    assert (error.reason, server.injected["endless"]) == ("PROVIDER_PROTOCOL", 1)
    await server.hung_up.wait()


@pytest.mark.parametrize("adapter", cells(29, *ADAPTERS))
async def test_a_slow_answer_meets_the_total_limit(
    server: FaultServer, client: MediaProviderService, adapter: str
) -> None:
    server.script = [Head(content_type="audio/mpeg"), Endless(b"x", 0.05)]
    error = await failure(client, adapter)
    assert (error.reason, error.metadata["accepted"]) == ("PROVIDER_TIMEOUT", "unknown")
    await server.hung_up.wait()
