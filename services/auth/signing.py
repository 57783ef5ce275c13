"""The keys that sign tokens: shared by all replicas, rotated without a break, sealed by the master key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.domain import signing_key as rules
from services.auth.domain import token
from services.auth.domain.errors import TryAgainError
from services.auth.domain.signing_key import StoredSigningKey
from services.auth.domain.token import AccessToken, SigningKey
from services.auth.store import DuplicateError, Records, Store
from services.common.ids import new_id
from services.common.sealing import Seal, UnsealableError
from services.common.service import StartupError

PURPOSE = "omnihub auth signing key"
# Each that loses has met another that won.
ROTATION_ATTEMPTS = 10

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys as they are at one moment: one signs, all verify."""

    signing: SigningKey
    known: Mapping[str, SigningKey]
    now: datetime

    @property
    def public_keys(self) -> Mapping[str, str]:
        """The public keys, as RFC 8037 writes them in `x`, by key id."""
        return {key.key_id: key.public_x() for key in self.known.values()}

    def access_token(self, user_id: str, organisation_id: str, lifetime_s: int) -> str:
        """Return an access token for a person."""
        return token.sign_access_token(self.signing, user_id, organisation_id, self.now, lifetime_s)

    def identity_token(self, identity: Mapping[str, Any], lifetime_s: int) -> str:
        """Return an identity token for other services."""
        return token.sign_identity_token(self.signing, identity, self.now, lifetime_s)

    def read_access_token(self, text: str) -> AccessToken:
        """Return what an access token says. Raises InvalidCredentialError."""
        return token.read_access_token(text, self.known, self.now)


class Signer:
    """Looks after the keys. Which there are is asked each time, so that replicas agree at every moment."""

    def __init__(self, store: Store, master_key: str, publish_s: float, now: Callable[[], datetime]) -> None:
        self._store = store
        self._seal = Seal(master_key, PURPOSE) if master_key else None
        self._publish_s = publish_s
        self._now = now
        self._opened: dict[str, SigningKey] = {}

    async def start(self) -> None:
        """Make the first key unless there is one. Raises StartupError when the keys cannot be opened."""
        if not await self._store.signing_keys():
            try:
                async with self._store.writing() as records:
                    await records.add_signing_key(self._make(1, None))
            except DuplicateError:
                _logger.info("signing_key_created_by_another_replica")
        for row in await self._store.signing_keys():
            self._open(row)
            if self._seal is not None and not row.sealed:
                async with self._store.writing() as records:
                    await records.save_sealed(row.key_id, self._seal.seal(row.private_key, row.key_id))

    async def ring(self) -> KeyRing:
        """Return the keys as they are now."""
        stored, now = await self._store.signing_keys(), self._now()
        known = {row.key_id: self._open(row) for row in rules.published(stored, now)}
        self._opened = known
        return KeyRing(known[rules.signing(stored, now).key_id], known, now)

    async def keys(self) -> tuple[list[StoredSigningKey], datetime]:
        """Return the published keys, the newest last, and the moment of which that is true."""
        now = self._now()
        return rules.published(await self._store.signing_keys(), now), now

    async def rotate(self, *, withdraw: bool) -> None:
        """Make the key that signs next; with `withdraw`, at once and alone. Raises TryAgainError."""
        for _ in range(ROTATION_ATTEMPTS):
            try:
                async with self._store.writing() as records:
                    await self._rotate(records, withdraw=withdraw)
                return
            except DuplicateError:
                # Somebody else rotated at the same moment: look at what that has changed.
                continue
        raise TryAgainError("others rotate the signing key at the same moment: try again")

    async def _rotate(self, records: Records, *, withdraw: bool) -> None:
        stored, now = await records.signing_keys(), self._now()
        newest = stored[-1]
        if newest.waits(now) and not withdraw:
            return
        # One of the same generation can be added only once, which settles who was first.
        signs_at = None if withdraw else now + timedelta(seconds=self._publish_s)
        successor = self._make(newest.generation + 1, signs_at)
        await records.add_signing_key(successor)
        removed = stored if withdraw else [key for key in stored if key.retired(now)]
        await records.remove_signing_keys([key.key_id for key in removed])
        if not withdraw:
            await records.save_retirement(rules.retiring(newest, successor))
        _logger.warning(
            "signing_key_rotated: %s follows %s, %s", successor.key_id, newest.key_id, _what(successor)
        )

    def _make(self, generation: int, signs_at: datetime | None) -> StoredSigningKey:
        key = SigningKey(new_id("sig"), Ed25519PrivateKey.generate())
        raw = key.to_bytes()
        private_key = self._seal.seal(raw, key.key_id) if self._seal else raw
        if self._seal is None:
            # Said when a key is made, not at each start.
            _logger.warning(
                "signing_key_stored_in_the_clear: the key that signs tokens lies unencrypted in the auth "
                "database; set OMNIHUB_MASTER_KEY and it is encrypted at the next start"
            )
        sealed = self._seal is not None
        return StoredSigningKey(key.key_id, generation, private_key, sealed, self._now(), signs_at)

    def _open(self, row: StoredSigningKey) -> SigningKey:
        opened = self._opened.get(row.key_id)
        return opened if opened is not None else SigningKey.from_bytes(row.key_id, self._private(row))

    def _private(self, row: StoredSigningKey) -> bytes:
        if not row.sealed:
            return row.private_key
        if self._seal is None:
            raise StartupError(
                "the signing keys in the auth database are encrypted: set OMNIHUB_MASTER_KEY to the key "
                "they were encrypted with"
            )
        try:
            return self._seal.open(row.private_key, row.key_id)
        except UnsealableError:
            raise StartupError(
                "OMNIHUB_MASTER_KEY is not the key the signing keys in the auth database were encrypted "
                "with: set the former one"
            ) from None


def _what(successor: StoredSigningKey) -> str:
    if successor.signs_at is None:
        return "all earlier keys are withdrawn and all logins end"
    return f"signs from {successor.signs_at.isoformat(timespec='seconds')} on"
