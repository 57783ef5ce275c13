"""Bringing many models into the registry at once: what is new comes in, what somebody changed stays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.router.domain.errors import Flaw
from services.router.domain.importing import KEPT, UNCHANGED, Merged, merge
from services.router.domain.registration import (
    InvalidModelError,
    NamesTakenError,
    Surroundings,
    check,
    owners_of,
    read_document,
    write_document,
)
from services.router.registry.registry import milliseconds
from services.router.registry.store import Change, ModelStore, Stored
from services.router.settings import RouteSettings

ACT = "import"
FIRST_START = "first start"


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import does to one model."""

    name: str
    outcome: str
    """added, updated, unchanged or kept."""
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Fields that change: before and after."""
    notes: tuple[str, ...] = ()
    """What stays otherwise than the import says, and why."""


class Importer:
    """Works out one import, model by model, beside the names that are taken already."""

    def __init__(self, stored: Mapping[str, Stored], force: bool) -> None:
        self._stored = stored
        self._force = force
        self.changes: list[Change] = []
        self.models = {
            name: read_document(json.loads(row.document))
            for name, row in stored.items()
            if row.document is not None
        }
        self._owners = owners_of(self.models)
        # Both change as the import goes on.
        self._around = Surroundings(self.models, fallbacks_exist=False, owners=self._owners)

    def run(self, models: Mapping[str, RouteSettings]) -> list[Imported]:
        """Take in all models. Raises InvalidModelError naming the one that is wrong."""
        for name, settings in models.items():
            self._release(name, settings)
        return [self._named(name, settings) for name, settings in models.items()]

    def _named(self, name: str, settings: RouteSettings) -> Imported:
        try:
            return self._take(name, settings)
        except InvalidModelError as error:
            flaws = [Flaw(f"{name}: {flaw.field}", flaw.description) for flaw in error.violations]
            raise InvalidModelError(flaws) from None

    def _release(self, name: str, settings: RouteSettings) -> None:
        """Free the aliases that a model is to lose, so that another can get them, whichever comes first."""
        current = self.models.get(name)
        if current is None:
            return
        merged = self._merge(name, json.loads(write_document(settings)))
        if merged.outcome == KEPT or merged.document is None:
            return
        stay = [alias for alias in current.aliases if alias in merged.document.get("aliases", ())]
        for alias in set(current.aliases) - set(stay):
            del self._owners[alias]
        self.models[name] = current.model_copy(update={"aliases": stay})

    def _take(self, name: str, settings: RouteSettings) -> Imported:
        owner = self._owners.get(name)
        if owner not in (None, name):
            return Imported(name, KEPT, notes=(f"the name is an alias of {owner!r}",))
        taken = [alias for alias in settings.aliases if self._owners.get(alias, name) != name]
        notes = [f"alias {alias!r} left out: it belongs to {self._owners[alias]!r}" for alias in taken]
        aliases = [alias for alias in settings.aliases if alias not in taken]
        wanted = write_document(settings.model_copy(update={"aliases": aliases}))
        merged = self._merge(name, json.loads(wanted))
        notes += [f"{key} stays as somebody set it" for key in merged.kept]
        notes += [merged.note] if merged.note else []
        row = self._stored.get(name)
        before = None if row is None else row.document
        if merged.outcome == KEPT or merged.document is None:
            return Imported(name, merged.outcome, notes=tuple(notes))
        after = self._accept(name, merged.document)
        if row is None or (before, row.imported) != (after, wanted):
            names = [name, *self.models[name].aliases]
            self.changes.append(Change(name, row, after, wanted, names, ACT))
        if merged.outcome == UNCHANGED:
            return Imported(name, UNCHANGED, notes=tuple(notes))
        return Imported(name, merged.outcome, _differences(before, after), tuple(notes))

    def _merge(self, name: str, wanted: Mapping[str, Any]) -> Merged:
        row = self._stored.get(name)
        if row is None:
            return merge(None, None, wanted, exists=False)
        now = None if row.document is None else json.loads(row.document)
        imported = None if row.imported is None else json.loads(row.imported)
        return merge(now, imported, wanted, exists=True, force=self._force)

    def _accept(self, name: str, document: Mapping[str, Any]) -> str:
        settings = read_document(document)
        check(name, settings, self._around)
        self.models[name] = settings
        self._owners.update(dict.fromkeys((name, *settings.aliases), name))
        return write_document(settings)


async def import_models(
    store: ModelStore,
    models: Mapping[str, RouteSettings],
    actor: str,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> list[Imported]:
    """Import models in one transaction; the same import again changes nothing.

    Fields that somebody changed since the last import stay, unless `force`. Raises InvalidModelError.
    """
    async with store.unit() as unit:
        importer = Importer(await unit.read(), force)
        imported = importer.run(models)
        if not dry_run:
            await unit.write(importer.changes, actor, milliseconds())
    return imported


async def seed(store: ModelStore, models: Mapping[str, RouteSettings]) -> None:
    """Fill a registry that never had a model."""
    try:
        async with store.unit() as unit:
            if await unit.read():
                return
            importer = Importer({}, force=False)
            importer.run(models)
            await unit.write(importer.changes, FIRST_START, milliseconds())
    except NamesTakenError:
        # Another process starts for the first time, too, and was faster.
        return


def _differences(before: str | None, after: str) -> dict[str, tuple[Any, Any]]:
    old = {} if before is None else json.loads(before)
    new = json.loads(after)
    return {key: (old.get(key), new.get(key)) for key in (*new, *old) if old.get(key) != new.get(key)}
