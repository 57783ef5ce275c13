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
    (sa.Float, "double precision"),
    (sa.LargeBinary, "bytea"),
    (sa.String, "text"),
)


class BulkInsert:
    """Inserts rows, as tuples in the order of the table's columns, or of `columns`: the others have defaults.

    `for one in insert.of(rows): connection.exec_driver_sql(*one)`, on a connection of either kind;
    on PostgreSQL it is one statement. `then` says what happens to rows whose keys exist; empty: an error.
    With `returning`, PostgreSQL answers that column of the rows that were written; SQLite answers nothing.
    """

    def __init__(
        self,
        database: Database,
        table: sa.Table,
        then: str = "DO NOTHING",
        *,
        returning: str = "",
        columns: Sequence[sa.Column[Any]] = (),
    ) -> None:
        self._sqlite = database.sqlite
        columns = columns or list(table.c)
        names = ", ".join(f'"{column.name}"' for column in columns)
        text, end = (
            f"INSERT INTO {name_of(database, table)} ({names}) ",
            f" ON CONFLICT {then}" if then else "",
        )
        if self._sqlite:
            row = f"({', '.join('?' * len(columns))})"
            self._texts = {size: f"{text}VALUES {', '.join([row] * size)}{end}" for size in SIZES}
            return
        if returning:
            end += f' RETURNING "{returning}"'
        types = [_type_of(column) for column in columns]
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


class BulkUpdate:
    """Gives rows of a table new values, each its own, found by a column that is a key."""

    def __init__(self, database: Database, key: sa.Column[Any], columns: Sequence[sa.Column[Any]]) -> None:
        self._sqlite = database.sqlite
        table = name_of(database, key.table)
        if self._sqlite:
            changes = ", ".join(f'"{column.name}" = ?' for column in columns)
            self._text = f'UPDATE {table} SET {changes} WHERE "{key.name}" = ?'
            return
        names = [f'"{column.name}"' for column in (key, *columns)]
        arrays = ", ".join(f"%b::{_type_of(column)}[]" for column in (key, *columns))
        changes = ", ".join(f"{name} = given.{name}" for name in names[1:])
        self._text = (
            f"UPDATE {table} AS kept SET {changes} FROM unnest({arrays}) AS given ({', '.join(names)})"
            f" WHERE kept.{names[0]} = given.{names[0]}"
        )

    def of(self, rows: Sequence[Row]) -> tuple[str, Any]:
        """Return the statement, and its parameters, for rows of which each is a key and its new values."""
        if self._sqlite:
            return self._text, [(*values, key) for key, *values in rows]
        return self._text, tuple(map(list, zip(*rows, strict=True)))


def at_once(database: Database, statements: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
    """Return statements as few as can be: for PostgreSQL one, and one way there.

    They must not touch the same rows, nor need each other's results.
    """
    if database.sqlite or len(statements) < 2:
        return statements
    *others, (last, arguments) = statements
    parts = ", ".join(f"part{number} AS ({text})" for number, (text, _) in enumerate(others))
    every = tuple(chain(chain.from_iterable(given for _, given in others), arguments))
    return [(f"WITH {parts} {last}", every)]


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
