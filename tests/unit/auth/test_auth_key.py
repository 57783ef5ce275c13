from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.auth.domain.errors import (
    IdempotencyKeyReusedError,
    InvalidCredentialError,
    PermissionDeniedError,
    PreconditionFailedError,
)
from services.auth.domain.key import (
    ApiKey,
    check_repeat,
    check_revocation,
    check_rotation,
    effective_scopes,
    grant,
    hash_request,
    hint_of,
    is_usable_secret,
    new_secret,
    remaining_s,
)
from services.common.rpc.call import Identity

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ApiKey(
    key_id="key_1",
    organisation_id="org_1",
    user_id="usr_1",
    name="one",
    hint="wxyz",
    secret_hash="now",
    scopes=("chat", "usage"),
    allowed_models=(),
    created_at=NOW,
)


def caller(
    *scopes: str, user_id: str = "usr_1", role: str = "member", models: tuple[str, ...] = ()
) -> Identity:
    return Identity(
        organisation_id="org_1", user_id=user_id, role=role, scopes=frozenset(scopes), allowed_models=models
    )


def test_secrets_are_random_prefixed_and_usable() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("omni_sk_")
    assert len(first) >= len("omni_sk_") + 43
    assert is_usable_secret(first)
    assert hint_of(first) == first[-4:]


@pytest.mark.parametrize(
    "secret", ["sk-1", "omni_sk_", "omni_sk_a b", "omni_sk_é", "omni_sk_a\n", "omni_sk_" + "a" * 501]
)
def test_a_chosen_secret_must_fit_a_header(secret: str) -> None:
    assert not is_usable_secret(secret)


def test_a_key_lives_until_it_expires() -> None:
    key = replace(KEY, expires_at=NOW + timedelta(seconds=10))
    assert remaining_s(KEY, "now", NOW) == float("inf")
    assert remaining_s(key, "now", NOW) == 10
    with pytest.raises(InvalidCredentialError):
        remaining_s(key, "now", NOW + timedelta(seconds=10))


def test_a_revoked_key_is_dead() -> None:
    with pytest.raises(InvalidCredentialError):
        remaining_s(replace(KEY, revoked_at=NOW), "now", NOW)


def test_the_old_secret_lives_for_the_overlap_and_never_longer_than_the_key() -> None:
    overlap = NOW + timedelta(seconds=30)
    key = replace(KEY, previous_secret_hash="before", overlap_until=overlap)
    assert remaining_s(key, "before", NOW) == 30
    assert remaining_s(replace(key, expires_at=NOW + timedelta(seconds=5)), "before", NOW) == 5
    with pytest.raises(InvalidCredentialError):
        remaining_s(key, "before", overlap)
    assert remaining_s(key, "now", overlap) == float("inf")


def test_a_persons_key_weakens_with_the_person() -> None:
    key = replace(KEY, scopes=("chat", "keys", "admin", "usage"))
    assert effective_scopes(key, "admin") == {"chat", "keys", "admin", "usage"}
    assert effective_scopes(key, "member") == {"chat", "keys", "usage"}
    assert effective_scopes(key, "viewer") == {"usage"}
    assert effective_scopes(key, "invented") == frozenset()
    with pytest.raises(InvalidCredentialError):
        effective_scopes(key, None)
    assert effective_scopes(replace(key, user_id=""), None) == set(key.scopes)


def test_a_grant_defaults_to_chat_and_usage_and_the_callers_models() -> None:
    assert grant(caller("chat", "usage", "keys"), [], []) == (["chat", "usage"], [])
    assert grant(caller("chat", "usage", models=("a", "b")), [], []) == (["chat", "usage"], ["a", "b"])
    assert grant(caller("chat", models=("a", "b")), ["chat", "chat"], ["b", "b"]) == (["chat"], ["b"])


@pytest.mark.parametrize(
    ("giver", "scopes", "models"),
    [
        (caller("chat", "usage", "keys"), ["admin"], []),
        (caller("chat", "usage", "keys", "admin"), ["platform"], []),
        (caller("keys"), [], []),
        (caller("chat", "usage", models=("a",)), [], ["a", "b"]),
    ],
)
def test_nobody_gives_what_they_do_not_hold(giver: Identity, scopes: list[str], models: list[str]) -> None:
    with pytest.raises(PermissionDeniedError):
        grant(giver, scopes, models)


def test_rotation_makes_nobody_someone_else_or_mightier() -> None:
    check_rotation(caller("chat", "usage", "keys"), KEY)
    check_rotation(caller("chat", "usage", "keys", user_id="usr_2", role="owner"), KEY)
    with pytest.raises(PermissionDeniedError):
        check_rotation(caller("chat", "usage", "keys", "admin", user_id="usr_2", role="admin"), KEY)
    with pytest.raises(PermissionDeniedError):
        check_rotation(caller("chat", "usage", "keys"), replace(KEY, scopes=("admin",)))
    with pytest.raises(PermissionDeniedError):
        check_rotation(caller("chat", "usage", "keys", models=("a",)), KEY)
    with pytest.raises(PreconditionFailedError):
        check_rotation(caller("chat", "usage", "keys"), replace(KEY, revoked_at=NOW))


def test_revocation_is_for_the_person_or_an_administrator() -> None:
    check_revocation(caller("chat", "usage", "keys"), KEY)
    check_revocation(caller("admin", user_id="usr_2"), KEY)
    with pytest.raises(PermissionDeniedError):
        check_revocation(caller("chat", "usage", "keys", user_id="usr_2"), KEY)
    with pytest.raises(PermissionDeniedError):
        check_revocation(caller("admin", user_id="usr_2"), replace(KEY, user_id="", scopes=("platform",)))


def test_a_repeat_is_the_same_request_in_any_order() -> None:
    first = hash_request("one", ["chat", "usage"], ["a", "b"], 5)
    key = replace(KEY, request_hash=first)
    assert check_repeat(key, hash_request("one", ["usage", "chat", "chat"], ["b", "a"], 5)) is key
    for other in (
        hash_request("two", ["chat", "usage"], ["a", "b"], 5),
        hash_request("one", ["chat"], ["a", "b"], 5),
        hash_request("one", ["chat", "usage"], ["a"], 5),
        hash_request("one", ["chat", "usage"], ["a", "b"], 6),
    ):
        with pytest.raises(IdempotencyKeyReusedError):
            check_repeat(key, other)
