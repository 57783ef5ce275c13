"""`omnihub models import|list|show|export`: works on the database itself, whether or not anything runs.

What runs sees a change within 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.common.change_feed import ChangeFeed
from services.common.db import Database
from services.router.domain.registration import InvalidModelError, read_document, write_document
from services.router.registry.importing import Imported, import_models
from services.router.registry.sources import listed, read_catalogue, shipped
from services.router.registry.store import ModelStore, Stored, changes
from services.router.settings import RouteSettings

MIGRATIONS = Path(__file__).parents[1] / "migrations"
DONE, UNUSABLE = 0, 2
ACTOR = "command line"
# A value in a list of differences is not a document.
_SHOWN = 60


class _UsageError(Exception):
    """The command cannot be done; the message says what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    actions = parser.add_subparsers(required=True, metavar="action", dest="action")
    bring = actions.add_parser("import", help="add models and refresh their facts; admins' changes stay")
    bring.add_argument("file", nargs="?", metavar="FILE", type=Path, help="JSON; without it what is shipped")
    bring.add_argument("--from-genai-prices", action="store_true", help="take them from the list prices")
    bring.add_argument(
        "--vendor",
        action="append",
        default=[],
        help="with --from-genai-prices: only this vendor's; repeatable",
    )
    bring.add_argument("--force", action="store_true", help="overwrite what an administrator changed, too")
    bring.add_argument("--dry-run", action="store_true", help="only show what would change")
    actions.add_parser("list", help="list all models")
    show = actions.add_parser("show", help="print one model as JSON")
    show.add_argument("name")
    export = actions.add_parser("export", help="print the registry as JSON, as `import` takes it")
    export.add_argument("file", nargs="?", metavar="FILE", type=Path, help="write it there instead")


async def run(database: Database, routes: Mapping[str, RouteSettings], options: argparse.Namespace) -> int:
    """Run one action and return the exit status."""
    try:
        await database.migrate(MIGRATIONS)
        store = ModelStore(database, ChangeFeed(database, changes))
        if options.action == "import":
            await _import(store, options)
        elif options.action == "list":
            _print(_table([*_routes(routes), *await _rows(store, routes)]))
        elif options.action == "show":
            _print([json.dumps(await _one(store, routes, options.name), indent=2, ensure_ascii=False)])
        else:
            await _export(store, options.file)
    except (ConnectionError, InvalidModelError, OSError, ValueError, _UsageError) as error:
        sys.stderr.write(f"models {options.action}: {error}\n")
        return UNUSABLE
    finally:
        await database.close()
    return DONE


async def _import(store: ModelStore, options: argparse.Namespace) -> None:
    if options.vendor and not options.from_genai_prices:
        raise _UsageError("--vendor goes with --from-genai-prices")
    if options.file is not None and options.from_genai_prices:
        raise _UsageError("give a FILE or --from-genai-prices, not both")
    if options.file is not None:
        models = read_catalogue(options.file)
    elif options.from_genai_prices:
        models = await asyncio.to_thread(listed, options.vendor)
    else:
        models = await asyncio.to_thread(shipped)
    done = await import_models(store, models, ACTOR, force=options.force, dry_run=options.dry_run)
    _print(_report(done, options.dry_run))


def _report(done: Sequence[Imported], dry_run: bool) -> Iterable[str]:
    for each in done:
        if each.outcome in ("added", "updated", "kept") or each.notes:
            yield f"{each.outcome:<9} {each.name}"
            if each.outcome == "updated":
                for key, (before, after) in each.differences.items():
                    yield f"            {key}: {_short(before)} -> {_short(after)}"
            for note in each.notes:
                yield f"            {note}"
    counts = dict.fromkeys(("added", "updated", "unchanged", "kept"), 0)
    for each in done:
        counts[each.outcome] += 1
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    yield f"{summary}{'; nothing was written' if dry_run else ''}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


async def _rows(store: ModelStore, routes: Mapping[str, RouteSettings]) -> list[Sequence[str]]:
    rows = []
    for stored in await store.read():
        if stored.document is not None and stored.name not in routes:
            settings = _parsed(stored)
            kind = "edited" if stored.imported not in (None, stored.document) else "registry"
            rows.append(_row(stored.name, settings, kind, str(stored.revision)))
    return rows


def _routes(routes: Mapping[str, RouteSettings]) -> list[Sequence[str]]:
    return [_row(name, settings, "file", "-") for name, settings in sorted(routes.items())]


def _row(name: str, settings: RouteSettings, managed_by: str, revision: str) -> Sequence[str]:
    route = settings.route or [target for each in settings.versions.values() for target in each.route]
    state = "" if settings.enabled else "disabled"
    names = ",".join(settings.aliases)
    return (name, managed_by, revision, str(settings.context_length or "-"), " ".join(route), names, state)


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    lines = [("NAME", "MANAGED BY", "REVISION", "CONTEXT", "ROUTE", "ALIASES", ""), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        yield "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip()


async def _one(store: ModelStore, routes: Mapping[str, RouteSettings], name: str) -> dict[str, Any]:
    if name in routes:
        return {"name": name, "managed_by": "file", **_document(routes[name])}
    for stored in await store.read():
        if stored.document is not None and name in (stored.name, *_parsed(stored).aliases):
            return {
                "name": stored.name,
                "managed_by": "registry",
                "revision": stored.revision,
                "edited": stored.imported not in (None, stored.document),
                "updated_by": stored.updated_by,
                **json.loads(stored.document),
            }
    raise _UsageError(f"there is no model {name!r}; `omnihub models list` lists them")


async def _export(store: ModelStore, file: Path | None) -> None:
    models = {
        stored.name: json.loads(stored.document)
        for stored in await store.read()
        if stored.document is not None
    }
    text = json.dumps({"models": models}, indent=2, ensure_ascii=False)
    if file is None:
        _print([text])
    else:
        await asyncio.to_thread(file.write_text, text + "\n", encoding="utf-8")


def _parsed(stored: Stored) -> RouteSettings:
    return read_document(json.loads(stored.document or "{}"))


def _document(settings: RouteSettings) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(write_document(settings))
    return document


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
