"""Who asks: a bearer token, a key, or what the machine has. Keys sign each request (Signature Version 4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from services.providers.settings import ProviderSettings

# The name in the signature is not the host's.
SERVICE = "bedrock"
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
# Hashing more than this would hold up other requests.
_LARGE_BODY = 512 * 2**10

# Its debug records hold tokens.
logging.getLogger("botocore").setLevel(logging.INFO)


class NoCredentialError(Exception):
    """There is no credential, or it cannot be fetched. The message tells what to do."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, temporary when it has a token. The names are those that botocore reads."""

    access_key: str
    secret_key: str
    token: str | None = None


class KeySource(Protocol):
    """Where a key comes from."""

    async def key(self) -> Key:
        """Return the key to use now. Raises NoCredentialError."""
        ...


class ConfiguredKey:
    """A key from the settings."""

    def __init__(self, key: Key) -> None:
        self._key = key

    async def key(self) -> Key:
        """Return it."""
        return self._key


class MachineKey:
    """What botocore finds: variables, shared files, the container, the instance. Looked for when needed."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._credentials: Any = None

    async def key(self) -> Key:
        """Return the key, fetched or fetched again where it has run out."""
        try:
            async with self._lock:
                if self._credentials is None:
                    self._credentials = await asyncio.to_thread(_find)
                frozen = await asyncio.to_thread(self._credentials.get_frozen_credentials)
        except BotoCoreError as error:
            raise NoCredentialError(f"its credential cannot be fetched: {error}") from None
        return Key(frozen.access_key, frozen.secret_key, frozen.token)


def _find() -> Any:
    found = Session().get_credentials()
    if found is None:
        raise NoCredentialError(
            "there is no credential: set api_key, or access_key_id and secret_access_key, or give the "
            "machine a role"
        )
    return found


def key_source(name: str, settings: ProviderSettings) -> KeySource:
    """Return where the key comes from. Raises ValueError, for an operator, when half of it is missing."""
    if settings.access_key_id is None and settings.secret_access_key is None:
        return MachineKey()
    if settings.access_key_id is None:
        raise ValueError(f"providers.{name}.access_key_id: it is missing next to secret_access_key")
    if settings.secret_access_key is None:
        raise ValueError(f"providers.{name}.secret_access_key: it is missing next to access_key_id")
    token = settings.session_token.get_secret_value() if settings.session_token is not None else None
    return ConfiguredKey(
        Key(settings.access_key_id.get_secret_value(), settings.secret_access_key.get_secret_value(), token)
    )


class Signer:
    """Signs requests with the keys of one source, by the clock of the provider."""

    def __init__(self, source: KeySource, region: str, secrets: Sequence[str] = ()) -> None:
        self._source = source
        self._region = region
        self._known = tuple(secrets)
        self.skew = timedelta()
        """What must be added to our clock to get the provider's."""
        self.secrets = list(secrets)
        """What no message may hold: those that are known, and those of the last key."""

    async def sign(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, now: datetime
    ) -> dict[str, str]:
        """Return the headers with the signature. Raises NoCredentialError."""
        key = await self._source.key()
        self.secrets[:] = [*self._known, key.secret_key, *([key.token] if key.token else [])]
        at = now + self.skew
        if len(body) > _LARGE_BODY:
            return await asyncio.to_thread(sign, key, self._region, method, url, headers, body, at)
        return sign(key, self._region, method, url, headers, body, at)


def sign(
    key: Key, region: str, method: str, url: str, headers: Mapping[str, str], body: bytes, at: datetime
) -> dict[str, str]:
    """Return `headers` with the signature. The path of `url` is signed as it is sent: percent-encoded.

    Proxies may change other headers, so only those that make up the request are signed.
    """
    stamp = at.strftime(_TIMESTAMP)
    dated = {"X-Amz-Date": stamp}
    if key.token:
        dated["X-Amz-Security-Token"] = key.token
    signed = {name: headers[name] for name in ("Content-Type",) if name in headers}
    request = AWSRequest(method, url, {**signed, **dated}, body)
    request.context["timestamp"] = stamp
    signer = SigV4Auth(key, SERVICE, region)
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    names = signer.signed_headers(signer.headers_to_sign(request))
    authorization = (
        f"AWS4-HMAC-SHA256 Credential={signer.scope(request)}, SignedHeaders={names}, Signature={signature}"
    )
    return {**headers, **dated, "Authorization": authorization}
