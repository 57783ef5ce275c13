"""What is hashed is written as it always was: a digest of years ago has to come out again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.billing.domain.canonical import events_digest, transaction_digest

NUMBERS = st.integers(-(2**63), 2**63 - 1)
VALUES = st.one_of(st.text(), NUMBERS, st.booleans())


def as_before(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@given(st.lists(st.tuples(st.text(), VALUES, VALUES), unique_by=lambda event: event[0]))
def test_events_are_written_as_the_standard_library_writes_them(events: list[tuple[Any, ...]]) -> None:
    assert events_digest(events) == as_before(sorted(map(list, events)))


@given(st.lists(VALUES), st.lists(st.tuples(st.text(), NUMBERS)))
def test_so_are_transactions(transaction: list[Any], entries: list[tuple[str, int]]) -> None:
    movements = [(0, "grant_ä", "release", 5)]
    expected = as_before([transaction, sorted(map(list, entries)), [list(movements[0])]])
    assert transaction_digest(transaction, entries, movements) == expected
