"""Serves omnihub.auth.v1.AuthService: message in, answer of the service's parts, message out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.auth.v1 import auth_service_pb2 as pb
from omnihub.auth.v1 import key_pb2, organisation_pb2
from omnihub.common.v1 import identity_pb2

from services.auth.accounts import Accounts
from services.auth.credentials import Credentials, identity_fields
from services.auth.domain.key import ApiKey
from services.auth.domain.organisation import Membership, Organisation, User
from services.auth.keys import Keys
from services.auth.signing import Signer
from services.auth.store import Store
from services.common.change_feed import ChangeFeed
from services.common.page_token import decode_page_token, encode_page_token
from services.common.rpc.call import Call

DEFAULT_PAGE_SIZE = 100


class AuthServer:
    """Translates messages, nothing else."""

    def __init__(
        self,
        *,
        accounts: Accounts,
        keys: Keys,
        credentials: Credentials,
        signer: Signer,
        store: Store,
        feed: ChangeFeed,
        access_token_lifetime_s: int,
    ) -> None:
        self._accounts = accounts
        self._keys = keys
        self._credentials = credentials
        self._signer = signer
        self._store = store
        self._feed = feed
        self._lifetime_s = access_token_lifetime_s

    async def register(self, request: pb.RegisterRequest, call: Call) -> pb.RegisterResponse:
        user, membership = await self._accounts.register(
            request.email,
            request.password,
            request.display_name,
            request.invitation,
            request.organisation_name,
        )
        return pb.RegisterResponse(
            user=_user(user), access_token=await self._access_token(membership), expires_in_s=self._lifetime_s
        )

    async def login(self, request: pb.LoginRequest, call: Call) -> pb.LoginResponse:
        user, membership = await self._accounts.login(
            request.email, request.password, request.organisation_id, call.client_address
        )
        return pb.LoginResponse(
            access_token=await self._access_token(membership),
            token_type="Bearer",
            expires_in_s=self._lifetime_s,
            user=_user(user),
        )

    async def get_me(self, request: pb.GetMeRequest, call: Call) -> pb.GetMeResponse:
        user, organisation = await self._accounts.describe(call.identity)
        return pb.GetMeResponse(
            user=None if user is None else _user(user),
            organisation=_organisation(organisation),
            identity=identity_pb2.Identity(**identity_fields(call.identity)),
        )

    async def create_invitation(
        self, request: pb.CreateInvitationRequest, call: Call
    ) -> pb.CreateInvitationResponse:
        secret, invitation_id = await self._accounts.invite(
            call.identity, request.email, request.role, request.expires_in_s
        )
        return pb.CreateInvitationResponse(invitation=secret, invitation_id=invitation_id)

    async def accept_invitation(
        self, request: pb.AcceptInvitationRequest, call: Call
    ) -> pb.AcceptInvitationResponse:
        organisation, membership = await self._accounts.accept(call.identity, request.invitation)
        return pb.AcceptInvitationResponse(
            organisation=_organisation(organisation),
            role=membership.role,
            access_token=await self._access_token(membership),
            expires_in_s=self._lifetime_s,
        )

    async def list_members(self, request: pb.ListMembersRequest, call: Call) -> pb.ListMembersResponse:
        size = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._accounts.members(call.identity, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1][0].user_id) if len(found) > size else ""
        members = [_member(user, membership) for user, membership in found[:size]]
        return pb.ListMembersResponse(members=members, next_page_token=token)

    async def update_member(self, request: pb.UpdateMemberRequest, call: Call) -> pb.UpdateMemberResponse:
        user, membership = await self._accounts.change_role(call.identity, request.user_id, request.role)
        return pb.UpdateMemberResponse(member=_member(user, membership))

    async def remove_member(self, request: pb.RemoveMemberRequest, call: Call) -> pb.RemoveMemberResponse:
        await self._accounts.remove(call.identity, request.user_id)
        return pb.RemoveMemberResponse()

    async def list_organisations(
        self, request: pb.ListOrganisationsRequest, call: Call
    ) -> pb.ListOrganisationsResponse:
        size = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._accounts.organisations(call.identity, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1].organisation_id) if len(found) > size else ""
        organisations = [_organisation(organisation) for organisation in found[:size]]
        return pb.ListOrganisationsResponse(organisations=organisations, next_page_token=token)

    async def create_api_key(self, request: pb.CreateApiKeyRequest, call: Call) -> pb.CreateApiKeyResponse:
        key, secret = await self._keys.create(
            call.identity,
            request.name,
            request.scopes,
            request.allowed_models,
            request.expires_in_s,
            request.idempotency_key or call.idempotency_key,
            request.workspace_id,
            request.project_id,
            request.rescue,
        )
        return pb.CreateApiKeyResponse(key=_key(key), secret=secret)

    async def list_api_keys(self, request: pb.ListApiKeysRequest, call: Call) -> pb.ListApiKeysResponse:
        size = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._keys.page(call.identity, _start(request.page_token), size + 1)
        token = encode_page_token(found[size - 1].key_id) if len(found) > size else ""
        return pb.ListApiKeysResponse(keys=[_key(key) for key in found[:size]], next_page_token=token)

    async def rotate_api_key(self, request: pb.RotateApiKeyRequest, call: Call) -> pb.RotateApiKeyResponse:
        key, secret = await self._keys.rotate(call.identity, request.key_id, request.overlap_s)
        return pb.RotateApiKeyResponse(key=_key(key), secret=secret)

    async def revoke_api_key(self, request: pb.RevokeApiKeyRequest, call: Call) -> pb.RevokeApiKeyResponse:
        await self._keys.revoke(call.identity, request.key_id)
        return pb.RevokeApiKeyResponse()

    async def get_json_web_key_set(
        self, request: pb.GetJsonWebKeySetRequest, call: Call
    ) -> pb.GetJsonWebKeySetResponse:
        ring = await self._signer.ring()
        keys = [
            pb.JsonWebKey(kty="OKP", crv="Ed25519", x=x, kid=key_id, alg="EdDSA", use="sig")
            for key_id, x in ring.public_keys.items()
        ]
        return pb.GetJsonWebKeySetResponse(keys=keys)

    async def exchange_credential(
        self, request: pb.ExchangeCredentialRequest, call: Call
    ) -> pb.ExchangeCredentialResponse:
        exchange = await self._credentials.exchange(request.credential)
        return pb.ExchangeCredentialResponse(
            identity=identity_pb2.Identity(**identity_fields(exchange.identity)),
            identity_token=exchange.identity.token,
            expires_in_s=exchange.expires_in_s,
            depends_on=exchange.depends_on,
        )

    async def sync_organisations(
        self, request: pb.SyncOrganisationsRequest, call: Call
    ) -> pb.SyncOrganisationsResponse:
        # The position first: what is created after it is found by the next call, if not by this one.
        seq = await self._feed.position()
        async with self._store.reading() as records:
            found = await records.organisations_since(request.after_seq)
        organisations = [_organisation(organisation) for organisation in found]
        return pb.SyncOrganisationsResponse(organisations=organisations, seq=seq)

    async def watch_changes(
        self, request: pb.WatchChangesRequest, call: Call
    ) -> AsyncIterator[pb.WatchChangesResponse]:
        async with aclosing(self._feed.watch(request.after_seq)) as batches:  # type: ignore[type-var]
            async for changes, seq in batches:
                yield pb.WatchChangesResponse(changes=changes, seq=seq)

    async def _access_token(self, membership: Membership) -> str:
        ring = await self._signer.ring()
        return ring.access_token(membership.user_id, membership.organisation_id, self._lifetime_s)


def _start(page_token: str) -> str:
    return decode_page_token(page_token, 1)[0] if page_token else ""


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def _organisation(organisation: Organisation) -> organisation_pb2.Organisation:
    return organisation_pb2.Organisation(
        organisation_id=organisation.organisation_id,
        name=organisation.name,
        bootstrap=organisation.bootstrap,
        created_at=_timestamp(organisation.created_at),
    )


def _user(user: User) -> organisation_pb2.User:
    return organisation_pb2.User(
        user_id=user.user_id,
        email=user.email,
        display_name=user.display_name,
        created_at=_timestamp(user.created_at),
    )


def _member(user: User, membership: Membership) -> organisation_pb2.Member:
    return organisation_pb2.Member(
        user=_user(user), role=membership.role, joined_at=_timestamp(membership.joined_at)
    )


def _key(key: ApiKey) -> key_pb2.ApiKey:
    return key_pb2.ApiKey(
        key_id=key.key_id,
        name=key.name,
        hint=key.hint,
        scopes=key.scopes,
        allowed_models=key.allowed_models,
        created_at=_timestamp(key.created_at),
        expires_at=_timestamp(key.expires_at),
        revoked_at=_timestamp(key.revoked_at),
        overlap_until=_timestamp(key.overlap_until),
        workspace_id=key.workspace_id,
        project_id=key.project_id,
        rescue=key.rescue,
    )
