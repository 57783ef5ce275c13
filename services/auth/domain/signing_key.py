"""When a key that signs tokens signs, and how long it is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

# No token lives longer: the settings allow no longer logins.
LONGEST_TOKEN_S = 86_400
# How far the clocks of replicas may be apart.
CLOCKS_APART_S = 60


class KeyState(StrEnum):
    """What a published key is there for."""

    NEXT = "next"
    SIGNING = "signing"
    RETIRING = "retiring"


@dataclass(frozen=True, slots=True)
class StoredSigningKey:
    """A signing key as it lies in the database."""

    key_id: str
    generation: int
    private_key: bytes
    sealed: bool
    created_at: datetime
    signs_at: datetime | None = None
    """None: since it was made."""
    retires_at: datetime | None = None
    """None: no key follows it yet."""

    def waits(self, now: datetime) -> bool:
        """Tell whether it is published, but does not sign yet."""
        return self.signs_at is not None and self.signs_at > now

    def retired(self, now: datetime) -> bool:
        """Tell whether all it signed has expired."""
        return self.retires_at is not None and self.retires_at <= now


def signing(keys: Sequence[StoredSigningKey], now: datetime) -> StoredSigningKey:
    """Return the key that signs now, of keys in the order of their generations."""
    return next((key for key in reversed(keys) if not key.waits(now)), keys[0])


def published(keys: Sequence[StoredSigningKey], now: datetime) -> list[StoredSigningKey]:
    """Return the keys whose signatures count."""
    return [key for key in keys if not key.retired(now)]


def state_of(key: StoredSigningKey, keys: Sequence[StoredSigningKey], now: datetime) -> KeyState:
    """Return what one of `keys` is there for."""
    if key == signing(keys, now):
        return KeyState.SIGNING
    return KeyState.NEXT if key.waits(now) else KeyState.RETIRING


def retiring(key: StoredSigningKey, successor: StoredSigningKey) -> StoredSigningKey:
    """Return `key` as it is once another follows: published until all it will have signed has expired."""
    last = successor.signs_at or successor.created_at
    return replace(key, retires_at=last + timedelta(seconds=LONGEST_TOKEN_S + CLOCKS_APART_S))
