"""Organisations, people, and how they come together."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.auth.domain.errors import RegistrationClosedError

Registration = Literal["open", "invite", "closed"]
INVITATION_PREFIX = "omni_inv_"


@dataclass(frozen=True, slots=True)
class Organisation:
    """Who owns everything: members and keys belong to one."""

    organisation_id: str
    name: str
    bootstrap: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class User:
    """A person. Without `password_hash` they log in at the external issuer only."""

    user_id: str
    email: str
    display_name: str
    password_hash: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Membership:
    """A person's place in an organisation."""

    organisation_id: str
    user_id: str
    role: str
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class Invitation:
    """A way into an organisation, for one person, once. An empty `email` means whoever holds it."""

    invitation_id: str
    organisation_id: str
    email: str
    role: str
    expires_at: datetime


def new_invitation_secret() -> str:
    """Return a new secret: 256 random bits."""
    return INVITATION_PREFIX + secrets.token_urlsafe(32)


def hash_invitation(secret: str) -> str:
    """Return what is stored of an invitation. A fast hash will do: nobody guesses 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_registration(registration: Registration, invited: bool) -> None:
    """Refuse who may not even try to register."""
    if registration == "closed":
        raise RegistrationClosedError("registration is closed: ask an administrator for an account")
    if registration == "invite" and not invited:
        raise RegistrationClosedError("registration needs an invitation: ask an administrator for one")


def check_invitation(invitation: Invitation | None, email: str) -> Invitation:
    """Return the invitation that was claimed, if it was meant for `email`."""
    if invitation is None or invitation.email not in ("", email):
        raise RegistrationClosedError(
            "the invitation is unknown, used, expired or for another email: ask for a new one"
        )
    return invitation
