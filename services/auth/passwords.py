"""Passwords: argon2id, in threads of their own."""

from __future__ import annotations

import asyncio
import base64
import secrets
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import ARGON2_VERSION


class Passwords:
    """Hashes and verifies. Each takes a core and much memory for a moment, so at most `threads` at a time."""

    def __init__(self, *, threads: int, memory_kib: int, passes: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="password")
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib)
        # Verified for people who do not exist, so that the answer takes as long as for those who do.
        self._nobody = _hash_of_no_password(self._hasher)

    async def hash(self, password: str) -> str:
        """Return a password's hash, with its salt and parameters."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.hash, password)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Tell whether the password is right. None, for nobody, takes the same time and is always wrong."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._verify, password_hash, password)

    def is_outdated(self, password_hash: str) -> bool:
        """Tell whether a hash was made with weaker parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str | None, password: str) -> bool:
        try:
            self._hasher.verify(password_hash or self._nobody, password)
        except (VerificationError, InvalidHashError):
            return False
        return password_hash is not None


def _hash_of_no_password(hasher: PasswordHasher) -> str:
    """Return what looks like a hash and takes as long to verify, without the work of making one."""
    salt, digest = (
        base64.b64encode(secrets.token_bytes(length)).decode().rstrip("=")
        for length in (hasher.salt_len, hasher.hash_len)
    )
    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v={ARGON2_VERSION}${cost}${salt}${digest}"
