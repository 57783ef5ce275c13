"""API keys: their secrets, how long they live, and who may handle them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.auth.domain.errors import (
    IdempotencyKeyReusedError,
    InvalidCredentialError,
    PermissionDeniedError,
    PreconditionFailedError,
)
from services.auth.domain.roles import ADMIN, CHAT, USAGE, Caller, check_grant, is_owner, scopes_of_role

SECRET_PREFIX = "omni_sk_"
DEFAULT_SCOPES = (CHAT, USAGE)
_GIVEN_SECRET = re.compile(r"omni_sk_[!-~]{1,500}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key without its secrets. `user_id` is the person it belongs to, or empty."""

    key_id: str
    organisation_id: str
    user_id: str
    name: str
    hint: str
    secret_hash: str
    previous_secret_hash: str | None = None
    overlap_until: datetime | None = None
    scopes: tuple[str, ...]
    allowed_models: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    idempotency_key: str | None = None
    request_hash: str = ""
    workspace_id: str = ""
    project_id: str = ""
    rescue: str = ""
    """What becomes of streams that break: off, continue or restart; empty for the route's own."""


def new_secret() -> str:
    """Return a new secret: 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def is_usable_secret(secret: str) -> bool:
    """Tell whether a secret an operator chose has the right prefix and can be sent in a header."""
    return _GIVEN_SECRET.fullmatch(secret) is not None


def hash_secret(secret: str) -> str:
    """Return what is stored of a secret, and what it is looked up by.

    A fast hash is right here, unlike for passwords: a secret has 256 random bits, so there is
    nothing to guess, and the lookup by its hash takes the same time whatever was sent.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def hint_of(secret: str) -> str:
    """Return the last four characters, to recognise a key by."""
    return secret[-4:]


def remaining_s(key: ApiKey, secret_hash: str, now: datetime) -> float:
    """Return how long this secret of the key still works, in seconds. Raises InvalidCredentialError."""
    limits = [key.expires_at] if key.expires_at else []
    if secret_hash != key.secret_hash:
        limits.append(key.overlap_until or now)
    remaining = min(((limit - now).total_seconds() for limit in limits), default=math.inf)
    if key.revoked_at is not None or remaining <= 0:
        raise InvalidCredentialError
    return remaining


def effective_scopes(key: ApiKey, role: str | None) -> frozenset[str]:
    """Return what the key may do now. `role` is that of the person it belongs to; None when they left.

    A person's key never does more than the person: it weakens with their role and ends with their
    membership.
    """
    if not key.user_id:
        return frozenset(key.scopes)
    if role is None:
        raise InvalidCredentialError
    return frozenset(key.scopes) & scopes_of_role(role)


def grant(caller: Caller, scopes: Sequence[str], models: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the scopes and models a new key of `caller` gets. Raises PermissionDeniedError."""
    granted_models = list(dict.fromkeys(models)) or list(caller.allowed_models)
    granted_scopes = list(dict.fromkeys(scopes)) or list(DEFAULT_SCOPES)
    check_grant(caller, granted_scopes, granted_models)
    return granted_scopes, granted_models


def check_revocation(caller: Caller, key: ApiKey) -> None:
    """Refuse to end a key of someone else, or a mightier one."""
    if caller.user_id != key.user_id and not caller.holds(ADMIN):
        raise PermissionDeniedError("the key belongs to someone else: ask an administrator", scope=ADMIN)
    for scope in key.scopes:
        if not caller.holds(scope):
            raise PermissionDeniedError(
                f"the key holds the scope `{scope}`, which your credential does not hold", scope=scope
            )


def check_rotation(caller: Caller, key: ApiKey) -> None:
    """Refuse to hand out a secret that makes the caller someone else, or mightier than they are."""
    if key.revoked_at is not None:
        raise PreconditionFailedError("the key is revoked: create a new one")
    if key.user_id not in ("", caller.user_id) and not is_owner(caller):
        raise PermissionDeniedError("the key belongs to someone else: only they or an owner rotate it")
    check_grant(caller, key.scopes, key.allowed_models)


def hash_request(
    name: str,
    scopes: Sequence[str],
    models: Sequence[str],
    expires_in_s: int,
    *place: str,
    rescue: str = "",
) -> str:
    """Return what tells two requests with the same idempotency key apart."""
    content: list[object] = [name, sorted(set(scopes)), sorted(set(models)), expires_in_s]
    # Hashes from before there were these stay as they are.
    if any(place):
        content += place
    if rescue:
        content.append({"rescue": rescue})
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_repeat(key: ApiKey, request_hash: str) -> ApiKey:
    """Return the key an earlier request with this idempotency key created, if it was the same request."""
    if key.request_hash != request_hash:
        raise IdempotencyKeyReusedError(
            "the idempotency key was used for another key: send a new one, or the first request unchanged"
        )
    return key
