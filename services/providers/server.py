"""Serves omnihub.provider.v1: finds the adapter and passes the message on; keeps the list of plugins."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from omnihub.provider.v1 import plugin_service_pb2 as plugin_pb
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1 import stored_response_service_pb2 as stored_pb

from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call
from services.formats import openai_responses
from services.providers.adapter import Adapter, ResponseKeeper, Stream, TokenCounter, conversation_of
from services.providers.adapters.plugin import PluginAdapter
from services.providers.counting import estimated
from services.providers.domain.failure import ProviderError, UnknownProviderError, UnsupportedError
from services.providers.domain.plugin import Plugin
from services.providers.plugins import Plugins

_PAGE_SIZE = 100


class ProviderServer:
    """One attempt per call, at the provider it names."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self._adapters = adapters

    def _adapter(self, provider: str) -> Adapter:
        adapter = self._adapters.get(provider)
        if adapter is None:
            raise UnknownProviderError(provider, list(self._adapters))
        return adapter

    async def get_capabilities(
        self, request: pb.GetCapabilitiesRequest, call: Call
    ) -> pb.GetCapabilitiesResponse:
        """Say what each provider can do."""
        response = pb.GetCapabilitiesResponse()
        for name, adapter in sorted(self._adapters.items()):
            response.providers.add(
                provider=name,
                adapter=adapter.adapter,
                wire_formats=adapter.wire_formats,
                features=adapter.features,
                synthetic=adapter.synthetic,
            )
        return response

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """List the models of one provider."""
        return pb.ListModelsResponse(models=await self._adapter(request.provider).list_models())

    async def check_health(self, request: pb.CheckHealthRequest, call: Call) -> pb.CheckHealthResponse:
        """Check that a provider can be reached and takes the credential."""
        adapter = self._adapter(request.provider)
        started = time.monotonic()
        detail = ""
        try:
            await adapter.check_health()
        except ProviderError as error:
            detail = f"{error.reason}: {error.message}"
        latency_ms = round((time.monotonic() - started) * 1000)
        return pb.CheckHealthResponse(healthy=not detail, detail=detail, latency_ms=latency_ms)

    async def chat(self, request: pb.ChatRequest, call: Call) -> pb.ChatResponse:
        """Ask once and wait for the whole answer."""
        return await self._adapter(request.attempt.provider).chat(request.attempt)

    def stream_chat(self, request: pb.StreamChatRequest, call: Call) -> Stream:
        """Ask once and pass the answer on as it comes."""
        return self._adapter(request.attempt.provider).stream_chat(request.attempt)

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Turn texts into vectors."""
        return await self._adapter(request.provider).embed(request)

    async def count_tokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        """Count the input tokens of a conversation, or estimate them."""
        adapter = self._adapter(request.attempt.provider)
        if isinstance(adapter, TokenCounter):
            return await adapter.count_tokens(request.attempt)
        return estimated(conversation_of(request.attempt))


class StoredResponseServer:
    """What providers keep of their answers."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        self._adapters = adapters

    def _keeper(self, provider: str) -> ResponseKeeper:
        adapter = self._adapters.get(provider)
        if adapter is None:
            raise UnknownProviderError(provider, list(self._adapters))
        if not isinstance(adapter, ResponseKeeper):
            raise UnsupportedError(provider, f"{provider} keeps no responses")
        return adapter

    async def ask_stored_response(
        self, request: stored_pb.AskStoredResponseRequest, call: Call
    ) -> stored_pb.AskStoredResponseResponse:
        """Read, delete or cancel a response, or list its input."""
        body = await self._keeper(request.provider).ask_stored(request)
        response = stored_pb.AskStoredResponseResponse(raw_body=body)
        facts = openai_responses.read_stored_facts(body)
        response.status = facts.status
        if facts.finish is not None:
            response.finish.CopyFrom(facts.finish)
        if facts.usage is not None:
            response.usage.CopyFrom(facts.usage)
        return response

    async def follow_stored_response(
        self, request: stored_pb.FollowStoredResponseRequest, call: Call
    ) -> AsyncGenerator[stored_pb.FollowStoredResponseResponse, None]:
        """Pass on the events of a response."""
        async with aclosing(self._keeper(request.provider).follow_stored(request)) as stream:
            async for event in stream:
                yield stored_pb.FollowStoredResponseResponse(event=event)


class PluginServer:
    """The plugins that were registered while running, and those that the configuration declares."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    async def register_plugin(
        self, request: plugin_pb.RegisterPluginRequest, call: Call
    ) -> plugin_pb.RegisterPluginResponse:
        wanted = request.plugin
        plugin = Plugin(
            name=wanted.name,
            address=wanted.address,
            remote_provider=wanted.remote_provider,
            tls=wanted.tls,
            ca_certificate=wanted.ca_certificate,
        )
        adapter = await self._plugins.register(plugin, request.force)
        return plugin_pb.RegisterPluginResponse(plugin=_state(adapter, managed_by_file=False))

    async def list_plugins(
        self, request: plugin_pb.ListPluginsRequest, call: Call
    ) -> plugin_pb.ListPluginsResponse:
        after = decode_page_token(request.page_token, 1)[0] if request.page_token else ""
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE)
        following = [adapter for adapter in self._plugins.all() if adapter.name > after]
        page = following[:size]
        return plugin_pb.ListPluginsResponse(
            plugins=[_state(each, each.name in self._plugins.declared) for each in page],
            next_page_token=encode_page_token(page[-1].name) if len(following) > size else "",
        )

    async def remove_plugin(
        self, request: plugin_pb.RemovePluginRequest, call: Call
    ) -> plugin_pb.RemovePluginResponse:
        await self._plugins.remove(request.name)
        return plugin_pb.RemovePluginResponse()


def _state(adapter: PluginAdapter, managed_by_file: bool) -> plugin_pb.PluginState:
    plugin = adapter.plugin
    return plugin_pb.PluginState(
        plugin=plugin_pb.Plugin(
            name=plugin.name,
            address=plugin.address,
            remote_provider=plugin.remote_provider,
            tls=plugin.tls,
            ca_certificate=plugin.ca_certificate,
        ),
        managed_by_file=managed_by_file,
        reachable=not adapter.problem,
        detail=adapter.problem,
        features=adapter.features,
        wire_formats=adapter.wire_formats,
    )
