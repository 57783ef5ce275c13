"""The plugins in use: those of the configuration, and those of the table, as it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable
from contextlib import aclosing

from sqlalchemy.exc import SQLAlchemyError

from services.common import clock
from services.common.change_feed import POLL_S, ChangeFeed
from services.providers.adapters.plugin import PluginAdapter
from services.providers.domain.failure import ProviderError
from services.providers.domain.plugin import (
    ManagedByFileError,
    Plugin,
    PluginExistsError,
    PluginNotFoundError,
    UnreachablePluginError,
    check_address,
    check_certificate,
)
from services.providers.settings import TimeoutSettings
from services.providers.store import PluginStore

_logger = logging.getLogger(__name__)
# A plugin that was removed may be answering; what it began may go on for as long as an attempt may.
LINGER_S = 600.0


class Plugins:
    """Keeps one adapter for each plugin. `registered` is a live view for the server."""

    def __init__(
        self,
        declared: Iterable[PluginAdapter],
        taken: Collection[str],
        store: PluginStore,
        feed: ChangeFeed,
    ) -> None:
        self.declared = {adapter.name: adapter for adapter in declared}
        self.registered: dict[str, PluginAdapter] = {}
        self._taken = taken
        self._store = store
        self._feed = feed
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        # Two changes at a time must not both start an adapter for the same plugin.
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Take up the plugins. They need not be there yet."""
        for adapter in self.declared.values():
            adapter.start()
        position = await self._feed.position()
        await self._load()
        self._task = asyncio.create_task(self._follow(position))

    async def stop(self) -> None:
        """Hang up on all."""
        tasks = [*self._leaving, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for adapter in [*self.declared.values(), *self.registered.values()]:
            await adapter.stop()

    async def _follow(self, seq: int) -> None:
        while True:
            try:
                async with aclosing(self._feed.watch(seq)) as news:  # type: ignore[type-var]
                    async for found, position in news:
                        if found:
                            await self._load()
                        seq = position
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("plugins_not_followed %s", type(error).__name__)
            except Exception:
                _logger.exception("plugins_not_followed")
            await asyncio.sleep(POLL_S)

    async def _load(self) -> None:
        """Bring the adapters in line with the table."""
        async with self._changing:
            wanted = await self._store.all()
            for name, adapter in list(self.registered.items()):
                if wanted.get(name) != adapter.plugin:
                    del self.registered[name]
                    self._retire(adapter)
            for name, plugin in wanted.items():
                if name in self._taken:
                    _logger.warning("plugin_hidden_by_configuration %s", name)
                elif name not in self.registered:
                    self._take_up(PluginAdapter(plugin, TimeoutSettings()))

    def _take_up(self, adapter: PluginAdapter) -> None:
        adapter.start()
        self.registered[adapter.name] = adapter

    def _retire(self, adapter: PluginAdapter) -> None:
        task = asyncio.create_task(_stop_later(adapter))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def register(self, plugin: Plugin, force: bool) -> PluginAdapter:
        """Add a plugin that answers, or any when forced. Raises the errors of domain.plugin."""
        check_address(plugin.address)
        check_certificate(plugin)
        if plugin.name in self._taken:
            raise PluginExistsError(plugin.name, by_file=True)
        existing = (await self._store.all()).get(plugin.name)
        if existing is None:
            await _check_answers(plugin, force)
            if await self._store.add(plugin, clock.now()):
                _logger.info("plugin_registered %s %s", plugin.name, plugin.address)
            else:
                existing = (await self._store.all()).get(plugin.name)
        if existing not in (None, plugin):
            raise PluginExistsError(plugin.name, by_file=False)
        await self._load()
        adapter = self.registered.get(plugin.name)
        if adapter is None:
            raise PluginNotFoundError(plugin.name)  # Somebody removed it at the same time.
        # When it was forced it may not answer; `problem` says so.
        with contextlib.suppress(ProviderError):
            await adapter.refresh()
        return adapter

    async def remove(self, name: str) -> None:
        """Remove a plugin. Raises PluginNotFoundError, ManagedByFileError."""
        if name in self.declared:
            raise ManagedByFileError(name)
        if not await self._store.remove(name):
            raise PluginNotFoundError(name)
        _logger.info("plugin_removed %s", name)
        await self._load()

    def all(self) -> list[PluginAdapter]:
        """Return the plugins in use, by name."""
        return sorted([*self.declared.values(), *self.registered.values()], key=lambda each: each.name)


async def _check_answers(plugin: Plugin, force: bool) -> None:
    if force:
        return
    probe = PluginAdapter(plugin, TimeoutSettings())
    try:
        await probe.refresh()
    except ProviderError:
        raise UnreachablePluginError(plugin, probe.problem) from None
    finally:
        await probe.stop()


async def _stop_later(adapter: PluginAdapter) -> None:
    try:
        await adapter.stop_following()
        await asyncio.sleep(LINGER_S)
    finally:
        await adapter.stop()
