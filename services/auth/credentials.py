"""What a credential is worth: API keys, our access tokens, tokens of the external issuer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from services.auth.domain.errors import AuthError, InvalidCredentialError
from services.auth.domain.key import SECRET_PREFIX, effective_scopes, hash_secret, remaining_s
from services.auth.domain.organisation import Membership, User
from services.auth.domain.roles import OWNER, PLATFORM, scopes_of_role
from services.auth.domain.text import is_identifier, normalise_email
from services.auth.domain.token import ISSUER, peek
from services.auth.issuer import ExternalIssuer
from services.auth.settings import OidcSettings
from services.auth.signing import Signer
from services.auth.store import DuplicateError, Records, Store
from services.common.ids import new_id
from services.common.rpc.call import Identity

CREDENTIAL_LIMIT = 8192
# How long other services may believe an identity token.
IDENTITY_LIFETIME_S = 60


@dataclass(frozen=True, slots=True)
class Exchange:
    """The answer to a credential. `identity.token` is the signed identity token."""

    identity: Identity
    expires_in_s: int
    depends_on: tuple[str, ...]


def identity_fields(identity: Identity) -> dict[str, Any]:
    """Return an identity as the fields of omnihub.common.v1.Identity, the empty ones left out."""
    fields = {
        "organisation_id": identity.organisation_id,
        "workspace_id": identity.workspace_id,
        "key_id": identity.key_id,
        "user_id": identity.user_id,
        "scopes": sorted(identity.scopes),
        "allowed_models": list(identity.allowed_models),
        "role": identity.role,
        "project_id": identity.project_id,
        "rescue": identity.rescue,
    }
    return {name: value for name, value in fields.items() if value}


class Credentials:
    """Exchanges credentials for identities."""

    def __init__(
        self, store: Store, signer: Signer, oidc: OidcSettings | None, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._signer = signer
        self._now = now
        self._oidc = oidc
        self._issuer = ExternalIssuer(oidc, now) if oidc else None

    async def exchange(self, credential: str) -> Exchange:
        """Return who holds `credential`. Raises InvalidCredentialError or IssuerUnavailableError."""
        if len(credential) > CREDENTIAL_LIMIT:
            raise InvalidCredentialError
        if credential.startswith(SECRET_PREFIX):
            return await self._exchange_key(credential)
        _, claims = peek(credential)
        issuer = claims.get("iss")
        if issuer == ISSUER:
            return await self._exchange_access_token(credential)
        if self._issuer is not None and self._oidc is not None and issuer == self._oidc.issuer:
            return await self._exchange_external(await self._issuer.read(credential), self._oidc)
        raise InvalidCredentialError

    async def _exchange_key(self, secret: str) -> Exchange:
        secret_hash = hash_secret(secret)
        async with self._store.reading() as records:
            key = await records.key_by_hash(secret_hash)
            if key is None:
                raise InvalidCredentialError
            membership = await records.membership(key.organisation_id, key.user_id) if key.user_id else None
        remaining = remaining_s(key, secret_hash, self._now())
        scopes = effective_scopes(key, membership.role if membership else None)
        identity = Identity(
            organisation_id=key.organisation_id,
            workspace_id=key.workspace_id,
            project_id=key.project_id,
            key_id=key.key_id,
            user_id=key.user_id,
            role=membership.role if membership else OWNER if PLATFORM in scopes else "",
            scopes=scopes,
            allowed_models=key.allowed_models,
            rescue=key.rescue,
        )
        return await self._sign(identity, remaining)

    async def _exchange_access_token(self, text: str) -> Exchange:
        token = (await self._signer.ring()).read_access_token(text)
        async with self._store.reading() as records:
            membership = await records.membership(token.organisation_id, token.user_id)
        if membership is None:
            raise InvalidCredentialError
        return await self._sign(_identity_of(membership), token.expires_at - self._now().timestamp())

    async def _exchange_external(self, claims: Mapping[str, Any], oidc: OidcSettings) -> Exchange:
        email = _email_in(claims, oidc.email_claim)
        membership = await self._find_membership(email, oidc)
        if membership is None:
            membership = await self._welcome(email, claims, oidc)
        return await self._sign(_identity_of(membership), float(claims["exp"]) - self._now().timestamp())

    async def _find_membership(self, email: str, oidc: OidcSettings) -> Membership | None:
        """Return where a known person acts; None for someone unknown."""
        async with self._store.reading() as records:
            user = await records.user_by_email(email)
            if user is None:
                return None
            memberships = await records.memberships_of(user.user_id)
        if not memberships:
            # They were removed: the issuer still knowing them does not bring them back.
            raise InvalidCredentialError
        preferred = [found for found in memberships if found.organisation_id == oidc.organisation_id]
        return (preferred or memberships)[0]

    async def _welcome(self, email: str, claims: Mapping[str, Any], oidc: OidcSettings) -> Membership:
        """Add a person whom the issuer vouches for."""
        if not oidc.organisation_id:
            raise InvalidCredentialError
        now = self._now()
        user = User(new_id("usr"), email, _display_name(claims), None, now)
        membership = Membership(oidc.organisation_id, user.user_id, oidc.default_role, now)
        try:
            async with self._store.writing() as records:
                await records.add_user(user)
                await records.add_membership(membership)
        except DuplicateError:
            # Two first requests of the same person arrived at once.
            known = await self._find_membership(email, oidc)
            if known is None:
                raise
            return known
        return membership

    async def _sign(self, identity: Identity, remaining: float) -> Exchange:
        lifetime_s = math.ceil(min(IDENTITY_LIFETIME_S, remaining))
        ring = await self._signer.ring()
        signed = replace(identity, token=ring.identity_token(identity_fields(identity), lifetime_s))
        subjects = (identity.key_id, identity.user_id, identity.organisation_id)
        return Exchange(signed, lifetime_s, tuple(subject for subject in subjects if subject))


async def check_welcome(records: Records, oidc: OidcSettings | None) -> bool:
    """Tell whether the organisation that people from the external issuer are put into exists."""
    if oidc is None or not oidc.organisation_id:
        return True
    known = is_identifier(oidc.organisation_id)
    return known and await records.organisation(oidc.organisation_id) is not None


def _identity_of(membership: Membership) -> Identity:
    return Identity(
        organisation_id=membership.organisation_id,
        user_id=membership.user_id,
        role=membership.role,
        scopes=scopes_of_role(membership.role),
    )


def _email_in(claims: Mapping[str, Any], claim: str) -> str:
    """Return the email the issuer vouches for. Raises InvalidCredentialError."""
    email = claims.get(claim)
    if not isinstance(email, str) or claims.get("email_verified", True) not in (True, "true"):
        raise InvalidCredentialError
    try:
        return normalise_email(email)
    except AuthError:
        raise InvalidCredentialError from None


def _display_name(claims: Mapping[str, Any]) -> str:
    name = claims.get("name", "")
    return "".join(letter for letter in name if letter.isprintable())[:100] if isinstance(name, str) else ""
