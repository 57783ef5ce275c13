import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.auth.domain.errors import InvalidCredentialError
from services.auth.domain.token import (
    SigningKey,
    peek,
    read_access_token,
    sign_access_token,
    sign_identity_token,
)
from services.common.sealing import Seal, UnsealableError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = SigningKey("sig_1", Ed25519PrivateKey.generate())
KEYS = {"sig_1": KEY}


def test_an_access_token_says_who_and_where_until_it_expires() -> None:
    token = sign_access_token(KEY, "usr_1", "org_1", NOW, 60)
    read = read_access_token(token, KEYS, NOW)
    assert (read.user_id, read.organisation_id) == ("usr_1", "org_1")
    assert read.expires_at == (NOW + timedelta(seconds=60)).timestamp()
    with pytest.raises(InvalidCredentialError):
        read_access_token(token, KEYS, NOW + timedelta(seconds=60))


def test_an_identity_token_is_no_access_token() -> None:
    token = sign_identity_token(KEY, {"user_id": "usr_1"}, NOW, 60)
    with pytest.raises(InvalidCredentialError):
        read_access_token(token, KEYS, NOW)


def test_a_strangers_signature_is_refused() -> None:
    stranger = SigningKey("sig_1", Ed25519PrivateKey.generate())
    with pytest.raises(InvalidCredentialError):
        read_access_token(sign_access_token(stranger, "usr_1", "org_1", NOW, 60), KEYS, NOW)
    renamed = SigningKey("sig_2", KEY.private)
    with pytest.raises(InvalidCredentialError):
        read_access_token(sign_access_token(renamed, "usr_1", "org_1", NOW, 60), KEYS, NOW)


def _segment(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def _claims(**more: object) -> dict[str, object]:
    return {"iss": "omnihub", "aud": "omnihub", "sub": "usr_1", "organisation": "org_1", "exp": 4e9, **more}


@pytest.mark.parametrize("algorithm", ["none", "HS256", "EdDSA"])
def test_forged_tokens_are_refused(algorithm: str) -> None:
    header = {"alg": algorithm, "typ": "JWT", "kid": "sig_1"}
    with pytest.raises(InvalidCredentialError):
        read_access_token(f"{_segment(header)}.{_segment(_claims())}.", KEYS, NOW)


def test_the_public_key_is_no_shared_secret() -> None:
    secret = KEY.private.public_key().public_bytes_raw()
    forged = jwt.encode(_claims(), secret, algorithm="HS256", headers={"kid": "sig_1"})
    with pytest.raises(InvalidCredentialError):
        read_access_token(forged, KEYS, NOW)


@pytest.mark.parametrize(
    "claims",
    [
        _claims(iss="other"),
        _claims(aud="other"),
        _claims(exp="soon"),
        _claims(exp=None),
        _claims(nbf=(NOW + timedelta(seconds=1)).timestamp()),
        _claims(nbf="later"),
    ],
)
def test_signed_but_wrong_claims_are_refused(claims: dict[str, object]) -> None:
    token = jwt.encode(claims, KEY.private, algorithm="EdDSA", headers={"kid": "sig_1"})
    with pytest.raises(InvalidCredentialError):
        read_access_token(token, KEYS, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "\0",
        "é.é.é",
        "' OR 1=1 --",
        base64.urlsafe_b64encode(b"[" * 6000).decode() + "..",
        f"{_segment([])}.{_segment([])}.",
        f"{_segment({'alg': 'EdDSA', 'kid': 5})}.{_segment(_claims())}.AAAA",
        f"{_segment({'alg': 'EdDSA', 'b64': False, 'crit': ['b64']})}.x.AAAA",
    ],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidCredentialError):
        read_access_token(text, KEYS, NOW)


def test_peeking_believes_nothing_but_reads() -> None:
    header, claims = peek(sign_access_token(KEY, "usr_1", "org_1", NOW, 60))
    assert header["kid"] == "sig_1"
    assert claims["iss"] == "omnihub"


def test_signing_keys_survive_storage() -> None:
    assert SigningKey.from_bytes("sig_1", KEY.to_bytes()).public_x() == KEY.public_x()


def test_sealing() -> None:
    seal = Seal("master", "purpose")
    sealed = seal.seal(b"secret", "name")
    assert b"secret" not in sealed
    assert sealed != seal.seal(b"secret", "name")
    assert Seal("master", "purpose").open(sealed, "name") == b"secret"
    for other, name, content in (
        (Seal("other", "purpose"), "name", sealed),
        (Seal("master", "other"), "name", sealed),
        (seal, "other", sealed),
        (seal, "name", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (seal, "name", b"short"),
        (seal, "name", b""),
    ):
        with pytest.raises(UnsealableError):
            other.open(content, name)
