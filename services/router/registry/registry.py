"""The models in use: those of the file and those of the registry, as it changes. No request waits for this.

The catalogue is built anew from the definitions in memory and put in place of the old one, after each change
of a model or a provider; a request goes on with the catalogue it began with.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from services.common import clock
from services.common.change_feed import POLL_S, ChangeFeed
from services.router.domain.catalogue import REGISTRY, Catalogue, Definition, Provenance, Provider
from services.router.domain.registration import (
    FallbackInUseError,
    InvalidModelError,
    ManagedByFileError,
    ModelExistsError,
    NoSuchModelError,
    NoSuchRevisionError,
    RegistryError,
    StaleRevisionError,
    Surroundings,
    check,
    check_new_name,
    owners_of,
    read_document,
    write_document,
)
from services.router.registry.store import Change, ModelStore, Revision, Stored
from services.router.settings import RouteSettings

Document = Mapping[str, Any]
Edit = Callable[[RouteSettings], Document]
_logger = logging.getLogger(__name__)


class ModelRegistry:
    """Keeps the definitions in memory, changes them, and hands each new catalogue to `use`."""

    def __init__(
        self,
        routes: Mapping[str, RouteSettings],
        store: ModelStore,
        feed: ChangeFeed,
        use: Callable[[Catalogue], None],
    ) -> None:
        self.routes = routes
        self._store = store
        self._feed = feed
        self._use = use
        self._providers: tuple[Provider, ...] | None = None
        self._stored: dict[str, Stored] = {}
        self.definitions: Mapping[str, Definition] = {}
        self.catalogue = Catalogue({})
        self._task: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Load everything and begin to follow changes."""
        position = await self._feed.position()
        await self.load()
        self._task = asyncio.create_task(self._follow(position))

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, seq: int) -> None:
        while True:
            try:
                async with aclosing(self._feed.watch(seq)) as news:  # type: ignore[type-var]
                    async for found, position in news:
                        if found:
                            await self.load({change.key for change in found})
                        seq = position
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("registry_not_followed %s", type(error).__name__)
            except Exception:
                _logger.exception("registry_not_followed")
            await asyncio.sleep(POLL_S)

    def take_providers(self, providers: Iterable[Provider]) -> None:
        """Take in which providers there are now."""
        known = tuple(providers)
        if known != self._providers:
            self._providers = known
            self._rebuild()

    async def load(self, names: Iterable[str] | None = None) -> None:
        """Read models, all without `names`, and use them."""
        async with self._loading:
            rows = await self._store.read(names)
            changed = [row for row in rows if self._stored.get(row.name) != row]
            if not changed:
                return
            definitions = dict(self.definitions)
            for row in changed:
                self._stored[row.name] = row
                definition = _definition(row)
                if definition is None:
                    definitions.pop(row.name, None)
                else:
                    definitions[row.name] = definition
            self.definitions = dict(sorted(definitions.items()))
            self._rebuild()

    def _rebuild(self) -> None:
        self.catalogue = Catalogue.build(self.routes, self._providers or (), self.definitions.values())
        self._use(self.catalogue)

    async def create(self, name: str, document: Document, actor: str) -> None:
        """Add a model; the same definition again changes nothing. Raises RegistryError."""
        check_new_name(name)
        settings = self._checked(name, document, None)

        def decide(before: Stored | None) -> RouteSettings:
            if before is not None and before.document not in (None, write_document(settings)):
                raise ModelExistsError(name)
            return settings

        await self._change(name, "create", actor, decide)

    async def update(self, name: str, revision: int, act: str, actor: str, edit: Edit) -> None:
        """Make a model what `edit` returns for it. Raises RegistryError."""

        def decide(before: Stored | None) -> RouteSettings:
            current = _expected(name, before, revision)
            return self._checked(name, edit(current), current)

        await self._change(name, act, actor, decide)

    async def delete(self, name: str, revision: int, actor: str) -> None:
        """Remove a model. Raises RegistryError."""

        def decide(before: Stored | None) -> None:
            _expected(name, before, revision)
            users = [other for other, each in self._all().items() if name in each.fallback and other != name]
            if users:
                raise FallbackInUseError(name, users)

        await self._change(name, "delete", actor, decide)

    async def rollback(self, name: str, to: int, revision: int, actor: str) -> None:
        """Make a model what it was after the revision `to`. Raises RegistryError."""
        found = await self._store.revisions(name, to + 1, 1)
        if not found or found[0].revision != to:
            await self._must_have_history(name)
            raise NoSuchRevisionError(name, to)
        document = found[0].after
        if document is None:
            raise RegistryError(f"revision {to} deleted {name!r}: choose an earlier one", name=name)

        def decide(before: Stored | None) -> RouteSettings:
            if before is not None and revision and before.revision != revision:
                raise StaleRevisionError(name, revision, before.revision)
            stays = None if before is None or before.document is None else _parsed(before.document)
            return self._checked(name, json.loads(document), stays)

        await self._change(name, "rollback", actor, decide)

    async def revisions(self, name: str, below: int, limit: int) -> list[Revision]:
        """Return the changes of a model, newest first. Raises NoSuchModelError."""
        found = await self._store.revisions(name, below, limit)
        if not found and not below:
            raise NoSuchModelError(name)
        return found

    async def _must_have_history(self, name: str) -> None:
        if name in self.routes:
            raise ManagedByFileError(name)
        if not await self._store.revisions(name, 0, 1):
            raise NoSuchModelError(name)

    async def _change(
        self, name: str, act: str, actor: str, decide: Callable[[Stored | None], RouteSettings | None]
    ) -> None:
        if name in self.routes:
            raise ManagedByFileError(name)
        async with self._store.unit() as unit:
            before = (await unit.read([name])).get(name)
            after = decide(before)
            document = None if after is None else write_document(after)
            if before is not None and before.document == document:
                return
            names = [] if after is None else [name, *after.aliases]
            imported = None if before is None else before.imported
            change = Change(name, before, document, imported, names, act)
            await unit.write([change], actor, milliseconds())
        _logger.info("model_changed name=%s act=%s actor=%s", name, act, actor)
        await self.load([name])

    def _checked(self, name: str, document: Document, current: RouteSettings | None) -> RouteSettings:
        """Return a definition that fits the others. Raises InvalidModelError."""
        settings = read_document(document)
        configured = self._providers or ()
        providers = {provider.name for provider in configured}
        providers |= {provider.vendor for provider in configured if provider.vendor}
        if current is not None:
            # What was imported for providers to come stays as long as nobody touches it.
            routes = [current.route, *(version.route for version in current.versions.values())]
            providers |= {target.partition("/")[0] for route in routes for target in route}
        others = {other: each for other, each in self._all().items() if other != name}
        around = Surroundings(others, frozenset(self.routes), frozenset(providers), owners=owners_of(others))
        check(name, settings, around)
        return settings

    def _all(self) -> dict[str, RouteSettings]:
        registered = {name: definition.settings for name, definition in self.definitions.items()}
        return {**registered, **self.routes}


def check_file(routes: Mapping[str, RouteSettings]) -> None:
    """Check the models of the file among each other. Raises ValueError for an operator."""
    for name, settings in routes.items():
        others = {other: each for other, each in routes.items() if other != name}
        try:
            around = Surroundings(others, frozenset(routes), fallbacks_exist=False, owners=owners_of(others))
            check(name, settings, around)
        except InvalidModelError as error:
            raise ValueError(f'models."{name}": {error}') from None


def milliseconds() -> int:
    """Return the time of a change: milliseconds since 1970."""
    return int(clock.now().timestamp() * 1000)


def moment(at_ms: int) -> datetime:
    """Return a time of a change."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _expected(name: str, before: Stored | None, revision: int) -> RouteSettings:
    """Return the definition that a change is based on. Raises NoSuchModelError, StaleRevisionError."""
    if before is None or before.document is None:
        raise NoSuchModelError(name)
    if revision and before.revision != revision:
        raise StaleRevisionError(name, revision, before.revision)
    return _parsed(before.document)


def _parsed(document: str) -> RouteSettings:
    return read_document(json.loads(document))


def _definition(row: Stored) -> Definition | None:
    if row.document is None:
        return None
    try:
        settings = _parsed(row.document)
    except InvalidModelError as error:
        # Written by a release that knows more than this one.
        _logger.warning("model_not_understood name=%s %s", row.name, error)
        return None
    edited = row.imported is not None and row.imported != row.document
    provenance = Provenance(REGISTRY, row.revision, edited, row.updated_at / 1000, row.updated_by)
    return Definition(row.name, settings, provenance)
