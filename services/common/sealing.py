"""Secrets at rest: sealed with a key derived from the master key."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12


class UnsealableError(Exception):
    """The sealed bytes were changed, or sealed with another master key or for another purpose."""


class Seal:
    """Seals with AES-256-GCM; `purpose` keeps keys for different uses apart."""

    def __init__(self, master_key: str, purpose: str) -> None:
        derived = HKDF(SHA256(), length=32, salt=None, info=purpose.encode()).derive(master_key.encode())
        self._cipher = AESGCM(derived)

    def seal(self, plain: bytes, name: str) -> bytes:
        """Return `plain` sealed under `name`, which must be the same when it is opened."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return what was sealed. Raises UnsealableError."""
        nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, ciphertext, name.encode())
        except (InvalidTag, ValueError):
            raise UnsealableError from None
