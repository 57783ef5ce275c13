"""The adapter test matrix: which behaviour is shown for which adapter.

`python -m tests.support.matrix` runs every marked test and prints the whole matrix; see `make matrix`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Where marked tests are; a test compares this with where markers are.
FOLDERS = (
    "tests/integration/matrix",
    "tests/integration/providers",
    "tests/unit/formats",
    "tests/unit/providers",
)
JOB_FOLDERS = ("tests/integration/media",)
# Two tables, for an adapter of chat and one of media may have the same name.
TABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("matrix_rows.toml", FOLDERS),
    ("matrix_job_rows.toml", JOB_FOLDERS),
)
PROPERTY = "matrix"
PASSED, FAILED, MISSING, NOT_APPLICABLE, OPEN = "passed", "failed", "missing", "n.a.", "open"
_SIGNS = {PASSED: "ok", FAILED: "FAILED", MISSING: "MISSING", NOT_APPLICABLE: "-", OPEN: "OPEN"}
Cell = tuple[int, str]


def cells(row: int, *adapters: str) -> list[Any]:
    """Return the adapters as parameters, each marked as the cell of this row."""
    return [
        pytest.param(adapter, id=adapter, marks=pytest.mark.matrix(row=row, adapter=adapter))
        for adapter in adapters
    ]


@dataclass(frozen=True)
class Row:
    """One behaviour."""

    number: int
    behaviour: str
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    """Adapters for which it is no question, and why."""
    open: Mapping[str, str] = field(default_factory=dict)
    """Adapters for which no test shows it yet. Printed each time, until a test fills the cell."""


@dataclass(frozen=True)
class Table:
    """The rows and the columns."""

    adapters: Mapping[str, str]
    rows: tuple[Row, ...]

    @property
    def required(self) -> set[Cell]:
        """Every cell that some test must fill."""
        return {
            (row.number, adapter)
            for row in self.rows
            for adapter in self.adapters
            if adapter not in row.not_applicable and adapter not in row.open
        }

    @property
    def left_open(self) -> set[Cell]:
        """Every cell that is known to have no test."""
        return {(row.number, adapter) for row in self.rows for adapter in row.open}

    def states(self, outcomes: Mapping[Cell, set[str]]) -> dict[Cell, str]:
        """Return the state of each cell, from the outcomes of its tests; skipped ones show nothing."""
        states = dict.fromkeys(self.left_open, OPEN)
        for cell in self.required:
            seen = outcomes.get(cell, set())
            states[cell] = FAILED if "failed" in seen else PASSED if "passed" in seen else MISSING
        return states


def read_table(name: str = "matrix_rows.toml") -> Table:
    """Read a table from its file."""
    read = tomllib.loads(Path(__file__).with_name(name).read_text())
    return Table(read["adapters"], tuple(Row(**row) for row in read["rows"]))


def cells_of(item: pytest.Item) -> list[Cell]:
    """Return the cells that a test fills."""
    return [(mark.kwargs["row"], mark.kwargs["adapter"]) for mark in item.iter_markers("matrix")]


def note_cells(items: Iterable[pytest.Item]) -> None:
    """Write the cells of each test where its report will carry them, also from another process."""
    for item in items:
        item.user_properties += [(PROPERTY, cell) for cell in cells_of(item)]


class Outcomes:
    """A plugin of pytest that keeps what became of each cell."""

    def __init__(self) -> None:
        self.seen: dict[Cell, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            for name, cell in report.user_properties:
                if name == PROPERTY:
                    row, adapter = cell  # type: ignore[misc]
                    self.seen.setdefault((row, adapter), set()).add(report.outcome)


def show(table: Table, states: Mapping[Cell, str]) -> str:
    """Return the matrix as text, its totals in the last line."""
    widths = {adapter: max(len(adapter), 7) for adapter in table.adapters}
    lines = [" ".join(["row", f"{'behaviour':<38}", *(f"{name:<{widths[name]}}" for name in table.adapters)])]
    for row in table.rows:
        shown = [
            f"{_SIGNS[states.get((row.number, name), NOT_APPLICABLE)]:<{widths[name]}}"
            for name in table.adapters
        ]
        lines.append(" ".join([f"{row.number:>3}", f"{row.behaviour:<38}", *shown]).rstrip())
    lines += ["", "not applicable (-):"]
    for row in table.rows:
        reasons: dict[str, list[str]] = {}
        for adapter, reason in row.not_applicable.items():
            reasons.setdefault(reason, []).append(adapter)
        lines += [f"{row.number:>3} {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    lines += [
        f"open: row {row.number}, {name}: {what}" for row in table.rows for name, what in row.open.items()
    ]
    for state in (FAILED, MISSING):
        found = sorted(cell for cell, each in states.items() if each == state)
        lines += [f"{state}: row {number}, {adapter}" for number, adapter in found]
    return "\n".join([*lines, "", totals(states.values())])


def totals(states: Iterable[str]) -> str:
    """Return how many cells are in which state; open ones are named where there are some."""
    counted = Counter(states)
    left = f", {counted[OPEN]} open" if counted[OPEN] else ""
    return f"{counted[PASSED]} passed, {counted[FAILED]} failed, {counted[MISSING]} missing{left}"


def report(tables: Iterable[tuple[Table, Mapping[Cell, str]]]) -> str:
    """Return all tables as text; its last line is what they come to together."""
    shown = ""
    every: list[str] = []
    for table, states in tables:
        shown += f"\n{show(table, states)}\n"
        every += states.values()
    return f"{shown}\ntogether:\n{totals(every)}\n"


class Collected:
    """A plugin of pytest that keeps which cells tests claim to fill, and runs none."""

    def __init__(self) -> None:
        self.claims: dict[Cell, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for cell in cells_of(item):
                self.claims.setdefault(cell, []).append(item.nodeid)


def complaints(table: Table, claims: Mapping[Cell, list[str]]) -> list[str]:
    """Return what is wrong with the markers: cells without a test, and tests of cells that are none."""
    found = [f"no test fills row {row}, {adapter}" for row, adapter in sorted(table.required - claims.keys())]
    for cell in sorted(claims.keys() - table.required):
        found.append(f"row {cell[0]}, {cell[1]} is no cell of the matrix, but marks {claims[cell][0]}")
    return found


def check() -> int:
    """Look at the markers alone, without running a test. Returns the exit status."""
    # All of them at once: most of the time goes into the imports.
    collected = Collected()
    folders = [folder for _, each in TABLES for folder in each]
    with contextlib.redirect_stdout(io.StringIO()) as listed:
        status = pytest.main(["-qq", "--collect-only", "-m", "matrix", *folders], plugins=[collected])
    if status:
        sys.stdout.write(listed.getvalue()[-5000:])
        return 1
    found = []
    for name, under in TABLES:
        claims = {
            cell: own
            for cell, tests in collected.claims.items()
            if (own := [test for test in tests if test.startswith(under)])
        }
        found += complaints(read_table(name), claims)
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


def main(arguments: list[str]) -> int:
    """Run the marked tests, print the matrix and return the exit status; with --check look at the markers."""
    os.chdir(ROOT)
    if arguments == ["--check"]:
        return check()
    whole = True
    run: list[tuple[Table, Mapping[Cell, str]]] = []
    for name, folders in TABLES:
        outcomes = Outcomes()
        status = pytest.main(["-q", "-m", "matrix", "--tb=short", *folders, *arguments], plugins=[outcomes])
        table = read_table(name)
        states = table.states(outcomes.seen)
        run.append((table, states))
        whole = whole and status == 0 and set(states.values()) <= {PASSED, OPEN}
    sys.stdout.write(report(run))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
