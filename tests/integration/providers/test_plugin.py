"""Providers outside the suite: forwarded, translated, held against their contract."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from omnihub.common.v1.chat_pb2 import ChatInput, Message, Part, Tool, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.common.rpc.server import GrpcServer
from services.providers.adapters import plugin as plugin_module
from services.providers.adapters import plugin_stream
from services.providers.settings import ProviderSettings
from tests.support.model_server import MODEL, running_model_server
from tests.support.plugins import GoodProvider, serving, serving_suite
from tests.support.ports import free_port
from tests.support.providers import chat, running_providers, settings, stream_chat, text_of


def acme(address: str, **more: Any) -> ProviderSettings:
    return ProviderSettings.model_validate({"adapter": "plugin", "address": address, **more})


def attempt(model: str = "echo", **fields: Any) -> pb.Attempt:
    chat_input = ChatInput(messages=[Message(role="user", content="Hello there")], **fields)
    return pb.Attempt(provider="acme", model=model, chat=chat_input, attempt_id="att_1")


class Recording(GoodProvider):
    """Keeps the attempts it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[pb.Attempt] = []

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        self.asked.append(request.attempt)
        return await super().chat(request, call)


async def test_attempts_are_forwarded() -> None:
    async with serving(Recording()) as address, running_providers(acme=acme(address)) as client:
        answer = await chat(client, attempt())
        assert "You said: Hello there" in answer.message.parts[0].text.text
        messages = await stream_chat(client, attempt())
        assert text_of(messages) == answer.message.parts[0].text.text
        assert messages[-1].end.usage == answer.usage
        request = pb.EmbedRequest(provider="acme", model="hash", inputs=["a", "b"])
        assert len((await client.embed(request, Call.internal(5))).embeddings) == 2
        listed = await client.list_models(pb.ListModelsRequest(provider="acme"), Call.internal(5))
        assert [each.model for each in listed.models] == ["echo", "hash"]
        health = await client.check_health(pb.CheckHealthRequest(provider="acme"), Call.internal(5))
        assert health.healthy, health.detail
        capabilities = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
        offered = {each.provider: each for each in capabilities.providers}["acme"]
        assert (offered.adapter, offered.synthetic) == ("plugin", True)
        assert list(offered.features) == ["chat", "stream", "embed"]


async def test_bodies_are_translated_for_plugins_of_another_format() -> None:
    provider = Recording()
    bodies: dict[WireFormat.ValueType, dict[str, Any]] = {
        WireFormat.WIRE_FORMAT_OPENAI_CHAT: {"messages": [{"role": "user", "content": "hi"}]},
        WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES: {
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "hi"}],
        },
    }
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        for wire_format, body in bodies.items():
            raw = pb.Attempt(
                provider="acme",
                model="echo",
                raw_body=json.dumps(body).encode(),
                wire_format=wire_format,
                headers={"anthropic-beta": "x"},
            )
            answer = await chat(client, raw)
            assert not answer.HasField("raw_body")
            assert answer.message.parts[0].text.text.endswith("You said: hi")
        embedding = pb.EmbedRequest(
            provider="acme", model="hash", raw_body=b'{"input": "x", "dimensions": 8}'
        )
        vectors = (await client.embed(embedding, Call.internal(5))).embeddings
        assert [len(each.values) for each in vectors] == [8]
        broken = pb.Attempt(
            provider="acme", model="echo", raw_body=b"{", wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT
        )
        with pytest.raises(RpcError) as caught:
            await chat(client, broken)
        assert caught.value.reason == "MALFORMED_BODY"
    for asked in provider.asked:
        assert (asked.provider, asked.raw_body, asked.wire_format) == ("good", b"", 0)
        assert not asked.headers
        assert asked.chat.messages[0].role == "user"


async def test_bodies_pass_as_they_are_where_the_plugin_speaks_their_format() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi you"}], "stream": True, "own": 1}
    raw = pb.Attempt(
        provider="acme",
        model=MODEL,
        raw_body=json.dumps(body).encode(),
        wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
    )
    async with (
        running_model_server() as url,
        serving_suite(wall=settings("openai", url)) as behind,
        running_providers(acme=acme(behind, remote_provider="wall")) as client,
    ):
        start, *frames, end = await stream_chat(client, raw)
        whole = await chat(client, raw)
        raw.typed = True
        typed = await chat(client, raw)
        embedding = pb.EmbedRequest(provider="acme", model="hashes", raw_body=b'{"input": ["x"]}')
        embedded = await client.embed(embedding, Call.internal(5))
    assert start.start.wire_format == WireFormat.WIRE_FORMAT_OPENAI_CHAT
    assert text_of(frames) == "hi you"
    assert end.end.usage.output_total == 2
    assert json.loads(whole.raw_body)["choices"][0]["message"]["content"] == "hi you"
    assert not typed.HasField("raw_body")
    assert typed.message.content == "hi you"
    assert json.loads(embedded.raw_body)["data"]


async def test_what_is_not_offered_is_refused_before_the_plugin_is_asked() -> None:
    provider = Recording()
    picture = Part()
    picture.image.url = "https://example.test/cat.png"
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"tools": [Tool(name="t")]}, "tools"),
        ({"response_schema_json": "{}"}, "json_schema"),
    ]
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        for fields, feature in wishes:
            with pytest.raises(RpcError, match=f"acme does not offer {feature}") as caught:
                await chat(client, attempt(**fields))
            assert caught.value.reason == "PARAMETER_UNSUPPORTED"
            assert caught.value.violations
        seen = attempt()
        seen.chat.messages.append(Message(role="user", parts=[picture]))
        with pytest.raises(RpcError, match="acme does not offer vision"):
            await stream_chat(client, seen)
        thoughtful = attempt(reasoning_effort="high")
        whole = (await chat(client, thoughtful)).receipt
        (start, *_) = await stream_chat(client, thoughtful)
        for receipt in (whole, start.start.receipt):
            dropped = [entry.name for entry in receipt if entry.outcome == "dropped"]
            assert dropped == ["reasoning_effort"]
        thoughtful.strict = True
        with pytest.raises(RpcError, match="does not offer reasoning"):
            await chat(client, thoughtful)
    assert len(provider.asked) == 1


async def test_what_a_plugin_does_not_mention_is_said_to_be_dropped() -> None:
    class Silent(GoodProvider):
        async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
            response = await super().chat(request, call)
            response.ClearField("receipt")
            return response

    body = {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {"1": 2}}
    raw = pb.Attempt(
        provider="acme",
        model="echo",
        raw_body=json.dumps(body).encode(),
        wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
    )
    async with serving(Silent()) as address, running_providers(acme=acme(address)) as client:
        receipt = {entry.name: entry.outcome for entry in (await chat(client, raw)).receipt}
    assert receipt == {"model": "translated", "messages": "translated", "logit_bias": "dropped"}


async def test_an_answer_goes_on_where_a_plugin_offers_that() -> None:
    class Prefilling(Recording):
        more: tuple[str, ...] = ()

        async def get_capabilities(
            self, request: pb.GetCapabilitiesRequest, call: Call
        ) -> pb.GetCapabilitiesResponse:
            offered = await super().get_capabilities(request, call)
            offered.providers[0].features.extend(self.more)
            return offered

    provider = Prefilling()
    broken_off = attempt()
    broken_off.prefill_text = "General Ken"
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        with pytest.raises(RpcError, match="acme does not offer prefill"):
            await chat(client, broken_off)
    provider.more = ("prefill",)
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        await chat(client, broken_off)
    (asked,) = provider.asked
    assert (asked.chat.messages[-1].role, asked.chat.messages[-1].content) == ("assistant", "General Ken")
    assert not asked.prefill_text


async def test_tokens_are_counted_by_the_plugin_or_estimated() -> None:
    class Counting(GoodProvider):
        async def count_tokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
            return pb.CountTokensResponse(input_tokens=17)

    class NotCounting(GoodProvider):
        async def count_tokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
            raise RpcError("NOT_IMPLEMENTED", "not served")

    asked = pb.CountTokensRequest(attempt=attempt())
    async with serving(Counting()) as address, running_providers(acme=acme(address)) as client:
        counted = await client.count_tokens(asked, Call.internal(5))
    assert (counted.input_tokens, counted.estimated) == (17, False)
    async with serving(NotCounting()) as address, running_providers(acme=acme(address)) as client:
        counted = await client.count_tokens(asked, Call.internal(5))
    assert counted.input_tokens > 0
    assert counted.estimated


async def test_a_feature_that_is_missing_altogether() -> None:
    class ChatOnly(GoodProvider):
        async def get_capabilities(
            self, request: pb.GetCapabilitiesRequest, call: Call
        ) -> pb.GetCapabilitiesResponse:
            offered = pb.ProviderCapabilities(provider="good", features=["chat"])
            return pb.GetCapabilitiesResponse(providers=[offered])

    async with serving(ChatOnly()) as address, running_providers(acme=acme(address)) as client:
        with pytest.raises(RpcError, match="acme does not offer stream"):
            await stream_chat(client, attempt())
        with pytest.raises(RpcError, match="acme does not offer embed"):
            await client.embed(pb.EmbedRequest(provider="acme", model="m", inputs=["x"]), Call.internal(5))


async def test_a_plugin_that_is_down_at_start_is_picked_up_when_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin_module, "REFRESH_S", 0.05)
    port = free_port()
    async with running_providers(acme=acme(f"127.0.0.1:{port}")) as client:
        with pytest.raises(RpcError, match=f"127.0.0.1:{port} cannot be used") as caught:
            await chat(client, attempt())
        assert (caught.value.reason, caught.value.metadata["retryable"]) == ("PROVIDER_FAILED", "true")
        health = await client.check_health(pb.CheckHealthRequest(provider="acme"), Call.internal(5))
        assert not health.healthy
        async with serving(GoodProvider(), port):
            async with asyncio.timeout(60):
                while not (await _capabilities(client)).synthetic:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert (await chat(client, attempt())).message.parts
        with pytest.raises(RpcError) as caught:
            await chat(client, attempt())
        assert caught.value.reason == "PROVIDER_FAILED"


async def test_capabilities_are_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_module, "REFRESH_S", 0.05)

    class Growing(GoodProvider):
        more: tuple[str, ...] = ()

        async def get_capabilities(
            self, request: pb.GetCapabilitiesRequest, call: Call
        ) -> pb.GetCapabilitiesResponse:
            offered = await super().get_capabilities(request, call)
            offered.providers[0].features.extend(self.more)
            return offered

    provider = Growing()
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        await chat(client, attempt())
        assert "vision" not in (await _capabilities(client)).features
        provider.more = ("vision",)
        async with asyncio.timeout(60):
            while "vision" not in (await _capabilities(client)).features:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def _capabilities(client: ProviderService) -> pb.ProviderCapabilities:
    answer = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    return {each.provider: each for each in answer.providers}["acme"]


class Several(GoodProvider):
    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        names = ("one", "two")
        offered = [pb.ProviderCapabilities(provider=name, features=["chat"]) for name in names]
        return pb.GetCapabilitiesResponse(providers=offered)


async def test_which_of_several_providers_must_be_said() -> None:
    async with serving(Several()) as address, running_providers(acme=acme(address)) as client:
        with pytest.raises(
            RpcError, match="serves these providers: one, two; name one of them in remote_provider"
        ):
            await chat(client, attempt())


# --- faults ----------------------------------------------------------------------------------------


def started() -> list[pb.StreamChatResponse]:
    part = Part()
    part.text.SetInParent()
    return [
        pb.StreamChatResponse(start=pb.StreamStart(model="echo")),
        pb.StreamChatResponse(part_start=PartStart(index=0, part=part)),
        pb.StreamChatResponse(part_delta=PartDelta(index=0, text="word ")),
    ]


def ended() -> list[pb.StreamChatResponse]:
    end = pb.StreamEnd()
    end.finish.reason = "stop"
    return [pb.StreamChatResponse(part_stop=PartStop(index=0)), pb.StreamChatResponse(end=end)]


class Scripted(GoodProvider):
    """Streams these messages, then fails, hangs or ends."""

    def __init__(self, *messages: pb.StreamChatResponse, then: Exception | str = "") -> None:
        super().__init__()
        self.messages = messages
        self.then = then
        self.hangs = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.deadline: float | None = None

    async def stream_chat(
        self, request: pb.StreamChatRequest, call: Call
    ) -> AsyncIterator[pb.StreamChatResponse]:
        self.deadline = call.remaining_s()
        for message in self.messages:
            yield message
        if isinstance(self.then, Exception):
            raise self.then
        if self.then == "hang":
            self.hangs.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        async for _ in self.stream_chat(pb.StreamChatRequest(attempt=request.attempt), call):
            pass
        return pb.ChatResponse()


async def failure_of(provider: Scripted, **limits: float) -> tuple[RpcError, int]:
    """Return how a stream fails, and how many messages came before."""
    messages: list[pb.StreamChatResponse] = []

    async def read(client: ProviderService) -> None:
        async for message in client.stream_chat(pb.StreamChatRequest(attempt=attempt()), Call.internal(10)):
            messages.append(message)

    async with (
        serving(provider) as address,
        running_providers(acme=acme(address, timeouts=limits)) as client,
    ):
        with pytest.raises(RpcError) as caught:
            await read(client)
    assert caught.value.metadata["provider"] == "acme"
    return caught.value, len(messages)


async def test_a_stream_without_end_is_truncated() -> None:
    error, count = await failure_of(Scripted(*started()))
    assert (error.reason, error.metadata["phase"], count) == ("STREAM_TRUNCATED", "mid_stream", 3)


async def test_messages_after_the_end_are_a_protocol_error() -> None:
    error, count = await failure_of(Scripted(*started(), *ended(), *ended()))
    assert (error.reason, count) == ("PROVIDER_PROTOCOL", 4)
    assert "STREAM-2" in error.message


@pytest.mark.parametrize(
    ("messages", "clause"),
    [
        (started()[1:], "STREAM-1"),
        ([started()[0], started()[2]], "STREAM-4"),
        ([*started(), ended()[1]], "STREAM-5"),
        ([started()[0], pb.StreamChatResponse()], "STREAM-10"),
    ],
)
async def test_other_breaches_are_protocol_errors(messages: list[pb.StreamChatResponse], clause: str) -> None:
    error, _ = await failure_of(Scripted(*messages))
    assert error.reason == "PROVIDER_PROTOCOL"
    assert f"broke its contract ({clause})" in error.message


async def test_an_end_without_usage_is_counted() -> None:
    async with (
        serving(Scripted(*started(), *ended())) as address,
        running_providers(acme=acme(address)) as client,
    ):
        *_, end = await stream_chat(client, attempt())
    assert end.end.usage.estimated
    assert end.end.usage.output_total > 0


async def test_an_end_that_is_not_followed_by_the_end_of_the_call_is_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin_stream, "CLOSE_S", 0.05)
    provider = Scripted(*started(), *ended(), then="hang")
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        messages = await stream_chat(client, attempt())
        assert messages[-1].HasField("end")
        await asyncio.wait_for(provider.cancelled.wait(), 60)


@pytest.mark.parametrize(
    ("messages", "limits", "phase", "said"),
    [
        ([], {"first_token_s": 0.1}, "before_first_byte", "no first token within 0.1 s"),
        (started()[:1], {"first_token_s": 0.1}, "before_first_byte", "no first token within 0.1 s"),
        (started(), {"idle_s": 0.1}, "mid_stream", "no progress within 0.1 s"),
        (started(), {"total_s": 1}, "mid_stream", "did not finish in time"),
    ],
)
async def test_silence_ends_and_the_plugin_is_told(
    messages: list[pb.StreamChatResponse], limits: dict[str, float], phase: str, said: str
) -> None:
    provider = Scripted(*messages, then="hang")
    error, _ = await failure_of(provider, **limits)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", phase)
    assert said in error.message
    await asyncio.wait_for(provider.cancelled.wait(), 60)


async def test_limits_reach_the_plugin_as_its_deadline() -> None:
    provider = Scripted(*started(), *ended())
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        limited = attempt()
        limited.timeouts.total_ms = 7_000
        await stream_chat(client, limited)
    assert provider.deadline is not None
    assert 5 < provider.deadline < 8  # gRPC rounds up


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RpcError("PROVIDER_BILLING", "no money"), "PROVIDER_BILLING"),
        (RpcError("CONTENT_FILTERED", "no"), "CONTENT_FILTERED"),
        (RpcError("NOT_FOUND", "no such provider"), "PROVIDER_FAILED"),
        (RpcError("INSUFFICIENT_CREDITS", "ours alone"), "PROVIDER_FAILED"),
        (RpcError("UNAVAILABLE", "going down"), "PROVIDER_FAILED"),
        (RuntimeError("a bug"), "PROVIDER_FAILED"),
    ],
)
async def test_reasons_of_the_contract_pass_and_others_become_a_failure(
    error: Exception, reason: str
) -> None:
    seen, _ = await failure_of(Scripted(then=error))
    assert (seen.reason, seen.metadata["phase"]) == (reason, "before_first_byte")


async def test_details_of_an_error_pass() -> None:
    from services.common.rpc.errors import Violation

    limited = RpcError(
        "PROVIDER_RATE_LIMITED",
        "slow down",
        metadata={"http_status": "429", "provider_code": "busy", "retryable": "false", "own": "x"},
        retry_after_s=3,
    )
    seen, _ = await failure_of(Scripted(then=limited))
    assert seen.retry_after_s == 3
    assert (seen.metadata["http_status"], seen.metadata["provider_code"]) == ("429", "busy")
    assert seen.metadata["retryable"] == "false"
    assert "own" not in seen.metadata
    wrong = RpcError("INVALID_ARGUMENT", "bad", violations=[Violation("chat.seed", "too big")])
    seen, _ = await failure_of(Scripted(then=wrong))
    assert seen.violations == (Violation("chat.seed", "too big"),)


async def test_a_connection_that_breaks_in_mid_stream_truncates() -> None:
    server = GrpcServer(address := f"127.0.0.1:{free_port()}", gate=None)
    server.add(ProviderService, Scripted(*started(), then="hang"))
    await server.start()
    async with running_providers(acme=acme(address)) as client:
        stream: Any = client.stream_chat(pb.StreamChatRequest(attempt=attempt()), Call.internal(10))
        for _ in range(3):
            await anext(stream)
        await server.stop(0)
        with pytest.raises(RpcError) as caught:
            await anext(stream)
    assert (caught.value.reason, caught.value.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")


async def test_cancellation_reaches_the_plugin() -> None:
    provider = Scripted(*started(), then="hang")
    async with serving(provider) as address, running_providers(acme=acme(address)) as client:
        stream: Any = client.stream_chat(pb.StreamChatRequest(attempt=attempt()), Call.internal(10))
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
        await asyncio.wait_for(provider.cancelled.wait(), 10)
        provider.hangs.clear()
        provider.cancelled.clear()
        waiting = asyncio.create_task(chat(client, attempt()))
        await asyncio.wait_for(provider.hangs.wait(), 10)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(provider.cancelled.wait(), 10)


async def test_messages_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_stream, "FRAME_LIMIT", 1000)
    large = pb.StreamChatResponse(part_delta=PartDelta(index=0, text="x" * 2000))
    error, count = await failure_of(Scripted(*started(), large))
    assert (error.reason, count) == ("PROVIDER_PROTOCOL", 3)
    assert "a message exceeds 1000 bytes" in error.message


async def test_answers_that_are_none_are_protocol_errors() -> None:
    async with (
        serving(Scripted()) as address,
        running_providers(acme=acme(address)) as client,
    ):
        with pytest.raises(RpcError, match="does not say why it ended") as caught:
            await chat(client, attempt())
    assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_lost_vectors_are_a_protocol_error() -> None:
    class OneVector(GoodProvider):
        async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
            response = await super().embed(request, call)
            del response.embeddings[1:]
            return response

    async with serving(OneVector()) as address, running_providers(acme=acme(address)) as client:
        with pytest.raises(RpcError, match="returned 1 vectors for 2 inputs"):
            await client.embed(pb.EmbedRequest(provider="acme", model="hash", inputs="ab"), Call.internal(5))


async def test_an_unhealthy_plugin_is_said_to_be() -> None:
    class Unhealthy(GoodProvider):
        async def check_health(self, request: pb.CheckHealthRequest, call: Call) -> pb.CheckHealthResponse:
            return pb.CheckHealthResponse(healthy=False, detail="out of paper")

    async with serving(Unhealthy()) as address, running_providers(acme=acme(address)) as client:
        health = await client.check_health(pb.CheckHealthRequest(provider="acme"), Call.internal(5))
    assert not health.healthy
    assert "out of paper" in health.detail


# --- TLS -------------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """Return key and certificate of 127.0.0.1, the latter also written to ca.pem."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plugin")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, pem


async def test_tls(tmp_path: Path) -> None:
    credentials = grpc.ssl_server_credentials([certificate(tmp_path)])
    server = GrpcServer(address := f"127.0.0.1:{free_port()}", None, credentials)
    server.add(ProviderService, GoodProvider())
    await server.start()
    try:
        trusted = acme(address, tls=True, ca_file=str(tmp_path / "ca.pem"))
        async with running_providers(acme=trusted) as client:
            assert (await chat(client, attempt())).finish.reason == "stop"
        async with running_providers(acme=acme(address, tls=True)) as client:
            with pytest.raises(RpcError) as caught:
                await chat(client, attempt())
        assert caught.value.reason == "PROVIDER_FAILED"
    finally:
        await server.stop(0)
