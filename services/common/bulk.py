"""Many rows by one call of the driver, where a statement for each would cost more than storing it.

SQLite runs prepared statements of many rows: its driver lets go of the interpreter for each statement, and
has to wait for it afterwards. PostgreSQL gets one statement with an array for each column, of constant text:
neither prepared statements nor a parameter for each value (ADR 0024). The arrays are written here, as texts:
the driver's own way costs several times as much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import sqlalchemy as sa

from services.common.db import Database

Row = tuple[Any, ...]
_Array = Callable[[tuple[Any, ...]], Any]
# How many rows the statements for SQLite have: few texts, so that each is prepared once.
SIZES = (64, 16, 4, 1)
_TYPES = (
    (sa.BigInteger, "bigint"),
    (sa.Integer, "integer"),
    (sa.Boolean, "boolean"),
    (sa.LargeBinary, "bytea"),
    (sa.String, "text"),
)


class BulkInsert:
    """Inserts rows, as tuples in the order of the table's columns.

    `for one in insert.of(rows): connection.exec_driver_sql(*one)`, on a connection of either kind;
    on PostgreSQL it is one statement. `then` says what happens to rows whose keys exist. With `returning`,
    PostgreSQL answers that column of the rows that were written; SQLite answers nothing.
    """

    def __init__(
        self, database: Database, table: sa.Table, then: str = "DO NOTHING", *, returning: str = ""
    ) -> None:
        self._sqlite = database.sqlite
        columns = ", ".join(f'"{column.name}"' for column in table.c)
        text, end = f"INSERT INTO {name_of(database, table)} ({columns}) ", f" ON CONFLICT {then}"
        if self._sqlite:
            row = f"({', '.join('?' * len(table.c))})"
            self._texts = {size: f"{text}VALUES {', '.join([row] * size)}{end}" for size in SIZES}
            return
        if returning:
            end += f' RETURNING "{returning}"'
        types = [_type_of(column) for column in table.c]
        # One row is nothing to make arrays of.
        self._one = f"{text}VALUES ({', '.join(f'%b::{each}' for each in types)}){end}"
        self._arrays: list[_Array] = [_ARRAYS.get(each, _plain_array) for each in types]
        arrays = (f"%{'b' if each == 'bytea' else 't'}::{each}[]" for each in types)
        self._many = f"{text}SELECT * FROM unnest({', '.join(arrays)}){end}"

    def of(self, rows: Sequence[Row]) -> list[tuple[str, Any]]:
        """Return the statements that insert `rows`, of which there is at least one, with their parameters.

        A list of parameters is one set after the other, for `executemany`.
        """
        if self._sqlite:
            return list(self._in_blocks(rows))
        if len(rows) == 1:
            return [(self._one, rows[0])]
        columns = zip(*rows, strict=True)
        return [
            (self._many, tuple(array(column) for array, column in zip(self._arrays, columns, strict=True)))
        ]

    def _in_blocks(self, rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
        begin = 0
        for size in SIZES:
            if count := (len(rows) - begin) // size:
                starts = range(begin, begin + count * size, size)
                blocks = [tuple(chain.from_iterable(rows[at : at + size])) for at in starts]
                yield self._texts[size], blocks if count > 1 else blocks[0]
                begin += count * size


class OneOf:
    """Compares a column of text with any number of ids, which are one parameter.

    `f"... WHERE id {one_of.text}"`, with `(one_of.argument(ids),)`.
    """

    def __init__(self, database: Database) -> None:
        self._sqlite = database.sqlite
        self.text = "IN (SELECT value FROM json_each(?))" if self._sqlite else "= ANY(%b::text[])"

    def argument(self, ids: Sequence[str]) -> Any:
        """Return the parameter."""
        return json.dumps(ids) if self._sqlite else list(ids)


def _text_array(values: tuple[str, ...]) -> str:
    text = '","'.join(values)
    if "\\" in text or text.count('"') != 2 * (len(values) - 1):
        text = '","'.join([each.replace("\\", "\\\\").replace('"', '\\"') for each in values])
    return f'{{"{text}"}}'


def _plain_array(values: tuple[Any, ...]) -> str:
    """Return an array of numbers or truth values, which are the same words to Python and PostgreSQL."""
    return f"{{{str(list(values))[1:-1]}}}"


_ARRAYS: dict[str, _Array] = {"text": _text_array, "bytea": list[bytes]}


def name_of(database: Database, table: sa.Table) -> str:
    """Return a table's name as the driver needs it."""
    return table.name if database.sqlite else f'"{database.schema}".{table.name}'


def _type_of(column: sa.Column[Any]) -> str:
    return next(name for kind, name in _TYPES if isinstance(column.type, kind))
