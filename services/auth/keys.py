"""API keys: creating, listing, rotating, revoking, and the first one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from services.auth.domain.errors import IdempotencyKeyReusedError, NotFoundError
from services.auth.domain.key import (
    ApiKey,
    check_repeat,
    check_revocation,
    check_rotation,
    grant,
    hash_request,
    hash_secret,
    hint_of,
    new_secret,
)
from services.auth.domain.organisation import Organisation
from services.auth.domain.place import place_of
from services.auth.domain.roles import BOOTSTRAP_SCOPES, Caller
from services.auth.domain.text import check_text, is_identifier
from services.auth.places import find_project, find_workspace
from services.auth.store import DuplicateError, Records, Store
from services.common.ids import new_id

# Those of the contract; a header can carry a longer idempotency key.
IDEMPOTENCY_KEY_LIMIT = 128
MODEL_LIMIT = 300


class Keys:
    """Looks after the keys of organisations."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store = store
        self._now = now

    async def create(
        self,
        caller: Caller,
        name: str,
        scopes: Sequence[str],
        models: Sequence[str],
        expires_in_s: int,
        idempotency_key: str,
        workspace_id: str = "",
        project_id: str = "",
        rescue: str = "",
    ) -> tuple[ApiKey, str]:
        """Return a new key and its secret; for a repeated request, the first key and an empty secret."""
        check_text("idempotency_key", idempotency_key, IDEMPOTENCY_KEY_LIMIT)
        for model in models:
            check_text("allowed_models", model, MODEL_LIMIT)
        name = check_text("name", name)
        granted_scopes, granted_models = grant(caller, scopes, models)
        secret = new_secret()
        now = self._now()
        key = ApiKey(
            key_id=new_id("key"),
            organisation_id=caller.organisation_id,
            user_id=caller.user_id,
            name=name,
            hint=hint_of(secret),
            secret_hash=hash_secret(secret),
            scopes=tuple(granted_scopes),
            allowed_models=tuple(granted_models),
            created_at=now,
            expires_at=now + timedelta(seconds=expires_in_s) if expires_in_s else None,
            idempotency_key=idempotency_key or None,
            request_hash=hash_request(
                name, scopes, models, expires_in_s, workspace_id, project_id, rescue=rescue
            ),
            workspace_id=workspace_id,
            project_id=project_id,
            rescue=rescue,
        )
        try:
            return await self._add(caller, key, secret)
        except DuplicateError:
            # The same request arrived twice at once; by now the other one is stored.
            return await self._add(caller, key, secret)

    async def _add(self, caller: Caller, key: ApiKey, secret: str) -> tuple[ApiKey, str]:
        async with self._store.writing() as records:
            if key.idempotency_key:
                earlier = await records.key_by_idempotency_key(key.organisation_id, key.idempotency_key)
                if earlier is not None:
                    if earlier.user_id != caller.user_id:
                        raise IdempotencyKeyReusedError("the idempotency key is taken: send a new one")
                    return check_repeat(earlier, key.request_hash), ""
            if await records.organisation(key.organisation_id) is None:
                raise NotFoundError("organisation", key.organisation_id)
            key = await _placed(records, caller, key)
            await records.add_key(key)
        return key, secret

    async def page(self, caller: Caller, before: str, limit: int) -> list[ApiKey]:
        """Return keys of the caller's organisation, newest first."""
        async with self._store.reading() as records:
            return await records.keys(caller.organisation_id, before, limit)

    async def rotate(self, caller: Caller, key_id: str, overlap_s: int) -> tuple[ApiKey, str]:
        """Give a key a new secret and return it; the old one works for `overlap_s` more seconds."""
        secret = new_secret()
        now = self._now()
        async with self._store.writing() as records:
            key = await _find(records, caller, key_id)
            check_rotation(caller, key)
            rotated = replace(
                key,
                hint=hint_of(secret),
                secret_hash=hash_secret(secret),
                previous_secret_hash=key.secret_hash if overlap_s else None,
                overlap_until=now + timedelta(seconds=overlap_s) if overlap_s else None,
            )
            await records.save_key(rotated)
        return rotated, secret

    async def revoke(self, caller: Caller, key_id: str) -> None:
        """End a key. Ending it again does nothing."""
        async with self._store.writing() as records:
            key = await _find(records, caller, key_id)
            check_revocation(caller, key)
            if key.revoked_at is None:
                await records.save_key(replace(key, revoked_at=self._now(), overlap_until=None))


class Bootstrap:
    """Makes the first organisation and its key, once for all replicas."""

    def __init__(self, store: Store, file: Path, secret: str, now: Callable[[], datetime]) -> None:
        self._store = store
        self._file = file
        self._given = secret
        self._now = now
        self._announcements: tuple[str, ...] = ()

    def announcements(self) -> Sequence[str]:
        """Return what the operator is told this once: the key, if this start generated it."""
        return self._announcements

    async def start(self) -> None:
        """Make the first organisation unless there is one."""
        async with self._store.reading() as records:
            if await records.has_organisation():
                return
        try:
            await self._create(self._given or new_secret())
        except DuplicateError:
            # Another replica was faster; its key is the first one.
            return

    async def _create(self, secret: str) -> None:
        now = self._now()
        organisation = Organisation(new_id("org"), "first organisation", True, now)
        async with self._store.writing() as records:
            # Waits for another replica that does the same, and then fails.
            await records.add_organisation(organisation)
            if not self._given:
                # Before the commit: a key that nobody could read afterwards must not exist.
                _write_secret(self._file, secret)
            await records.add_key(
                ApiKey(
                    key_id=new_id("key"),
                    organisation_id=organisation.organisation_id,
                    user_id="",
                    name="bootstrap",
                    hint=hint_of(secret),
                    secret_hash=hash_secret(secret),
                    scopes=BOOTSTRAP_SCOPES,
                    allowed_models=(),
                    created_at=now,
                )
            )
        if not self._given:
            self._announcements = (f"API key (shown once, kept in {self._file}): {secret}",)


def _write_secret(file: Path, secret: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


async def _placed(records: Records, caller: Caller, key: ApiKey) -> ApiKey:
    """Return a new key with the place it belongs to; that place stays until the key is stored."""
    project = await find_project(records, caller, key.project_id) if key.project_id else None
    workspace_id, project_id = place_of(caller, key.workspace_id, project)
    if workspace_id:
        await find_workspace(records, caller, workspace_id)
    return replace(key, workspace_id=workspace_id, project_id=project_id)


async def _find(records: Records, caller: Caller, key_id: str) -> ApiKey:
    found = await records.key(caller.organisation_id, key_id, lock=True) if is_identifier(key_id) else None
    if found is None:
        raise NotFoundError("key", key_id)
    return found
