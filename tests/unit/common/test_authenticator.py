"""What the authenticator keeps, and what it must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from omnihub.auth.v1 import auth_service_pb2 as pb
from omnihub.common.v1.change_pb2 import Change

from services.auth.domain.token import SigningKey, sign_identity_token
from services.common.authenticator import Authenticator
from services.common.rpc import RpcError


class FakeAuth:
    """An auth service whose one key can be revoked while an answer about it is under way."""

    def __init__(self) -> None:
        self.revoked = False
        self.exchanges = 0
        self.heard = asyncio.Event()
        self.answered = asyncio.Event()
        self.changes: asyncio.Queue[list[Change]] = asyncio.Queue()
        self.published: list[SigningKey] = []
        self.asked_for_keys = 0

    async def exchange_credential(self, request: Any, call: Any) -> pb.ExchangeCredentialResponse:
        self.exchanges += 1
        if self.revoked:
            raise RpcError("INVALID_CREDENTIAL", "revoked")
        answer = pb.ExchangeCredentialResponse(expires_in_s=60, depends_on=["key_1"])
        self.heard.set()
        await self.answered.wait()
        return answer

    async def get_json_web_key_set(self, request: Any, call: Any) -> pb.GetJsonWebKeySetResponse:
        self.asked_for_keys += 1
        keys = [
            pb.JsonWebKey(kty="OKP", crv="Ed25519", x=key.public_x(), kid=key.key_id, alg="EdDSA")
            for key in self.published
        ]
        return pb.GetJsonWebKeySetResponse(keys=keys)

    async def watch_changes(self, request: Any, call: Any) -> AsyncIterator[pb.WatchChangesResponse]:
        yield pb.WatchChangesResponse()
        while True:
            yield pb.WatchChangesResponse(changes=await self.changes.get(), seq=1)
            self.answered.set()


@pytest.mark.parametrize("revoked_meanwhile", [True, False])
async def test_an_answer_that_a_revocation_overtook_is_not_kept(revoked_meanwhile: bool) -> None:
    auth = FakeAuth()
    authenticator = Authenticator(auth)  # type: ignore[arg-type]
    await authenticator.start()
    try:
        async with asyncio.timeout(60):
            first = asyncio.create_task(authenticator.authenticate("omni_sk_x"))
            await auth.heard.wait()
            auth.revoked = True
            if revoked_meanwhile:
                await auth.changes.put([Change(seq=1, topic="key", key="key_1")])
                # The feed asks for more only once the change has been taken in.
                await auth.answered.wait()
            else:
                auth.answered.set()
            await first
            if revoked_meanwhile:
                with pytest.raises(RpcError):
                    await authenticator.authenticate("omni_sk_x")
            else:
                await authenticator.authenticate("omni_sk_x")
            assert auth.exchanges == (2 if revoked_meanwhile else 1)
    finally:
        await authenticator.stop()


async def test_what_a_withdrawn_key_signed_is_worth_nothing_once_its_end_is_heard() -> None:
    auth = FakeAuth()
    auth.answered.set()
    old, new = (SigningKey(name, Ed25519PrivateKey.generate()) for name in ("sig_1", "sig_2"))
    auth.published = [old]
    tokens = [sign_identity_token(key, {"key_id": "key_1"}, datetime.now(UTC), 60) for key in (old, new)]
    authenticator = Authenticator(auth)  # type: ignore[arg-type]
    await authenticator.start()
    try:
        async with asyncio.timeout(60):
            for _ in range(2):
                await authenticator.verify(tokens[0])
                await authenticator.authenticate("omni_sk_x")
            assert (auth.asked_for_keys, auth.exchanges) == (1, 1)
            auth.published = [new]
            auth.answered.clear()
            await auth.changes.put([Change(seq=1, topic="signing_key", key="sig_1")])
            await auth.answered.wait()
            with pytest.raises(RpcError, match="unknown key"):
                await authenticator.verify(tokens[0])
            await authenticator.verify(tokens[1])
            # Its identity token was signed by the old key: it needs a new one.
            await authenticator.authenticate("omni_sk_x")
            assert auth.exchanges == 2
    finally:
        await authenticator.stop()
