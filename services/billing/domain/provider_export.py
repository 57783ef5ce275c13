"""Usage exports of providers: which shape a document has, and what it says that models and attempts cost.

| shape | columns that are read (in any order, others are ignored) |
|---|---|
| openai | `start_time_iso`, `line_item` (`gpt-4o-2024-08-06, input`), `amount_value`, `amount_currency` |
| anthropic | `usage_date_utc`, `model` (`Claude Haiku 4.5`), `cost_usd` |
| openrouter | `date` or `created_at`, `model_permaslug`, `usage` or `cost_total`, perhaps `generation_id` |
| generic | `model`, `day`, `amount`, and perhaps `provider` and `request_id` |
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation

from services.billing.domain.errors import InvalidFieldError

LARGEST_AMOUNT = Decimal(10) ** 9
FINEST_DECIMALS = 30
LONGEST_MODEL = 300
# As charges keep it.
LONGEST_ATTEMPT = 256

Bill = dict[tuple[str, str], Decimal]
"""Credits by model, as the provider names it, and day."""


@dataclass(frozen=True, slots=True)
class BilledAttempt:
    """What a provider takes for one attempt; several lines about the same are one."""

    model: str
    day: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Export:
    """What a document says."""

    bill: Bill = field(default_factory=dict)
    attempts: dict[str, BilledAttempt] = field(default_factory=dict)
    """By the provider's id; empty where the document has only sums."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns of a document say what; of several names the first that is there counts."""

    day: tuple[str, ...]
    model: tuple[str, ...]
    amount: tuple[str, ...]
    currency: str = ""
    attempt: tuple[str, ...] = ()
    model_of: Callable[[str], str] = str.strip

    def fits(self, columns: Mapping[str, int]) -> bool:
        """Tell whether a document has the columns."""
        return all(any(name in columns for name in names) for names in (self.day, self.model, self.amount))


def _before_comma(line_item: str) -> str:
    """Return the model of `gpt-4o-2024-08-06, cached input`."""
    return line_item.partition(",")[0].strip()


SHAPES: Mapping[str, Shape] = {
    "openai": Shape(
        ("start_time_iso",), ("line_item",), ("amount_value",), "amount_currency", model_of=_before_comma
    ),
    "anthropic": Shape(("usage_date_utc",), ("model", "model_version"), ("cost_usd",)),
    "openrouter": Shape(
        ("date", "created_at"), ("model_permaslug",), ("usage", "cost_total"), attempt=("generation_id",)
    ),
    "generic": Shape(("day",), ("model",), ("amount",), attempt=("request_id",)),
}


def read_export(document: str, shape_name: str, provider: str) -> Export:
    """Return what a document says. Raises InvalidFieldError naming the line or column that is wrong."""
    rows = csv.reader(io.StringIO(document.removeprefix("\ufeff"), newline=""))
    columns, shape = _header(rows, shape_name)
    export = Export()
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                _add(export, _Line(row, rows.line_num, columns), shape, provider)
    except csv.Error as error:
        raise _wrong(rows.line_num, str(error)) from None
    if not export.bill:
        raise InvalidFieldError("document", "has no line besides its header")
    return export


def _header(rows: csv._reader, shape_name: str) -> tuple[dict[str, int], Shape]:  # type: ignore[name-defined]
    try:
        names: list[str] = next(rows, [])
    except csv.Error as error:
        raise _wrong(1, str(error)) from None
    columns = {name.strip().lower(): position for position, name in enumerate(names)}
    if shape_name:
        shape = SHAPES.get(shape_name)
        if shape is None:
            raise InvalidFieldError("shape", f"must be one of {', '.join(SHAPES)}, or empty")
        if not shape.fits(columns):
            raise InvalidFieldError("document", f"lacks a column of the shape {shape_name}: {_needs(shape)}")
        return columns, shape
    for shape in SHAPES.values():
        if shape.fits(columns):
            return columns, shape
    known = "; ".join(f"{name}: {_needs(shape)}" for name, shape in SHAPES.items())
    raise InvalidFieldError("document", f"its first line names the columns of no known shape. {known}")


def _needs(shape: Shape) -> str:
    return ", ".join(" or ".join(names) for names in (shape.day, shape.model, shape.amount))


@dataclass(frozen=True, slots=True)
class _Line:
    cells: list[str]
    number: int
    columns: Mapping[str, int]

    def get(self, names: tuple[str, ...]) -> str:
        for name in names:
            position = self.columns.get(name)
            if position is not None and position < len(self.cells):
                return self.cells[position].strip()
        return ""


def _add(export: Export, line: _Line, shape: Shape, provider: str) -> None:
    named = line.get(("provider",))
    if shape is SHAPES["generic"] and named and named != provider:
        return
    currency = line.get((shape.currency,)) if shape.currency else ""
    if currency and currency.lower() != "usd":
        raise _wrong(line.number, f"the currency {currency[:10]!r} is not USD; convert the file first")
    model = shape.model_of(line.get(shape.model))[:LONGEST_MODEL].replace("\0", "")
    day, amount = _day(line, shape), _amount(line, shape)
    export.bill[model, day] = export.bill.get((model, day), Decimal(0)) + amount
    name = line.get(shape.attempt)[:LONGEST_ATTEMPT].replace("\0", "")
    if name:
        known = export.attempts.get(name)
        total = amount if known is None else known.amount + amount
        export.attempts[name] = BilledAttempt(model, day, total)


def _day(line: _Line, shape: Shape) -> str:
    text = line.get(shape.day)
    try:
        return date.fromisoformat(re.split("[T ]", text, maxsplit=1)[0]).isoformat()
    except ValueError:
        raise _wrong(line.number, f"{text[:40]!r} is not a date such as 2026-01-31") from None


def _amount(line: _Line, shape: Shape) -> Decimal:
    text = line.get(shape.amount)
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise _wrong(line.number, f"{text[:40]!r} is not an amount such as 1.25") from None
    if not amount.is_finite() or abs(amount) > LARGEST_AMOUNT:
        raise _wrong(line.number, f"{text[:40]!r} is not an amount a provider charges")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -FINEST_DECIMALS:
        raise _wrong(line.number, f"{text[:40]!r} has too many decimals")
    return amount


def _wrong(line: int, description: str) -> InvalidFieldError:
    return InvalidFieldError("document", f"line {line}: {description}")
