"""Signed tokens: access tokens for people, identity tokens between services."""

from __future__ import annotations

import base64
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.domain.errors import InvalidCredentialError

ISSUER = "omnihub"
ACCESS_AUDIENCE = "omnihub"
INTERNAL_AUDIENCE = "omnihub-internal"
ALGORITHM = "EdDSA"
# Times are checked against the caller's clock, not against the library's.
_OPTIONS: Any = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "require": ["exp"],
    "enforce_minimum_key_length": True,
}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key that signs tokens; `key_id` stands in their headers."""

    key_id: str
    private: Ed25519PrivateKey

    @classmethod
    def from_bytes(cls, key_id: str, raw: bytes) -> SigningKey:
        """Read the 32 bytes that `to_bytes` returned."""
        return cls(key_id, Ed25519PrivateKey.from_private_bytes(raw))

    def to_bytes(self) -> bytes:
        """Return the private key, 32 bytes."""
        return self.private.private_bytes_raw()

    def public_x(self) -> str:
        """Return the public key as a JSON Web Key (RFC 8037) writes it."""
        return base64.urlsafe_b64encode(self.private.public_key().public_bytes_raw()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What an access token says."""

    user_id: str
    organisation_id: str
    expires_at: float
    """Seconds since 1970."""


def sign_access_token(
    key: SigningKey, user_id: str, organisation_id: str, now: datetime, lifetime_s: float
) -> str:
    """Return an access token of a person acting in an organisation."""
    claims = {"sub": user_id, "organisation": organisation_id, "aud": ACCESS_AUDIENCE}
    return _sign(key, claims, now, lifetime_s)


def sign_identity_token(
    key: SigningKey, identity: Mapping[str, Any], now: datetime, lifetime_s: float
) -> str:
    """Return an identity token; `identity` has the fields of omnihub.common.v1.Identity."""
    return _sign(key, {"identity": dict(identity), "aud": INTERNAL_AUDIENCE}, now, lifetime_s)


def read_access_token(token: str, keys: Mapping[str, SigningKey], now: datetime) -> AccessToken:
    """Return what an access token of ours says. Raises InvalidCredentialError."""
    header, _ = peek(token)
    key = keys.get(str(header.get("kid", "")))
    if key is None:
        raise InvalidCredentialError
    claims = read(token, key.private.public_key(), [ALGORITHM], ACCESS_AUDIENCE, ISSUER, now)
    return AccessToken(str(claims.get("sub", "")), str(claims.get("organisation", "")), claims["exp"])


def peek(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return header and claims without believing them. Raises InvalidCredentialError when it is no token."""
    try:
        decoded = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidCredentialError from None
    return decoded["header"], decoded["payload"]


def read(
    token: str, key: Any, algorithms: Sequence[str], audience: str, issuer: str, now: datetime
) -> dict[str, Any]:
    """Return the claims of a token `key` signed that is valid `now`. Raises InvalidCredentialError."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=algorithms, audience=audience, issuer=issuer, options=_OPTIONS
        )
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidCredentialError from None
    not_before, expires = claims.get("nbf", 0), claims["exp"]
    if not isinstance(expires, int | float) or not isinstance(not_before, int | float):
        raise InvalidCredentialError
    if not not_before <= now.timestamp() < expires:
        raise InvalidCredentialError
    return claims


def _sign(key: SigningKey, claims: Mapping[str, Any], now: datetime, lifetime_s: float) -> str:
    expires_at = math.ceil((now + timedelta(seconds=lifetime_s)).timestamp())
    times = {"iat": int(now.timestamp()), "exp": expires_at}
    body = {"iss": ISSUER, "jti": uuid.uuid4().hex, **claims, **times}
    return jwt.encode(body, key.private, algorithm=ALGORITHM, headers={"kid": key.key_id})
