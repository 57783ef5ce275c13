"""Serves omnihub.auth.v1.SigningKeyService: message in, answer of the signer, message out."""

from __future__ import annotations

from omnihub.auth.v1 import signing_key_service_pb2 as pb

from services.auth.domain.signing_key import state_of
from services.auth.signing import Signer
from services.common.rpc.call import Call


class SigningKeyServer:
    """Translates messages, nothing else."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def list_signing_keys(
        self, request: pb.ListSigningKeysRequest, call: Call
    ) -> pb.ListSigningKeysResponse:
        """See the contract."""
        return pb.ListSigningKeysResponse(keys=await self._keys())

    async def rotate_signing_key(
        self, request: pb.RotateSigningKeyRequest, call: Call
    ) -> pb.RotateSigningKeyResponse:
        """See the contract."""
        await self._signer.rotate(withdraw=request.withdraw)
        return pb.RotateSigningKeyResponse(keys=await self._keys())

    async def _keys(self) -> list[pb.SigningKey]:
        keys, now = await self._signer.keys()
        messages = []
        for key in reversed(keys):
            message = pb.SigningKey(key_id=key.key_id, state=state_of(key, keys, now))
            message.created_at.FromDatetime(key.created_at)
            if key.signs_at is not None:
                message.signs_at.FromDatetime(key.signs_at)
            if key.retires_at is not None:
                message.retires_at.FromDatetime(key.retires_at)
            messages.append(message)
        return messages
