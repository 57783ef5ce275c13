"""Settings of the auth service. The bootstrap key and the master key are settings of the whole process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.settings import Section


class OidcSettings(Section):
    """An external OpenID Connect issuer whose tokens are accepted as credentials."""

    issuer: str = Field(pattern=r"^https?://\S+$")
    """The `iss` claim of its tokens, and where its discovery document lives."""
    audience: str = Field(min_length=1)
    """The `aud` claim its tokens must have."""
    jwks_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Where its keys are; empty means as `<issuer>/.well-known/openid-configuration` says."""
    email_claim: str = Field(default="email", min_length=1)
    """The claim that holds the person's email."""
    organisation_id: str = ""
    """The organisation people unknown so far are put into; empty means they are refused."""
    default_role: Literal["admin", "member", "viewer"] = "member"
    """The role they get there."""
    refresh_interval_s: float = Field(default=30.0, ge=0)
    """Keys are fetched at most this often, however many tokens name unknown ones, in seconds."""
    keys_lifetime_s: float = Field(default=3600.0, gt=0)
    """Keys older than this are fetched again, in seconds."""
    timeout_s: float = Field(default=5.0, gt=0)
    """How long the issuer may take to answer, in seconds."""


class AuthSettings(Section):
    """People, keys and tokens."""

    registration: Literal["open", "invite", "closed"] = "invite"
    """Who may register: anyone, who has an invitation, nobody."""
    access_token_lifetime_s: int = Field(default=3600, ge=60, le=86_400)
    """How long a login lasts, in seconds; no longer than domain/signing_key.py keeps a key published."""
    signing_key_publish_s: int = Field(default=300, ge=10, le=604_800)
    """How long a new signing key is published before it signs: as long as others may cache the key set."""
    login_failures_limit: int = Field(default=10, ge=1)
    """Failed logins for one email within the window before more are refused."""
    login_failures_per_address_limit: int = Field(default=100, ge=0)
    """The same for one address (IPv6: one /64 network), whatever the emails; 0 for no limit."""
    login_window_s: int = Field(default=900, ge=1)
    """The window in which failed logins are counted, in seconds."""
    password_threads: int = Field(default=2, ge=1, le=32)
    """Passwords hashed at the same time; each takes the memory below and a core."""
    password_memory_kib: int = Field(default=65536, ge=19456)
    """Memory that hashing one password takes, in KiB; raised, old hashes follow at the next login."""
    password_passes: int = Field(default=3, ge=2)
    """Passes over that memory."""
    oidc: OidcSettings | None = None
    """An external issuer whose tokens are accepted too; none by default."""
