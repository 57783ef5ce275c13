"""The external OpenID Connect issuer: its keys, fetched when needed, and what its tokens say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import aiohttp
import jwt
import msgspec

from services.auth.domain import token
from services.auth.domain.errors import InvalidCredentialError, IssuerUnavailableError
from services.auth.settings import OidcSettings

DOCUMENT_LIMIT_BYTES = 1024 * 1024
# Never a symmetric one: the keys are public.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
KEY_TYPES = ("RSA", "EC", "OKP")

_logger = logging.getLogger(__name__)


class ExternalIssuer:
    """Verifies the tokens of one issuer. Keys are cached, and fetched again when one is unknown."""

    def __init__(
        self,
        settings: OidcSettings,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._now = now
        self._monotonic = monotonic
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def read(self, text: str) -> Mapping[str, Any]:
        """Return the claims of a valid token. Raises InvalidCredentialError or IssuerUnavailableError."""
        header, _ = token.peek(text)
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if algorithm not in ALGORITHMS or not isinstance(key_id, str):
            raise InvalidCredentialError
        fields = await self._key(key_id)
        try:
            # A key that names its algorithm signs with no other; PyJWK compares it with the token's.
            key = jwt.PyJWK(dict(fields), algorithm=str(fields.get("alg") or algorithm))
        except (jwt.PyJWTError, ValueError, TypeError):
            raise InvalidCredentialError from None
        settings = self._settings
        return token.read(text, key, ALGORITHMS, settings.audience, settings.issuer, self._now())

    async def _key(self, key_id: str) -> Mapping[str, Any]:
        old = self._monotonic() - self._fetched_at > self._settings.keys_lifetime_s
        if old or key_id not in self._keys:
            await self._refresh(key_id)
        if key_id not in self._keys:
            raise InvalidCredentialError
        return self._keys[key_id]

    async def _refresh(self, key_id: str) -> None:
        """Fetch the keys, at most once per interval, whoever asks. Old keys serve while that fails."""
        asked_at = self._monotonic()
        async with self._fetching:
            if self._fetched_at >= asked_at:
                return
            if self._monotonic() - self._tried_at >= self._settings.refresh_interval_s:
                self._tried_at = self._monotonic()
                try:
                    self._keys = await self._fetch()
                    self._fetched_at = self._monotonic()
                except (aiohttp.ClientError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
                    _logger.warning("external_issuer_unreachable %s %s", self._settings.issuer, error)
        # Whether it is our failure or the token's shows in whether the last attempt succeeded.
        if key_id not in self._keys and self._fetched_at < self._tried_at:
            raise IssuerUnavailableError("the external issuer's keys cannot be read: retry in a moment")

    async def _fetch(self) -> dict[str, Mapping[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = self._settings.jwks_url or await self._discover(session)
            document = await _read_json(session, url)
        keys = document.get("keys")
        if not isinstance(keys, list):
            raise ValueError(f"{url} is not a JSON Web Key Set")
        return {
            str(key.get("kid", "")): key
            for key in keys
            if isinstance(key, dict) and key.get("kty") in KEY_TYPES and key.get("use", "sig") == "sig"
        }

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        document = await _read_json(session, url)
        if document.get("issuer") != self._settings.issuer:
            raise ValueError(f"{url} speaks of another issuer")
        address = document.get("jwks_uri")
        if not isinstance(address, str):
            raise ValueError(f"{url} names no jwks_uri")
        return address


async def _read_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answered {response.status}")
        body = b""
        async for chunk in response.content.iter_chunked(65536):
            body += chunk
            if len(body) > DOCUMENT_LIMIT_BYTES:
                raise ValueError(f"{url} is too long")
    return msgspec.json.decode(body, type=dict[str, Any])
