"""Plugins that are registered while running: validated, kept, seen by every replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.provider.v1 import plugin_service_pb2 as pb
from omnihub.provider.v1 import provider_service_pb2 as provider_pb
from omnihub.provider.v1.plugin_service_api import PluginService
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, Connector, Registry, RpcError
from services.common.rpc.server import check_constraints
from services.common.service import Infrastructure
from services.providers.app import build
from services.providers.settings import ProviderSettings
from tests.support.plugins import GoodProvider, serving
from tests.support.ports import free_port


class Replica:
    """One process that serves providers."""

    def __init__(self, connector: Connector) -> None:
        self.plugins: PluginService = connector.connect(PluginService, "providers")
        self.providers: ProviderService = connector.connect(ProviderService, "providers")

    async def register(self, name: str, address: str, force: bool = False, **fields: Any) -> pb.PluginState:
        plugin = pb.Plugin(name=name, address=address, **fields)
        request = pb.RegisterPluginRequest(plugin=plugin, force=force)
        return (await self.plugins.register_plugin(request, Call.internal(10))).plugin

    async def names(self) -> list[str]:
        answer = await self.plugins.list_plugins(pb.ListPluginsRequest(), Call.internal(5))
        return [each.plugin.name for each in answer.plugins]

    async def remove(self, name: str) -> None:
        await self.plugins.remove_plugin(pb.RemovePluginRequest(name=name), Call.internal(5))

    async def ask(self, provider: str) -> str:
        chat = ChatInput(messages=[Message(role="user", content="hi")])
        request = provider_pb.ChatRequest(
            attempt=provider_pb.Attempt(provider=provider, model="echo", chat=chat)
        )
        return (await self.providers.chat(request, Call.internal(5))).message.parts[0].text.text


@asynccontextmanager
async def replica(database_url: str, **providers: ProviderSettings) -> AsyncIterator[Replica]:
    registry = Registry()
    connector = Connector(registry, {})
    service = build(
        providers, Infrastructure(connector=connector, data_dir=Path(), database_url=database_url)
    )
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
    await service.start()
    try:
        yield Replica(connector)
    finally:
        await service.stop()


async def test_a_registered_plugin_answers_and_outlives_a_restart(database_url: str) -> None:
    async with serving(GoodProvider()) as address:
        async with replica(database_url) as one:
            state = await one.register("acme", address)
            assert state.reachable
            assert list(state.features) == ["chat", "stream", "embed"]
            assert await one.ask("acme")
            again = await one.register("acme", address)
            assert again.plugin == state.plugin
        async with replica(database_url) as one:
            assert await one.names() == ["acme"]
            assert await one.ask("acme")
            await one.remove("acme")
            assert await one.names() == []
            with pytest.raises(RpcError, match="no provider is called 'acme'"):
                await one.ask("acme")
            with pytest.raises(RpcError) as caught:
                await one.remove("acme")
            assert caught.value.reason == "NOT_FOUND"


@pytest.mark.postgresql
async def test_other_replicas_follow_within_5_s(postgresql_url: str) -> None:
    async with (
        serving(GoodProvider()) as address,
        replica(postgresql_url) as one,
        replica(postgresql_url) as two,
    ):
        await one.register("acme", address)
        began = time.monotonic()
        while await two.names() != ["acme"]:
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.05)
        assert await two.ask("acme")
        await two.remove("acme")
        began = time.monotonic()
        while await one.names():
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.05)


async def test_what_does_not_answer_is_refused_unless_forced(database_url: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with replica(database_url) as one:
        with pytest.raises(RpcError, match="start it and register it again, or set `force`") as caught:
            await one.register("acme", address)
        assert caught.value.reason == "PRECONDITION_FAILED"
        assert caught.value.metadata == {"name": "acme", "address": address}
        assert await one.names() == []
        state = await one.register("acme", address, force=True)
        assert not state.reachable
        assert "cannot be used" in state.detail
        assert await one.names() == ["acme"]


async def test_a_server_of_something_else_is_refused(tmp_path: Path) -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.test\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", free_port())
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, replica(f"sqlite:///{tmp_path / 'p.db'}") as one:
        with pytest.raises(RpcError) as caught:
            await one.register("acme", address)
    assert caught.value.reason == "PRECONDITION_FAILED"


async def test_names_and_addresses_are_checked(tmp_path: Path) -> None:
    async with serving(GoodProvider()) as address, replica(f"sqlite:///{tmp_path / 'p.db'}") as one:
        for bad in (
            "",
            "nowhere",
            "host:",
            ":1",
            "host:0",
            "host:99999",
            "http://host:1",
            "a b:1",
            "[::g]:1",
        ):
            with pytest.raises(RpcError) as caught:
                await one.register("acme", bad)
            assert caught.value.reason == "INVALID_ARGUMENT"
            assert caught.value.violations[0].field == "plugin.address"
        with pytest.raises(RpcError, match=r"plugin\.ca_certificate: set `tls` as well"):
            await one.register("acme", address, ca_certificate="x")
        with pytest.raises(RpcError, match="is not a PEM certificate"):
            await one.register("acme", address, tls=True, ca_certificate="x")
        with pytest.raises(RpcError, match="name one of them in remote_provider"):
            await one.register("acme", address, remote_provider="nobody")
        await one.register("acme", address, remote_provider="good")
        with pytest.raises(RpcError, match="another plugin is registered") as caught:
            await one.register("acme", address)
        assert caught.value.reason == "ALREADY_EXISTS"
    for name in ("", "Acme", "a/b", "-a", "a" * 64):
        with pytest.raises(RpcError, match="name"):
            check_constraints(pb.RegisterPluginRequest(plugin=pb.Plugin(name=name, address="h:1")))


async def test_what_the_file_declares_is_shown_and_kept(tmp_path: Path) -> None:
    async with serving(GoodProvider()) as address:
        declared = ProviderSettings(adapter="plugin", address=address)
        async with replica(f"sqlite:///{tmp_path / 'p.db'}", wall=declared) as one:
            await one.ask("wall")
            listed = await one.plugins.list_plugins(pb.ListPluginsRequest(), Call.internal(5))
            assert [(each.plugin.name, each.managed_by_file) for each in listed.plugins] == [("wall", True)]
            with pytest.raises(RpcError, match=r"omnihub\.toml declares a provider") as caught:
                await one.register("wall", address)
            assert caught.value.reason == "ALREADY_EXISTS"
            with pytest.raises(RpcError, match=r"omnihub\.toml declares a provider"):
                await one.register("local", address)
            with pytest.raises(RpcError, match="change the file") as caught:
                await one.remove("wall")
            assert caught.value.reason == "PRECONDITION_FAILED"


async def test_pages(tmp_path: Path) -> None:
    async with serving(GoodProvider()) as address, replica(f"sqlite:///{tmp_path / 'p.db'}") as one:
        for name in ("c", "a", "b"):
            await one.register(name, address)
        first = await one.plugins.list_plugins(pb.ListPluginsRequest(page_size=2), Call.internal(5))
        assert [each.plugin.name for each in first.plugins] == ["a", "b"]
        request = pb.ListPluginsRequest(page_size=2, page_token=first.next_page_token)
        second = await one.plugins.list_plugins(request, Call.internal(5))
        assert [each.plugin.name for each in second.plugins] == ["c"]
        assert not second.next_page_token
        with pytest.raises(RpcError, match="not a page token"):
            await one.plugins.list_plugins(pb.ListPluginsRequest(page_token="x"), Call.internal(5))
