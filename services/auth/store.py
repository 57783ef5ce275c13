"""All persistence of the auth service: SQLite and PostgreSQL, the same code.

`Store` opens transactions; `Records` are the questions and changes inside one. A change that other
processes may have cached is announced in the transaction that makes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.auth import tables
from services.auth.domain.key import ApiKey
from services.auth.domain.organisation import Invitation, Membership, Organisation, User
from services.auth.domain.signing_key import StoredSigningKey
from services.auth.place_records import PlaceRecords
from services.common.authenticator import SIGNING_KEY_TOPIC
from services.common.change_feed import OVERLAP, ChangeFeed
from services.common.db import Database

_SIGNING_KEYS = sa.select(tables.signing_key).order_by(tables.signing_key.c.generation)


class DuplicateError(Exception):
    """Something unique exists already; the transaction is rolled back."""


class Store:
    """Opens transactions on the service's own database."""

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Records]:
        """Open a transaction that commits at its end. Raises DuplicateError."""
        try:
            async with self._database.transaction() as connection:
                yield Records(connection, self._feed, self._database.sqlite)
        except IntegrityError as error:
            raise DuplicateError(str(error.orig)) from error

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Records]:
        """Open a connection that only reads."""
        async with self._database.reading() as connection:
            yield Records(connection, self._feed, self._database.sqlite)

    async def signing_keys(self) -> list[StoredSigningKey]:
        """Return all signing keys, the newest last: a small question that each new token asks."""
        return [StoredSigningKey(**row._mapping) for row in await self._database.look(_SIGNING_KEYS)]


class Records(PlaceRecords):
    """Everything stored, inside one transaction."""

    def __init__(self, connection: AsyncConnection, feed: ChangeFeed, on_sqlite: bool) -> None:
        self._connection = connection
        self._feed = feed
        self._insert: Any = sqlite.insert if on_sqlite else postgresql.insert

    async def _one(self, query: sa.Select[Any]) -> Any:
        return (await self._connection.execute(query)).one_or_none()

    async def _all(self, query: sa.Select[Any]) -> list[Any]:
        return list((await self._connection.execute(query)).all())

    async def _add(self, table: sa.Table, row: dict[str, Any]) -> None:
        await self._connection.execute(sa.insert(table).values(row))

    # Organisations

    async def add_organisation(self, organisation: Organisation) -> None:
        """Add an organisation. The transaction raises DuplicateError for a second first one."""
        await self._add(tables.organisation, asdict(organisation))
        await self._feed.append(self._connection, "organisation", organisation.organisation_id)

    async def has_organisation(self) -> bool:
        """Tell whether there is any organisation."""
        query = sa.select(tables.organisation.c.organisation_id).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def organisation(self, organisation_id: str) -> Organisation | None:
        """Return an organisation."""
        table = tables.organisation
        row = await self._one(sa.select(table).where(table.c.organisation_id == organisation_id))
        return None if row is None else Organisation(**row._mapping)

    async def lock_organisation(self, organisation_id: str) -> None:
        """Let nobody else change the organisation's members until this transaction ends."""
        table = tables.organisation
        query = sa.select(table.c.organisation_id).where(table.c.organisation_id == organisation_id)
        await self._connection.execute(query.with_for_update())

    async def organisations_since(self, seq: int) -> list[Organisation]:
        """Return the organisations created after feed position `seq`, possibly a few more; 0 means all."""
        table, changes = tables.organisation, tables.changes
        query = sa.select(table).order_by(table.c.organisation_id)
        if seq:
            created = sa.select(changes.c.key).where(
                changes.c.topic == "organisation", changes.c.seq > seq - OVERLAP
            )
            query = query.where(table.c.organisation_id.in_(created))
        return [Organisation(**row._mapping) for row in await self._all(query)]

    async def organisations_of(self, user_id: str, after: str, limit: int) -> list[Organisation]:
        """Return organisations a person belongs to, by id."""
        table, member = tables.organisation, tables.membership
        query = (
            sa.select(table)
            .join(member, member.c.organisation_id == table.c.organisation_id)
            .where(member.c.user_id == user_id, member.c.removed_at.is_(None))
            .where(table.c.organisation_id > after)
            .order_by(table.c.organisation_id)
            .limit(limit)
        )
        return [Organisation(**row._mapping) for row in await self._all(query)]

    # People

    async def add_user(self, user: User) -> None:
        """Add a person. The transaction raises DuplicateError when the email is taken."""
        await self._add(tables.user, asdict(user))

    async def user(self, user_id: str) -> User | None:
        """Return a person."""
        row = await self._one(sa.select(tables.user).where(tables.user.c.user_id == user_id))
        return None if row is None else User(**row._mapping)

    async def user_by_email(self, email: str) -> User | None:
        """Return the person with a normalised email."""
        row = await self._one(sa.select(tables.user).where(tables.user.c.email == email))
        return None if row is None else User(**row._mapping)

    async def set_password_hash(self, user_id: str, password_hash: str) -> None:
        """Store a password's new hash."""
        update = sa.update(tables.user).where(tables.user.c.user_id == user_id)
        await self._connection.execute(update.values(password_hash=password_hash))

    # Memberships

    async def add_membership(self, membership: Membership) -> None:
        """Make a person a member."""
        await self._add(tables.membership, asdict(membership))
        await self._feed.append(self._connection, "membership", membership.user_id)

    async def membership(
        self, organisation_id: str, user_id: str, *, removed: bool = False
    ) -> Membership | None:
        """Return a person's membership; with `removed` also one that ended."""
        table = tables.membership
        query = _memberships().where(table.c.organisation_id == organisation_id, table.c.user_id == user_id)
        row = await self._one(query if removed else query.where(table.c.removed_at.is_(None)))
        return None if row is None else Membership(**row._mapping)

    async def memberships_of(self, user_id: str) -> list[Membership]:
        """Return a person's memberships, the first joined first."""
        table = tables.membership
        query = _memberships().where(table.c.user_id == user_id, table.c.removed_at.is_(None))
        rows = await self._all(query.order_by(table.c.joined_at, table.c.organisation_id))
        return [Membership(**row._mapping) for row in rows]

    async def members(self, organisation_id: str, after: str, limit: int) -> list[tuple[User, Membership]]:
        """Return the members of an organisation, by user id."""
        member, user = tables.membership, tables.user
        query = (
            sa.select(user, member.c.role, member.c.joined_at)
            .join(member, member.c.user_id == user.c.user_id)
            .where(member.c.organisation_id == organisation_id, member.c.removed_at.is_(None))
            .where(user.c.user_id > after)
            .order_by(user.c.user_id)
            .limit(limit)
        )
        members = []
        for row in await self._all(query):
            person = User(row.user_id, row.email, row.display_name, row.password_hash, row.created_at)
            members.append((person, Membership(organisation_id, row.user_id, row.role, row.joined_at)))
        return members

    async def count_owners(self, organisation_id: str) -> int:
        """Return how many owners an organisation has."""
        table = tables.membership
        query = sa.select(sa.func.count()).where(
            table.c.organisation_id == organisation_id,
            table.c.role == "owner",
            table.c.removed_at.is_(None),
        )
        return await self._connection.scalar(query) or 0

    async def set_role(self, organisation_id: str, user_id: str, role: str) -> None:
        """Change a member's role."""
        await self._change_membership(organisation_id, user_id, role=role)

    async def renew_membership(self, membership: Membership) -> bool:
        """Make somebody a member again who was one. Tells whether the membership had ended."""
        table = tables.membership
        update = (
            sa.update(table)
            .where(table.c.organisation_id == membership.organisation_id)
            .where(table.c.user_id == membership.user_id, table.c.removed_at.is_not(None))
            .values(role=membership.role, joined_at=membership.joined_at, removed_at=None)
        )
        if not (await self._connection.execute(update)).rowcount:
            return False
        await self._feed.append(self._connection, "membership", membership.user_id)
        return True

    async def end_membership(self, organisation_id: str, user_id: str, now: datetime) -> None:
        """Remove a member, and end the keys that were theirs."""
        await self._change_membership(organisation_id, user_id, removed_at=now)
        table = tables.api_key
        update = (
            sa.update(table)
            .where(table.c.organisation_id == organisation_id, table.c.user_id == user_id)
            .where(table.c.revoked_at.is_(None))
            .values(revoked_at=now)
            .returning(table.c.key_id)
        )
        ended = (await self._connection.execute(update)).scalars().all()
        await self._feed.append(self._connection, "key", *ended)

    async def _change_membership(self, organisation_id: str, user_id: str, **values: Any) -> None:
        table = tables.membership
        update = sa.update(table).where(
            table.c.organisation_id == organisation_id, table.c.user_id == user_id
        )
        await self._connection.execute(update.values(**values))
        await self._feed.append(self._connection, "membership", user_id)

    # Invitations

    async def add_invitation(self, invitation: Invitation, secret_hash: str, now: datetime) -> None:
        """Add an invitation."""
        row = {**asdict(invitation), "secret_hash": secret_hash, "created_at": now}
        await self._add(tables.invitation, row)

    async def invitation(self, secret_hash: str, now: datetime) -> Invitation | None:
        """Return an invitation that could be claimed now."""
        row = (await self._connection.execute(_open_invitation(secret_hash, now))).one_or_none()
        return None if row is None else Invitation(**row._mapping)

    async def claim_invitation(self, secret_hash: str, now: datetime) -> Invitation | None:
        """Use up an invitation; None when it is unknown, used or expired. One of many callers gets it."""
        table = tables.invitation
        update = (
            sa.update(table)
            .where(table.c.secret_hash == secret_hash, table.c.used_at.is_(None), table.c.expires_at > now)
            .values(used_at=now)
            .returning(*(table.c[name] for name in Invitation.__dataclass_fields__))
        )
        row = (await self._connection.execute(update)).one_or_none()
        return None if row is None else Invitation(**row._mapping)

    # API keys

    async def add_key(self, key: ApiKey) -> None:
        """Add a key. The transaction raises DuplicateError when its secret or idempotency key is taken."""
        await self._add(tables.api_key, asdict(key))
        await self._feed.append(self._connection, "key", key.key_id)

    async def key(self, organisation_id: str, key_id: str, *, lock: bool = False) -> ApiKey | None:
        """Return a key of an organisation; with `lock`, nobody else changes it in the meantime."""
        table = tables.api_key
        query = sa.select(table).where(table.c.organisation_id == organisation_id, table.c.key_id == key_id)
        return _key(await self._one(query.with_for_update() if lock else query))

    async def key_by_hash(self, secret_hash: str) -> ApiKey | None:
        """Return the key whose present or previous secret has this hash."""
        table = tables.api_key
        known = sa.or_(table.c.secret_hash == secret_hash, table.c.previous_secret_hash == secret_hash)
        return _key(await self._one(sa.select(table).where(known)))

    async def key_by_idempotency_key(self, organisation_id: str, idempotency_key: str) -> ApiKey | None:
        """Return the key that a request with this idempotency key created."""
        table = tables.api_key
        query = sa.select(table).where(
            table.c.organisation_id == organisation_id, table.c.idempotency_key == idempotency_key
        )
        return _key(await self._one(query))

    async def keys(self, organisation_id: str, before: str, limit: int) -> list[ApiKey]:
        """Return keys of an organisation, newest first, from the one before key id `before`."""
        table = tables.api_key
        query = sa.select(table).where(table.c.organisation_id == organisation_id)
        if before:
            query = query.where(table.c.key_id < before)
        rows = await self._all(query.order_by(table.c.key_id.desc()).limit(limit))
        return [found for row in rows if (found := _key(row)) is not None]

    async def save_key(self, key: ApiKey) -> None:
        """Store what changed about a key: its secrets, its revocation."""
        values = {
            "hint": key.hint,
            "secret_hash": key.secret_hash,
            "previous_secret_hash": key.previous_secret_hash,
            "overlap_until": key.overlap_until,
            "revoked_at": key.revoked_at,
        }
        table = tables.api_key
        await self._connection.execute(sa.update(table).where(table.c.key_id == key.key_id).values(values))
        await self._feed.append(self._connection, "key", key.key_id)

    # Signing keys

    async def signing_keys(self) -> list[StoredSigningKey]:
        """Return all signing keys, the newest last."""
        return [StoredSigningKey(**row._mapping) for row in await self._all(_SIGNING_KEYS)]

    async def add_signing_key(self, key: StoredSigningKey) -> None:
        """Add a signing key. The transaction raises DuplicateError when its generation exists."""
        await self._add(tables.signing_key, asdict(key))

    async def save_retirement(self, key: StoredSigningKey) -> None:
        """Store until when a signing key is published."""
        update = sa.update(tables.signing_key).where(tables.signing_key.c.key_id == key.key_id)
        await self._connection.execute(update.values(retires_at=key.retires_at))

    async def remove_signing_keys(self, key_ids: Sequence[str]) -> None:
        """Delete signing keys, and tell everyone that what they signed counts no longer."""
        table = tables.signing_key
        await self._connection.execute(sa.delete(table).where(table.c.key_id.in_(key_ids)))
        await self._feed.append(self._connection, SIGNING_KEY_TOPIC, *key_ids)

    async def save_sealed(self, key_id: str, private_key: bytes) -> None:
        """Replace a signing key that lay open with its sealed form."""
        update = sa.update(tables.signing_key).where(tables.signing_key.c.key_id == key_id)
        await self._connection.execute(update.values(private_key=private_key, sealed=True))

    # Failed logins

    async def count_attempt(
        self, subject: str, now: datetime, window_ends_at: datetime
    ) -> tuple[int, datetime]:
        """Count a login attempt before it is tried. Return the attempts in the window and its end."""
        table = tables.login_failure
        over = table.c.window_ends_at <= now
        counting = (
            self._insert(table)
            .values(email_hash=subject, window_ends_at=window_ends_at, attempts=1)
            .on_conflict_do_update(
                index_elements=[table.c.email_hash],
                set_={
                    "attempts": sa.case((over, 1), else_=table.c.attempts + 1),
                    "window_ends_at": sa.case((over, window_ends_at), else_=table.c.window_ends_at),
                },
            )
            .returning(table.c.attempts, table.c.window_ends_at)
        )
        row = (await self._connection.execute(counting)).one()
        return row.attempts, row.window_ends_at

    async def take_attempt_back(self, subject: str) -> None:
        """Count one attempt less, after one that succeeded."""
        table = tables.login_failure
        update = sa.update(table).where(table.c.email_hash == subject, table.c.attempts > 0)
        await self._connection.execute(update.values(attempts=table.c.attempts - 1))

    async def forget_attempts(self, subject: str) -> None:
        """Forget the attempts for an email, after one that succeeded."""
        table = tables.login_failure
        await self._connection.execute(sa.delete(table).where(table.c.email_hash == subject))

    async def forget_old_attempts(self, now: datetime) -> None:
        """Delete some of what is over. Each attempt adds two rows and deletes more, so they stay few."""
        table = tables.login_failure
        # Last and without waiting for locks, so that two logins never wait for each other.
        over = table.c.window_ends_at <= now
        old = sa.select(table.c.email_hash).where(over).limit(100).with_for_update(skip_locked=True)
        await self._connection.execute(sa.delete(table).where(table.c.email_hash.in_(old)))


def _open_invitation(secret_hash: str, now: datetime) -> sa.Select[Any]:
    table = tables.invitation
    return sa.select(*(table.c[name] for name in Invitation.__dataclass_fields__)).where(
        table.c.secret_hash == secret_hash, table.c.used_at.is_(None), table.c.expires_at > now
    )


def _memberships() -> sa.Select[Any]:
    return sa.select(*(tables.membership.c[name] for name in Membership.__dataclass_fields__))


def _key(row: Any) -> ApiKey | None:
    if row is None:
        return None
    values = dict(row._mapping)
    values["scopes"] = tuple(values["scopes"])
    values["allowed_models"] = tuple(values["allowed_models"])
    return ApiKey(**values)
