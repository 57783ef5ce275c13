import pytest

from services.auth.domain.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    PreconditionFailedError,
    RegistrationClosedError,
)
from services.auth.domain.organisation import check_registration
from services.auth.domain.roles import check_role_change, scopes_of_role
from services.auth.domain.text import check_text, is_identifier, normalise_email
from services.common.rpc.call import Identity

OWNER = Identity(role="owner", scopes=scopes_of_role("owner"))
ADMIN = Identity(role="admin", scopes=scopes_of_role("admin"))
PLATFORM = Identity(scopes=frozenset({"platform", "admin"}))


def test_scopes_follow_from_the_role_and_none_gives_platform() -> None:
    assert scopes_of_role("owner") == scopes_of_role("admin") == {"chat", "usage", "keys", "admin", "cache"}
    assert scopes_of_role("member") == {"chat", "usage", "keys", "cache"}
    assert scopes_of_role("viewer") == {"usage"}
    assert not scopes_of_role("invented")


@pytest.mark.parametrize("caller", [OWNER, PLATFORM])
@pytest.mark.parametrize(("current", "wanted"), [("member", "owner"), ("owner", "member"), ("owner", "")])
def test_owners_and_the_platform_handle_owners(caller: Identity, current: str, wanted: str) -> None:
    check_role_change(caller, current, wanted, owners=2)


@pytest.mark.parametrize(("current", "wanted"), [("member", "owner"), ("owner", "member"), ("owner", "")])
def test_others_do_not(current: str, wanted: str) -> None:
    with pytest.raises(PermissionDeniedError):
        check_role_change(ADMIN, current, wanted, owners=2)


def test_admins_handle_everyone_else() -> None:
    check_role_change(ADMIN, "member", "admin", owners=1)
    check_role_change(ADMIN, "admin", "", owners=1)


@pytest.mark.parametrize("wanted", ["admin", "member", "viewer", ""])
def test_the_last_owner_stays(wanted: str) -> None:
    with pytest.raises(PreconditionFailedError):
        check_role_change(OWNER, "owner", wanted, owners=1)
    check_role_change(OWNER, "owner", "owner", owners=1)


def test_registration_modes() -> None:
    check_registration("open", invited=False)
    check_registration("open", invited=True)
    check_registration("invite", invited=True)
    for mode, invited in (("invite", False), ("closed", False), ("closed", True)):
        with pytest.raises(RegistrationClosedError):
            check_registration(mode, invited)  # type: ignore[arg-type]


def test_emails_have_one_form() -> None:
    assert normalise_email(" Ada@Example.ORG ") == "ada@example.org"


@pytest.mark.parametrize(
    "email", ["", "ada", "a@b@c", "a b@c", "a\0@b", "a@b\n.c", "@b", "a@", "a@" + "b" * 254]
)
def test_what_is_no_email_is_refused(email: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        normalise_email(email)
    assert caught.value.violations[0].field == "email"


def test_names_have_no_control_characters() -> None:
    assert check_text("name", " Ключ 🔑 ") == "Ключ 🔑"
    with pytest.raises(InvalidArgumentError):
        check_text("name", "a\0b")


def test_identifiers() -> None:
    assert is_identifier("usr_0197f0c4")
    for text in ("", "usr", "usr_", "usr_'; DROP TABLE user", "usr_\0", "usr_" + "a" * 65):
        assert not is_identifier(text)
