"""Forwards attempts to a process outside the suite that serves ProviderService.

It is believed in nothing: its capabilities are asked first, its streams are held against the
contract, its errors are brought to the contract's reasons, and the limits of the attempt are kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from omnihub.common.v1.chat_pb2 import ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.common.rpc.external import ExternalServer, Tls
from services.formats.answers import written_chars
from services.formats.receipts import MOST as MOST_RECEIPTS
from services.providers.adapter import conversation_of
from services.providers.adapters.known import PLUGIN
from services.providers.adapters.plugin_forward import fit, needed_features
from services.providers.adapters.plugin_stream import PluginStream, failed
from services.providers.domain.count import estimate_input
from services.providers.domain.estimate import estimate_usage
from services.providers.domain.failure import Failures, ProviderError, UnsupportedError
from services.providers.domain.plugin import Plugin, choose_provider
from services.providers.domain.stream_contract import StreamContract
from services.providers.embedding import embedding_inputs
from services.providers.http import Timeouts
from services.providers.receipts import account, embedding_receipt
from services.providers.settings import TimeoutSettings

SERVICE = ProviderService.DESCRIPTOR.full_name
# What is free must also be quick.
QUICK_S = 5.0
REFRESH_S = 2.0
# Until a plugin was heard it is taken to do what nearly all do: requests reach it and learn what is wrong.
_UNHEARD = ("chat", "stream", "embed")

_logger = logging.getLogger(__name__)


class PluginAdapter:
    """One provider of one plugin. `start` and `stop` belong to the service's life."""

    adapter = PLUGIN

    def __init__(self, plugin: Plugin, timeouts: TimeoutSettings) -> None:
        self.plugin = plugin
        self.name = plugin.name
        self.wire_formats: Sequence[WireFormat.ValueType] = ()
        self.features: Sequence[str] = _UNHEARD
        self.synthetic = False
        self.problem = "it has not been asked yet"
        """What was wrong the last time it was asked; empty when it answered."""
        self._timeouts = timeouts
        self._remote = ""
        self._server: ExternalServer | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow what the plugin can do. It need not be there yet."""
        self._open()
        self._task = asyncio.create_task(self._follow())

    async def stop_following(self) -> None:
        """Ask no more what it can do; attempts under way go on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def stop(self) -> None:
        """Hang up."""
        await self.stop_following()
        if self._server is not None:
            await self._server.close()

    async def _follow(self) -> None:
        while True:
            # `problem` says what is wrong; an attempt that fails tells its caller.
            try:
                with contextlib.suppress(ProviderError):
                    await self.refresh()
            except Exception:
                _logger.exception("plugin_not_refreshed %s", self.name)
            await asyncio.sleep(REFRESH_S)

    def _open(self) -> ExternalServer:
        if self._server is None:
            tls = Tls(self.plugin.ca_certificate) if self.plugin.tls else None
            self._server = ExternalServer(self.plugin.address, tls, self._timeouts.connect_s)
        return self._server

    async def refresh(self) -> None:
        """Ask what the plugin can do. Raises ProviderError when it does not say."""
        try:
            await self._refresh()
        except RpcError as error:
            self.problem = f"the plugin at {self.plugin.address} cannot be used: {error.message}"
        if self.problem:
            raise Failures(self.name, "").of("PROVIDER_FAILED", self.problem)

    async def _refresh(self) -> None:
        server = self._open()
        if await server.serving(SERVICE, QUICK_S) is False:
            self.problem = f"the plugin at {self.plugin.address} says that it is not serving"
            return
        client = server.client(ProviderService)
        answer = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(QUICK_S))
        served = {each.provider: each for each in answer.providers}
        remote = choose_provider(self.name, self.plugin.remote_provider, list(served))
        if not remote:
            listed = ", ".join(sorted(served)) or "none"
            self.problem = (
                f"the plugin at {self.plugin.address} serves these providers: {listed}; "
                "name one of them in remote_provider"
            )
            return
        offered = served[remote]
        self._remote = remote
        self.features = tuple(offered.features)
        self.wire_formats = tuple(offered.wire_formats)
        self.synthetic = offered.synthetic
        self.problem = ""

    async def _client(self, feature: str) -> ProviderService:
        """Return the client, once it is known that the plugin offers `feature`."""
        if not self._remote:
            await self.refresh()
        self._require(feature, "")
        return self._open().client(ProviderService)

    def _require(self, feature: str, field: str) -> None:
        if feature not in self.features:
            raise UnsupportedError(self.name, f"{self.name} does not offer {feature}", field)

    def _forward(self, attempt: pb.Attempt) -> tuple[pb.Attempt, Sequence[ParameterReceipt]]:
        """Return the attempt in a form that the plugin takes, and what could not be kept."""
        if attempt.prefill_text:
            self._require("prefill", "prefill_text")
        forwarded = pb.Attempt()
        forwarded.CopyFrom(attempt)
        forwarded.provider = self._remote
        spoken = attempt.wire_format in self.wire_formats and not attempt.typed
        if not (attempt.raw_body and spoken) or attempt.prefill_text:
            forwarded.chat.CopyFrom(conversation_of(attempt))
            for field in ("raw_body", "wire_format", "headers", "prefill_text", "typed"):
                forwarded.ClearField(field)
        for feature, field in needed_features(forwarded.chat):
            self._require(feature, field)
        return forwarded, fit(forwarded, self.features, self.name)

    async def chat(self, attempt: pb.Attempt) -> pb.ChatResponse:
        """Answer at once."""
        client = await self._client("chat")
        forwarded, receipt = self._forward(attempt)
        failures = Failures(self.name, attempt.model)
        call = self._call(attempt.attempt_id, self._limits(attempt.timeouts).total_s)
        try:
            response = await client.chat(pb.ChatRequest(attempt=forwarded), call)
        except RpcError as error:
            raise failed(error, failures) from None
        wrong = ""
        if not response.finish.reason:
            wrong = "its answer does not say why it ended"
        elif response.HasField("raw_body") and not forwarded.raw_body:
            wrong = "it answered in a wire format that was not asked for"
        elif not response.HasField("raw_body") and not response.HasField("message"):
            wrong = "its answer has no content"
        if wrong:
            raise failures.of("PROVIDER_PROTOCOL", wrong)
        if not response.HasField("usage"):
            # Nobody here reads its raw bodies: that is the most that it can have written.
            size = len(response.raw_body) or written_chars(response.message)
            response.usage.CopyFrom(estimate_usage(_size_of(forwarded), size))
        told = [*receipt, *response.receipt]
        response.ClearField("receipt")
        response.receipt.extend(_accounted(attempt, forwarded, told))
        return response

    async def stream_chat(self, attempt: pb.Attempt) -> AsyncGenerator[pb.StreamChatResponse, None]:
        """Answer as it comes; the last message is `end`."""
        client = await self._client("stream")
        forwarded, receipt = self._forward(attempt)
        limits = self._limits(attempt.timeouts)
        call = self._call(attempt.attempt_id, limits.total_s)
        stream: Any = client.stream_chat(pb.StreamChatRequest(attempt=forwarded), call)
        contract = StreamContract(forwarded.wire_format)
        reader = PluginStream(stream, contract, limits, Failures(self.name, attempt.model))
        async with aclosing(stream):
            while True:
                message = await reader.read()
                if message.HasField("start"):
                    told = [*receipt, *message.start.receipt]
                    message.start.ClearField("receipt")
                    message.start.receipt.extend(_accounted(attempt, forwarded, told))
                elif message.HasField("end") and not message.end.HasField("usage"):
                    message.end.usage.CopyFrom(estimate_usage(_size_of(forwarded), reader.output_chars))
                yield message
                if contract.ended:
                    return

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Return vectors in the order of the inputs."""
        client = await self._client("embed")
        failures = Failures(self.name, request.model)
        forwarded = pb.EmbedRequest()
        forwarded.CopyFrom(request)
        forwarded.provider = self._remote
        receipt: Sequence[ParameterReceipt] = ()
        if not request.raw_body or WireFormat.WIRE_FORMAT_OPENAI_CHAT not in self.wire_formats:
            receipt = embedding_receipt(self.name, request, {"dimensions": "dimensions"})
        if request.raw_body and receipt:
            inputs, dimensions = embedding_inputs(request)
            forwarded.raw_body = b""
            forwarded.inputs.extend(inputs)
            if dimensions:
                forwarded.dimensions = dimensions
        call = self._call("", self._limits(request.timeouts).total_s)
        try:
            response = await client.embed(forwarded, call)
        except RpcError as error:
            raise failed(error, failures) from None
        if response.HasField("raw_body"):
            if not forwarded.raw_body:
                raise failures.of("PROVIDER_PROTOCOL", "it answered in a wire format that was not asked for")
        elif forwarded.inputs and len(response.embeddings) != len(forwarded.inputs):
            message = f"returned {len(response.embeddings)} vectors for {len(forwarded.inputs)} inputs"
            raise failures.of("PROVIDER_PROTOCOL", message)
        if not response.HasField("usage"):
            response.usage.CopyFrom(estimate_usage(forwarded.ByteSize(), 0))
            response.usage.output_total = 0
        told = _embedding_told(request, response.receipt, receipt)
        response.ClearField("receipt")
        response.receipt.extend(told)
        return response

    async def count_tokens(self, attempt: pb.Attempt) -> pb.CountTokensResponse:
        """Let the plugin count; estimate where it does not."""
        if not self._remote:
            await self.refresh()
        forwarded, _ = self._forward(attempt)
        client = self._open().client(ProviderService)
        try:
            return await client.count_tokens(
                pb.CountTokensRequest(attempt=forwarded), Call.internal(6 * QUICK_S)
            )
        except RpcError as error:
            if error.reason != "NOT_IMPLEMENTED":
                raise failed(error, Failures(self.name, attempt.model)) from None
        tokens = estimate_input(conversation_of(attempt))
        return pb.CountTokensResponse(input_tokens=tokens, estimated=True)

    async def list_models(self) -> list[pb.ProviderModel]:
        """Return the models the plugin lists."""
        if not self._remote:
            await self.refresh()
        client = self._open().client(ProviderService)
        try:
            answer = await client.list_models(
                pb.ListModelsRequest(provider=self._remote), Call.internal(6 * QUICK_S)
            )
        except RpcError as error:
            raise failed(error, Failures(self.name, "")) from None
        return list(answer.models)

    async def check_health(self) -> None:
        """Raise when the plugin cannot be reached, or says that its provider cannot."""
        await self.refresh()
        client = self._open().client(ProviderService)
        failures = Failures(self.name, "")
        try:
            answer = await client.check_health(
                pb.CheckHealthRequest(provider=self._remote), Call.internal(6 * QUICK_S)
            )
        except RpcError as error:
            raise failed(error, failures) from None
        if not answer.healthy:
            raise failures.of("PROVIDER_FAILED", answer.detail or "says that it is not healthy")

    def _call(self, attempt_id: str, total_s: float) -> Call:
        """Return a call that says nothing about the caller: a plugin is a third party."""
        return Call(Call.internal().request_id, idempotency_key=attempt_id).within(total_s)

    def _limits(self, wanted: pb.Timeouts) -> Timeouts:
        own = self._timeouts
        return Timeouts(
            own.connect_s,
            wanted.first_token_ms / 1000 or own.first_token_s,
            wanted.idle_ms / 1000 or own.idle_s,
            wanted.total_ms / 1000 or own.total_s,
        )


def _accounted(
    attempt: pb.Attempt, forwarded: pb.Attempt, told: Sequence[ParameterReceipt]
) -> Sequence[ParameterReceipt]:
    """Return a plugin's receipt in the caller's terms. What it does not mention counts as dropped."""
    if not forwarded.raw_body:
        model = ParameterReceipt(name="model", outcome="translated", detail=attempt.model)
        told = account(attempt, [model, *told])
    return told[:MOST_RECEIPTS]


def _embedding_told(
    request: pb.EmbedRequest, told: Sequence[ParameterReceipt], own: Sequence[ParameterReceipt]
) -> Sequence[ParameterReceipt]:
    """Return a plugin's receipt in the caller's terms, with what it does not mention as it was `own`."""
    if not own:
        return told[:MOST_RECEIPTS]
    # The plugin's name of the model is its own business; a body has another name for the texts.
    known = [each for each in told if each.name not in ("model", "inputs" if request.raw_body else "")]
    names = {each.name for each in known}
    return [*(each for each in own if each.name not in names), *known][:MOST_RECEIPTS]


def _size_of(attempt: pb.Attempt) -> int:
    return len(attempt.raw_body) or attempt.chat.ByteSize()
