"""The keys that sign tokens: made once, shared by all replicas, sealed when there is a master key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.domain import token
from services.auth.domain.token import AccessToken, SigningKey
from services.auth.store import DuplicateError, Store, StoredSigningKey
from services.common.ids import new_id
from services.common.sealing import Seal, UnsealableError
from services.common.service import StartupError

PURPOSE = "omnihub auth signing key"

_logger = logging.getLogger(__name__)


class Signer:
    """Signs with the newest key and verifies with all of them."""

    def __init__(self, store: Store, master_key: str, now: Callable[[], datetime]) -> None:
        self._store = store
        self._seal = Seal(master_key, PURPOSE) if master_key else None
        self._now = now
        self._keys: dict[str, SigningKey] = {}
        self._newest: SigningKey

    async def start(self) -> None:
        """Read the keys, or make the first one. Raises StartupError when they cannot be opened."""
        async with self._store.reading() as records:
            stored = await records.signing_keys()
        if not stored:
            try:
                await self._create()
            except DuplicateError:
                _logger.info("signing_key_created_by_another_replica")
            async with self._store.reading() as records:
                stored = await records.signing_keys()
        for row in stored:
            self._newest = self._keys[row.key_id] = await self._open(row)

    @property
    def public_keys(self) -> Mapping[str, str]:
        """The public keys, as RFC 8037 writes them in `x`, by key id."""
        return {key.key_id: key.public_x() for key in self._keys.values()}

    def access_token(self, user_id: str, organisation_id: str, lifetime_s: int) -> str:
        """Return an access token for a person."""
        return token.sign_access_token(self._newest, user_id, organisation_id, self._now(), lifetime_s)

    def identity_token(self, identity: Mapping[str, Any], lifetime_s: int) -> str:
        """Return an identity token for other services."""
        return token.sign_identity_token(self._newest, identity, self._now(), lifetime_s)

    def read_access_token(self, text: str) -> AccessToken:
        """Return what an access token says. Raises InvalidCredentialError."""
        return token.read_access_token(text, self._keys, self._now())

    async def _create(self) -> None:
        key = SigningKey(new_id("sig"), Ed25519PrivateKey.generate())
        raw = key.to_bytes()
        private_key = self._seal.seal(raw, key.key_id) if self._seal else raw
        sealed = self._seal is not None
        async with self._store.writing() as records:
            await records.add_signing_key(StoredSigningKey(key.key_id, 1, private_key, sealed, self._now()))
        if not sealed:
            # Said once, when the key is made, not at each start.
            _logger.warning(
                "signing_key_stored_in_the_clear: the key that signs tokens lies unencrypted in the auth "
                "database; set OMNIHUB_MASTER_KEY and it is encrypted at the next start"
            )

    async def _open(self, row: StoredSigningKey) -> SigningKey:
        if not row.sealed:
            if self._seal is not None:
                async with self._store.writing() as records:
                    await records.save_sealed(row.key_id, self._seal.seal(row.private_key, row.key_id))
            return SigningKey.from_bytes(row.key_id, row.private_key)
        if self._seal is None:
            raise StartupError(
                "the signing keys in the auth database are encrypted: set OMNIHUB_MASTER_KEY to the key "
                "they were encrypted with"
            )
        try:
            return SigningKey.from_bytes(row.key_id, self._seal.open(row.private_key, row.key_id))
        except UnsealableError:
            raise StartupError(
                "OMNIHUB_MASTER_KEY is not the key the signing keys in the auth database were encrypted "
                "with: set the former one"
            ) from None
