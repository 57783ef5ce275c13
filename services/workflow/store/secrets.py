"""Secrets that all replicas share: made once, sealed when there is a master key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.common.sealing import Seal, UnsealableError
from services.common.service import StartupError
from services.workflow.material_tables import shared_secret

PURPOSE = "omnihub workflow secrets"


class Vault:
    """Seals and opens what lies in this service's database."""

    def __init__(self, database: Database, master_key: str) -> None:
        self._database = database
        self._master_key = master_key
        self._seal = Seal(master_key, PURPOSE) if master_key else None

    @property
    def seals(self) -> bool:
        """Tell whether there is a master key."""
        return self._seal is not None

    def close(self, plain: bytes, name: str) -> bytes:
        """Return a secret as it is stored."""
        return self._seal.seal(plain, name) if self._seal else plain

    def open(self, stored: bytes, sealed: bool, name: str) -> bytes:
        """Return a stored secret. Raises StartupError naming what to set."""
        if not sealed:
            return stored
        if self._seal is None:
            raise StartupError("secrets in the workflow database are encrypted: set OMNIHUB_MASTER_KEY")
        try:
            return self._seal.open(stored, name)
        except UnsealableError:
            raise StartupError(
                "OMNIHUB_MASTER_KEY is not the key that the secrets in the workflow database were "
                "encrypted with: set the former one"
            ) from None

    async def signing_secret(self, name: str, make: Callable[[], bytes], now: int) -> bytes:
        """Return a secret of 32 bytes: derived from the master key, or else made once for all replicas."""
        if self._master_key:
            key = HKDF(SHA256(), length=32, salt=None, info=f"{PURPOSE} {name}".encode())
            return key.derive(self._master_key.encode())
        return await self.shared(name, make, now)

    async def shared(self, name: str, make: Callable[[], bytes], now: int) -> bytes:
        """Return a secret that the first replica makes."""
        row = await self._read(name)
        if row is None:
            entry = {
                "name": name,
                "value": self.close(make(), name),
                "sealed": self.seals,
                "created_at": now,
            }
            insert = (sqlite.insert if self._database.sqlite else postgresql.insert)(shared_secret)
            async with self._database.transaction() as connection:
                await connection.execute(insert.values(entry).on_conflict_do_nothing())
            row = await self._read(name)
        return self.open(bytes(row.value), row.sealed, name)

    async def _read(self, name: str) -> Any:
        query = sa.select(shared_secret).where(shared_secret.c.name == name)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).one_or_none()
