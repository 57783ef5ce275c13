"""Sums of usage by the hour, written in the transaction that books the events: exact, and always up to date.

A row is the sum over one hour, one organisation and one value of a dimension. Rows without an
organisation are sums over all of them. Totals are also kept by the minute, as the dimension `minute`,
whose rows number minutes where others number hours: few rows, which make totals of any period cheap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import add, itemgetter
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.store.tables import usage_event, usage_rollup
from services.common.bulk import BulkInsert, Row
from services.common.db import Database

HOUR = 3_600_000_000
MINUTE = 60_000_000
MINUTES_OF_HOUR = HOUR // MINUTE
# What fits an index of every engine. Longer names are summed under their beginning.
LONGEST_VALUE = 300
EVERYONE = ""
SUMS = tuple(column.name for column in usage_rollup.c if not column.primary_key and column.name != "requests")
# Column of the event, by dimension.
DIMENSIONS = {
    "model": usage_event.c.model,
    "provider": usage_event.c.provider,
    "key": usage_event.c.key_id,
    "user": usage_event.c.user_id,
    "workspace": usage_event.c.workspace_id,
    "agent": usage_event.c.agent_id,
    "task": usage_event.c.task,
    "modality": usage_event.c.modality,
    "project": usage_event.c.project_id,
    "run": usage_event.c.run_id,
}
TOTAL, BY_MINUTE = "", "minute"
PLATFORM_DIMENSIONS = (TOTAL, "model", "provider")
_AT = {column.name: number for number, column in enumerate(usage_event.c)}
_who = itemgetter(_AT["organisation_id"])
_when = itemgetter(_AT["at"])
_values = itemgetter(*(_AT[column.name] for column in DIMENSIONS.values()))
_numbers = itemgetter(*(_AT[name] for name in SUMS))
_NAMES = tuple(DIMENSIONS)
_Key = tuple[str, str, int, str]
"""Organisation, dimension, hour or minute, value."""
_Alike = tuple[str, int, tuple[str, ...]]
"""Organisation, minute, and the values of all dimensions."""


def adding_up(database: Database) -> BulkInsert:
    """Return the statement that adds to sums, of which there may be none yet."""
    key = ", ".join(column.name for column in usage_rollup.primary_key)
    sums = ", ".join(f"{name} = {usage_rollup.name}.{name} + excluded.{name}" for name in ("requests", *SUMS))
    return BulkInsert(database, usage_rollup, f"({key}) DO UPDATE SET {sums}")


async def roll_up(connection: AsyncConnection, adding: BulkInsert, events: Iterable[Row]) -> None:
    """Add rows of events, each of them new, to the sums. The last locks of a transaction, in their order."""
    sums = _sums_of(events)
    if sums:
        rows = [(*key, *sums[key]) for key in sorted(sums)]
        for statement in adding.of(rows):
            await connection.exec_driver_sql(*statement)


def _sums_of(events: Iterable[Row]) -> dict[_Key, list[int]]:
    """Return the sums of events, by the keys of their rows."""
    # Those of a batch are much alike: each sum is then made of few.
    groups: defaultdict[_Alike, list[tuple[int, ...]]] = defaultdict(list)
    for event in events:
        groups[_who(event), _when(event) // MINUTE, _values(event)].append(_numbers(event))
    alike = {key: [len(group), *map(sum, zip(*group, strict=True))] for key, group in groups.items()}
    sums: dict[_Key, list[int]] = {}
    # What differs most comes first: without it, all the others are sums of fewer.
    differing = [len({values[number] for _, _, values in alike}) for number in range(len(DIMENSIONS))]
    for number in sorted(range(len(DIMENSIONS)), key=differing.__getitem__, reverse=True):
        dimension = _NAMES[number]
        for (whose, minute, values), numbers in alike.items():
            hour, value = minute // MINUTES_OF_HOUR, values[number][:LONGEST_VALUE]
            _add(sums, (whose, dimension, hour, value), numbers)
            if dimension in PLATFORM_DIMENSIONS:
                _add(sums, (EVERYONE, dimension, hour, value), numbers)
        if differing[number] > 1:
            alike = _without(alike, number)
    for (whose, minute, _), numbers in alike.items():
        for each in (whose, EVERYONE):
            _add(sums, (each, TOTAL, minute // MINUTES_OF_HOUR, ""), numbers)
            _add(sums, (each, BY_MINUTE, minute, ""), numbers)
    return sums


def _without(alike: Mapping[_Alike, list[int]], number: int) -> dict[_Alike, list[int]]:
    """Return the sums of what is alike but for one value."""
    fewer: dict[_Alike, list[int]] = {}
    for (whose, minute, values), numbers in alike.items():
        _add(fewer, (whose, minute, (*values[:number], "", *values[number + 1 :])), numbers)
    return fewer


def _add(sums: dict[Any, list[int]], key: Any, numbers: Sequence[int]) -> None:
    known = sums.get(key)
    sums[key] = list(numbers) if known is None else list(map(add, known, numbers))


def whole(start: int | None, end: int | None, unit: int = HOUR) -> tuple[int | None, int | None, bool]:
    """Return the first whole unit of a period, the one after its last, and whether there is any."""
    first = None if start is None else -(-start // unit)
    after = None if end is None else end // unit
    return first, after, first is None or after is None or first < after


def edges(start: int | None, end: int | None, unit: int = HOUR) -> Sequence[tuple[int | None, int | None]]:
    """Return the parts of a period that are no whole units, as periods."""
    first, after, any_whole = whole(start, end, unit)
    if not any_whole:
        return [(start, end)]
    parts: list[tuple[int | None, int | None]] = []
    if start is not None and first is not None and start < first * unit:
        parts.append((start, first * unit))
    if end is not None and after is not None and after * unit < end:
        parts.append((after * unit, end))
    return parts
