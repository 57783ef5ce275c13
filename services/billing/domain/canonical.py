"""The one way to write what is booked as bytes, and the hash chain over it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

# Of a new transaction. Whoever adds a column to events adds a format: what is sealed is checked by its own.
FORMAT = 2
_FIRST = (
    "id",
    "organisation_id",
    "lease_id",
    "hold_id",
    "late",
    "amount",
    "cost",
    "rounding_pico",
    "savings",
    "at",
    "day",
    "request_id",
    "decision_id",
    "key_id",
    "user_id",
    "workspace_id",
    "agent_id",
    "provider",
    "model",
    "task",
    "modality",
    "price_version",
    "cost_source",
    "state",
    "latency_ms",
    "input_total",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "output_total",
    "output_reasoning",
    "input_audio",
    "output_audio",
    "input_image",
    "estimated",
    "provider_cost",
)
EVENT_CONTENT = {
    1: _FIRST,
    2: (
        *_FIRST,
        "project_id",
        "run_id",
        "margin_version",
        "service_tier",
        "output_image",
        "images",
        "pixels",
        "milliseconds",
        "characters",
        "compute_milliseconds",
        "baseline",
        "savings_routing",
        "savings_cache",
        "savings_prompt_cache",
        "savings_formula",
        "rating",
    ),
}
"""What the digest of a transaction's events covers, by format. Format 0 had no digest."""
TRANSACTION_CONTENT = (
    "id",
    "kind",
    "organisation_id",
    "fingerprint",
    "actor",
    "note",
    "refers_to",
    "at",
    "format",
)
GENESIS = "0" * 64
# JSON without spaces, in UTF-8; every format so far was written with `json` this way.
_encode = msgspec.json.Encoder().encode


def events_digest(events: Iterable[tuple[Any, ...]]) -> str:
    """Return the digest of a transaction's events, each in the order of its format's EVENT_CONTENT."""
    return hashlib.sha256(_encode(sorted(events))).hexdigest()


def transaction_digest(
    transaction: Sequence[Any], entries: Iterable[Sequence[Any]], movements: Iterable[Sequence[Any]]
) -> str:
    """Return the digest of a transaction, in the order of TRANSACTION_CONTENT.

    `entries` are (account, amount), `movements` (position, grant, kind, amount). Events are part of the
    transaction's fingerprint.
    """
    content = [list(transaction), sorted(map(list, entries)), sorted(map(list, movements))]
    return hashlib.sha256(_encode(content)).hexdigest()


def block_hash(previous: str, number: int, digests: Iterable[str]) -> str:
    """Return the hash that seals the transactions of a block, and every block before it."""
    return hashlib.sha256("\n".join([previous, str(number), *digests]).encode()).hexdigest()
