"""What billing costs: `python -m bench.billing [part ...]`; parts: admission, journal, holds, check, growth.

Starts a PostgreSQL of its own, or uses OMNIHUB_TEST_POSTGRESQL_URL. Prints Markdown, and writes every
sample to bench/results/billing-<time>.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench import billing_hold, billing_path, billing_size
from tests.support.postgresql import running_server

PARTS = ("admission", "journal", "holds", "check", "growth")
RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
LEASE_TARGET_US, JOURNAL_TARGET_US, HOLD_TARGET, CHECK_TARGET_S = 10, 60, 0.5, 60
FLAT = 1.2
"""At most so many times the cost of a small ledger."""
ENTRIES = 1_000_000
SIZES = ((1_000, 10), (1_000_000, 100_000))
"""Usage events and keys, small and large."""
Lines = Iterator[str]


@contextmanager
def databases() -> Iterator[dict[str, Any]]:
    """Yield what makes a fresh database of each kind."""
    with running_server() as server, tempfile.TemporaryDirectory(prefix="omnihub-bench-") as folder:
        numbers = iter(range(1000))

        @contextmanager
        def sqlite() -> Iterator[str]:
            path = Path(folder) / f"{next(numbers)}.db"
            yield f"sqlite:///{path}"
            path.unlink()

        yield {"SQLite": sqlite, "PostgreSQL": server.database}


def _met(good: bool) -> str:
    return "met" if good else "**missed**"


def admission(made: dict[str, Any], rounds: int) -> tuple[Any, Lines]:
    """Measure admission in process."""
    found = {f"{keys}": asyncio.run(billing_path.admission(keys, rounds)) for keys in (10, 100_000)}

    def lines() -> Lines:
        for keys, values in found.items():
            for name, samples in values.items():
                us = median(samples)
                verdict = (
                    f"target {LEASE_TARGET_US}: {_met(us <= LEASE_TARGET_US)}" if name == "lease" else ""
                )
                yield f"| admission from a {name}, {keys} keys | {us:.1f} us CPU | {verdict} |"

    return found, lines()


def journal(made: dict[str, Any], rounds: int) -> tuple[Any, Lines]:
    """Measure the journal."""
    found = {}
    for kind, database in made.items():
        with database() as router_url, database() as billing_url:
            found[kind] = asyncio.run(billing_path.journal(router_url, billing_url, rounds))

    def lines() -> Lines:
        for kind, values in found.items():
            for name, samples in values.items():
                us = median(samples)
                met = f"target {JOURNAL_TARGET_US}: {_met(us <= JOURNAL_TARGET_US)}" if name == "sum" else ""
                yield f"| journal, {name}, {kind} | {us:.1f} us CPU per request | {met} |"

    return found, lines()


def holds(made: dict[str, Any], rounds: int) -> tuple[Any, Lines]:
    """Measure hold and capture."""
    with made["PostgreSQL"]() as url:
        found = asyncio.run(billing_hold.compare(url, rounds))

    def lines() -> Lines:
        for row in found:
            ours, theirs = (median(each[name][0] for each in row["rounds"]) for name in ("store", "psycopg"))
            ratio = median(each["store"][0] / each["psycopg"][0] for each in row["rounds"])
            cpu = [median(each[name][1] for each in row["rounds"]) for name in ("store", "psycopg")]
            yield (
                f"| hold + capture, {row['clients']} clients, {row['accounts']} accounts | {ours:.0f}/s, "
                f"psycopg {theirs:.0f}/s, CPU {cpu[0]:.0f} and {cpu[1]:.0f} us | "
                f"{ratio:.2f} of psycopg, target {HOLD_TARGET}: {_met(ratio >= HOLD_TARGET)} |"
            )

    return found, lines()


def check(made: dict[str, Any], rounds: int) -> tuple[Any, Lines]:
    """Measure the ledger's check."""
    found = {}
    for name, database in made.items():
        with database() as url:
            found[name] = asyncio.run(billing_size.check_million(url, ENTRIES))

    def lines() -> Lines:
        for name, row in found.items():
            verdict = f"target {CHECK_TARGET_S} s: {_met(row['check_s'] < CHECK_TARGET_S)}"
            took = f"{row['check_s']:.1f} s, {row['check_cpu_s']:.1f} s CPU in process"
            yield f"| check of {row['entries']} entries, {name} | {took} | {verdict} |"
            yield f"| sealing, {name} | {row['seal_us_per_transaction']:.0f} us per transaction | |"

    return found, lines()


def growth(made: dict[str, Any], rounds: int) -> tuple[Any, Lines]:
    """Measure requests on a small and on a large ledger."""
    found: dict[str, Any] = {}
    for name, database in made.items():
        with ExitStack() as stack:
            urls = [stack.enter_context(database()) for _ in SIZES]
            measured = asyncio.run(billing_size.compared(urls, SIZES, rounds))
        found |= {f"{what}, {name}": samples for what, samples in measured.items()}

    def lines() -> Lines:
        for what, (small, large) in found.items():
            before, after = median(small), median(large)
            # Of each round, for both sizes of a round meet the same machine.
            times = median(there / here for here, there in zip(small, large, strict=True))
            verdict = f"{times:.2f} times, target {FLAT}: {_met(times <= FLAT)}"
            yield f"| {what} | {before:.0f} us, then {after:.0f} us | {verdict} |"

    return found, lines()


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all without any")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    # As the service does when it has started.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    works = {each.__name__: each for each in (admission, journal, holds, check, growth)}
    results: dict[str, Any] = {}
    print("| what | measured | |\n| --- | --- | --- |", flush=True)
    with databases() as made:
        for name in asked.parts or PARTS:
            results[name], lines = works[name](made, asked.rounds)
            for line in lines:
                print(line, flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"billing-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(results, indent=1))
    print(f"\nAll samples: {path}")


if __name__ == "__main__":
    main()
