"""Credentials to identities, cached, and wrong for at most 5 s after a revocation."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import jwt
from omnihub.auth.v1 import auth_service_pb2
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.common.v1 import change_pb2, identity_pb2

from services.common.change_feed import Follower
from services.common.rpc.call import Call, Identity
from services.common.rpc.errors import RpcError

CACHE_SIZE = 100_000
EXCHANGE_TIMEOUT_S = 5.0
ISSUER = "omnihub"
INTERNAL_AUDIENCE = "omnihub-internal"
# Changes of it name a key whose signatures count no longer.
SIGNING_KEY_TOPIC = "signing_key"


@dataclass(slots=True)
class _Entry:
    identity: Identity
    expires_at: float
    refresh_at: float
    depends_on: tuple[str, ...]


def identity_from_proto(message: identity_pb2.Identity, token: str = "") -> Identity:
    """Return the frozen form of an Identity message."""
    return Identity(
        organisation_id=message.organisation_id,
        workspace_id=message.workspace_id,
        project_id=message.project_id,
        key_id=message.key_id,
        user_id=message.user_id,
        role=message.role,
        scopes=frozenset(message.scopes),
        allowed_models=tuple(message.allowed_models),
        rescue=message.rescue,
        token=token,
    )


class Authenticator:
    """One per process. Exchanges credentials at the auth service and verifies identity tokens offline."""

    def __init__(self, auth: AuthService) -> None:
        self._auth = auth
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._dependents: dict[str, set[bytes]] = {}
        self._exchanges: dict[bytes, asyncio.Task[Identity]] = {}
        self._verified: OrderedDict[str, tuple[Identity, float]] = OrderedDict()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._changes_heard = 0
        self._follower = Follower(
            auth.watch_changes, auth_service_pb2.WatchChangesRequest, self._forget_changed
        )

    async def start(self) -> None:
        """Begin to follow revocations."""
        self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    async def authenticate(self, credential: str) -> Identity:
        """Return who holds `credential`. Raises RpcError INVALID_CREDENTIAL or UNAVAILABLE."""
        digest = hashlib.sha256(credential.encode()).digest()
        entry = self._entries.get(digest)
        now = time.monotonic()
        # Without news of revocations the cache is not trusted: ask, or refuse.
        if entry is not None and now < entry.expires_at and self._follower.fresh:
            if now > entry.refresh_at:
                entry.refresh_at = entry.expires_at
                self._exchange(digest, credential)
            return entry.identity
        return await asyncio.shield(self._exchange(digest, credential))

    async def verify(self, token: str) -> Identity:
        """Return who a signed identity token speaks of. Raises RpcError INVALID_CREDENTIAL."""
        known = self._verified.get(token)
        if known is not None and time.time() < known[1]:
            return known[0]
        try:
            key_id = jwt.get_unverified_header(token).get("kid", "")
            key = self._keys.get(key_id) or await self._fetch_key(key_id)
            claims = jwt.decode(token, key, algorithms=["EdDSA"], audience=INTERNAL_AUDIENCE, issuer=ISSUER)
        except jwt.PyJWTError as error:
            raise RpcError("INVALID_CREDENTIAL", f"the identity token is not valid: {error}") from None
        message = identity_pb2.Identity(**claims["identity"])
        identity = identity_from_proto(message, token)
        if key_id not in self._keys:
            # A key was withdrawn while this one was fetched.
            return identity
        self._verified[token] = (identity, claims["exp"])
        if len(self._verified) > CACHE_SIZE:
            self._verified.popitem(last=False)
        return identity

    async def _fetch_key(self, key_id: str) -> jwt.PyJWK:
        heard = self._changes_heard
        request = auth_service_pb2.GetJsonWebKeySetRequest()
        answer = await self._auth.get_json_web_key_set(request, Call.internal(EXCHANGE_TIMEOUT_S))
        found = {}
        for key in answer.keys:
            fields = {"kty": key.kty, "crv": key.crv, "x": key.x, "kid": key.kid, "alg": key.alg}
            found[key.kid] = jwt.PyJWK(fields)
        if heard == self._changes_heard:
            # Otherwise one of them may have been withdrawn since: they serve one request, and are not kept.
            self._keys = found
        if key_id not in found:
            raise jwt.InvalidKeyError("signed with an unknown key")
        return found[key_id]

    def _exchange(self, digest: bytes, credential: str) -> asyncio.Task[Identity]:
        """Ask the auth service, once at a time for each credential."""
        task = self._exchanges.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(digest, credential))
            self._exchanges[digest] = task
            task.add_done_callback(lambda done: self._exchanged(digest, done))
        return task

    def _exchanged(self, digest: bytes, task: asyncio.Task[Identity]) -> None:
        del self._exchanges[digest]
        # Read the exception of a background refresh, so that it is not reported as lost.
        if not task.cancelled() and task.exception() is not None:
            self._forget(digest)

    async def _ask(self, digest: bytes, credential: str) -> Identity:
        heard = self._changes_heard
        request = auth_service_pb2.ExchangeCredentialRequest(credential=credential)
        answer = await self._auth.exchange_credential(request, Call.internal(EXCHANGE_TIMEOUT_S))
        identity = identity_from_proto(answer.identity, answer.identity_token)
        if heard != self._changes_heard:
            # A revocation may have overtaken this answer: it serves one request, and is not kept.
            return identity
        now = time.monotonic()
        lifetime = max(0, answer.expires_in_s - 5)
        self._remember(digest, _Entry(identity, now + lifetime, now + lifetime / 2, tuple(answer.depends_on)))
        return identity

    def _remember(self, digest: bytes, entry: _Entry) -> None:
        self._entries[digest] = entry
        self._entries.move_to_end(digest)
        for key in entry.depends_on:
            self._dependents.setdefault(key, set()).add(digest)
        if len(self._entries) > CACHE_SIZE:
            self._forget(next(iter(self._entries)))

    def _forget(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        for key in entry.depends_on if entry else ():
            dependents = self._dependents.get(key, set())
            dependents.discard(digest)
            if not dependents:
                self._dependents.pop(key, None)

    async def _forget_changed(self, changes: Sequence[change_pb2.Change]) -> None:
        self._changes_heard += 1
        if any(change.topic == SIGNING_KEY_TOPIC for change in changes):
            self._forget_signatures()
        for change in changes:
            for digest in tuple(self._dependents.get(change.key, ())):
                self._forget(digest)

    def _forget_signatures(self) -> None:
        """Keep nothing that a signing key vouched for: it may be the one that is gone."""
        self._keys = {}
        self._verified.clear()
        self._entries.clear()
        self._dependents.clear()
