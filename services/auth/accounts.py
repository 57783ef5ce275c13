"""People and their places: registering, logging in, invitations, members."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from services.auth.domain.errors import (
    AlreadyExistsError,
    AuthError,
    InvalidCredentialError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
)
from services.auth.domain.login import address_subject, email_subject
from services.auth.domain.organisation import (
    Invitation,
    Membership,
    Organisation,
    User,
    check_invitation,
    check_registration,
    hash_invitation,
    new_invitation_secret,
)
from services.auth.domain.roles import OWNER, Caller, check_role_change
from services.auth.domain.text import check_text, is_identifier, normalise_email
from services.auth.passwords import Passwords
from services.auth.settings import AuthSettings
from services.auth.store import DuplicateError, Records, Store
from services.common.ids import new_id

INVITATION_LIFETIME_S = 7 * 24 * 3600
WRONG_LOGIN = "the email or the password is wrong"


class Accounts:
    """Registers people, logs them in and looks after memberships."""

    def __init__(
        self, store: Store, passwords: Passwords, settings: AuthSettings, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._settings = settings
        self._now = now

    async def register(
        self, email: str, password: str, display_name: str, invitation: str, organisation_name: str
    ) -> tuple[User, Membership]:
        """Add a person, to the inviting organisation or one of their own."""
        check_registration(self._settings.registration, bool(invitation))
        email = normalise_email(email)
        display_name = check_text("display_name", display_name)
        organisation_name = check_text("organisation_name", organisation_name)
        now = self._now()
        if invitation:
            # Before the costly hash, so that guessing invitations costs us nothing. It is claimed later.
            async with self._store.reading() as records:
                check_invitation(await records.invitation(hash_invitation(invitation), now), email)
        password_hash = await self._passwords.hash(password)
        user = User(new_id("usr"), email, display_name, password_hash, now)
        try:
            async with self._store.writing() as records:
                if invitation:
                    claimed = await records.claim_invitation(hash_invitation(invitation), now)
                    place = check_invitation(claimed, email)
                    membership = Membership(place.organisation_id, user.user_id, place.role, now)
                else:
                    name = organisation_name or display_name or email
                    organisation = Organisation(new_id("org"), name, False, now)
                    await records.add_organisation(organisation)
                    membership = Membership(organisation.organisation_id, user.user_id, OWNER, now)
                await records.add_user(user)
                await records.add_membership(membership)
        except DuplicateError:
            raise AlreadyExistsError("the email is registered: log in") from None
        return user, membership

    async def login(
        self, email: str, password: str, organisation_id: str, client_address: str
    ) -> tuple[User, Membership]:
        """Return who logged in and where they act. The same failure whatever was wrong."""
        await self._count_attempt(email, client_address)
        user = await self._find(email)
        password_hash = user.password_hash if user else None
        if not await self._passwords.verify(password_hash, password) or user is None:
            raise InvalidCredentialError(WRONG_LOGIN)
        rehashed = None
        if password_hash and self._passwords.is_outdated(password_hash):
            rehashed = await self._passwords.hash(password)
        async with self._store.writing() as records:
            if client_address:
                # One less, not none: who guesses must not start anew by logging in as themselves.
                await records.take_attempt_back(address_subject(client_address))
            await records.forget_attempts(email_subject(email))
            if rehashed:
                await records.set_password_hash(user.user_id, rehashed)
            memberships = await records.memberships_of(user.user_id)
        if not memberships:
            raise InvalidCredentialError(WRONG_LOGIN)
        if not organisation_id:
            return user, memberships[0]
        for membership in memberships:
            if membership.organisation_id == organisation_id:
                return user, membership
        raise NotFoundError("organisation", organisation_id)

    async def _count_attempt(self, email: str, client_address: str) -> None:
        """Count before trying, so that attempts made at the same time are all counted.

        What is refused is no attempt, and counts for nobody. Raises RateLimitedError.
        """
        settings = self._settings
        per_address = settings.login_failures_per_address_limit
        async with self._store.writing() as records:
            # Always in this order, so that two logins never wait for each other in a circle.
            if client_address and per_address:
                subject = address_subject(client_address)
                await self._count(records, subject, per_address, "from your address")
            await self._count(records, email_subject(email), settings.login_failures_limit, "for this email")
            await records.forget_old_attempts(self._now())

    async def _count(self, records: Records, subject: str, limit: int, whose: str) -> None:
        now = self._now()
        window_ends_at = now + timedelta(seconds=self._settings.login_window_s)
        attempts, ends_at = await records.count_attempt(subject, now, window_ends_at)
        if attempts > limit:
            wait_s = max(1.0, (ends_at - now).total_seconds())
            raise RateLimitedError(f"too many failed logins {whose}: wait {math.ceil(wait_s)} s", wait_s)

    async def _find(self, email: str) -> User | None:
        try:
            normal = normalise_email(email)
        except AuthError:
            return None
        async with self._store.reading() as records:
            return await records.user_by_email(normal)

    async def invite(self, caller: Caller, email: str, role: str, expires_in_s: int) -> tuple[str, str]:
        """Return the secret and the id of a new invitation into the caller's organisation."""
        email = normalise_email(email) if email else ""
        now = self._now()
        expires_at = now + timedelta(seconds=expires_in_s or INVITATION_LIFETIME_S)
        secret = new_invitation_secret()
        invitation = Invitation(new_id("inv"), caller.organisation_id, email, role, expires_at)
        async with self._store.writing() as records:
            await _organisation(records, caller.organisation_id)
            await records.add_invitation(invitation, hash_invitation(secret), now)
        return secret, invitation.invitation_id

    async def accept(self, caller: Caller, invitation: str) -> tuple[Organisation, Membership]:
        """Make a person who is known already a member of the inviting organisation, perhaps again."""
        if not caller.user_id or caller.key_id:
            raise PermissionDeniedError(
                "only a person joins an organisation: log in and use the access token"
            )
        now = self._now()
        async with self._store.writing() as records:
            user = await records.user(caller.user_id)
            if user is None:
                raise NotFoundError("user", caller.user_id)
            # What is raised from here on takes the claim back.
            claimed = await records.claim_invitation(hash_invitation(invitation), now)
            place = check_invitation(claimed, user.email)
            await records.lock_organisation(place.organisation_id)
            before = await records.membership(place.organisation_id, user.user_id, removed=True)
            membership = Membership(place.organisation_id, user.user_id, place.role, now)
            if before is None:
                await records.add_membership(membership)
            elif not await records.renew_membership(membership):
                raise AlreadyExistsError(
                    f"you are a member already: log in with organisation_id {place.organisation_id}"
                )
            return await _organisation(records, place.organisation_id), membership

    async def describe(self, caller: Caller) -> tuple[User | None, Organisation]:
        """Return the caller's person, if any, and organisation."""
        async with self._store.reading() as records:
            user = await records.user(caller.user_id) if caller.user_id else None
            return user, await _organisation(records, caller.organisation_id)

    async def organisations(self, caller: Caller, after: str, limit: int) -> list[Organisation]:
        """Return the organisations the caller belongs to, by id."""
        async with self._store.reading() as records:
            if caller.user_id and not caller.key_id:
                return await records.organisations_of(caller.user_id, after, limit)
            # A key acts in one organisation, whoever it belongs to.
            organisation = await records.organisation(caller.organisation_id)
        return [organisation] if organisation and organisation.organisation_id > after else []

    async def members(self, caller: Caller, after: str, limit: int) -> list[tuple[User, Membership]]:
        """Return members of the caller's organisation, by user id."""
        async with self._store.reading() as records:
            return await records.members(caller.organisation_id, after, limit)

    async def change_role(self, caller: Caller, user_id: str, role: str) -> tuple[User, Membership]:
        """Give a member another role."""
        organisation_id = caller.organisation_id
        async with self._store.writing() as records:
            membership = await self._member_for_change(records, caller, user_id, role)
            user = await records.user(user_id)
            if membership is None or user is None:
                raise NotFoundError("member", user_id)
            if membership.role != role:
                await records.set_role(organisation_id, user_id, role)
        return user, replace(membership, role=role)

    async def remove(self, caller: Caller, user_id: str) -> None:
        """End a membership, and the keys that belong to it. Ending it again does nothing."""
        async with self._store.writing() as records:
            membership = await self._member_for_change(records, caller, user_id, "")
            if membership is not None:
                await records.end_membership(caller.organisation_id, user_id, self._now())
            elif not await _was_member(records, caller.organisation_id, user_id):
                raise NotFoundError("member", user_id)

    async def _member_for_change(
        self, records: Records, caller: Caller, user_id: str, role: str
    ) -> Membership | None:
        """Return a membership that `caller` may change to `role`, or end when it is empty."""
        if not is_identifier(user_id):
            raise NotFoundError("member", user_id)
        # Two owners who step down at the same time must see each other.
        await records.lock_organisation(caller.organisation_id)
        membership = await records.membership(caller.organisation_id, user_id)
        if membership is not None:
            owners = await records.count_owners(caller.organisation_id)
            check_role_change(caller, membership.role, role, owners)
        return membership


async def _organisation(records: Records, organisation_id: str) -> Organisation:
    organisation = await records.organisation(organisation_id)
    if organisation is None:
        raise NotFoundError("organisation", organisation_id)
    return organisation


async def _was_member(records: Records, organisation_id: str, user_id: str) -> bool:
    return await records.membership(organisation_id, user_id, removed=True) is not None
