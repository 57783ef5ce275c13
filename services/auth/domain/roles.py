"""Roles, scopes, and who may give what to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.auth.domain.errors import PermissionDeniedError, PreconditionFailedError

OWNER = "owner"
CHAT, USAGE, KEYS, ADMIN, PLATFORM = "chat", "usage", "keys", "admin", "platform"
# On a key: its requests are answered from the response cache unless they say otherwise.
CACHE = "cache"

_SCOPES_OF_ROLE = {
    OWNER: frozenset({CHAT, USAGE, KEYS, ADMIN, CACHE}),
    "admin": frozenset({CHAT, USAGE, KEYS, ADMIN, CACHE}),
    "member": frozenset({CHAT, USAGE, KEYS, CACHE}),
    "viewer": frozenset({USAGE}),
}
# What the first key may do. No role gives `platform`: only this key and keys made with it hold it.
BOOTSTRAP_SCOPES = (CHAT, USAGE, KEYS, ADMIN, PLATFORM)


class Caller(Protocol):
    """Who asks."""

    @property
    def organisation_id(self) -> str: ...  # noqa: D102
    @property
    def key_id(self) -> str: ...  # noqa: D102
    @property
    def user_id(self) -> str: ...  # noqa: D102
    @property
    def role(self) -> str: ...  # noqa: D102
    @property
    def allowed_models(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def workspace_id(self) -> str: ...  # noqa: D102
    @property
    def project_id(self) -> str: ...  # noqa: D102
    def holds(self, scope: str) -> bool: ...  # noqa: D102


def scopes_of_role(role: str) -> frozenset[str]:
    """Return what a member with `role` may do; nothing for a role this version does not know."""
    return _SCOPES_OF_ROLE.get(role, frozenset())


def is_owner(caller: Caller) -> bool:
    """Tell whether the caller acts as an owner. The platform's own key may put the first owner in place."""
    return caller.role == OWNER or caller.holds(PLATFORM)


def check_grant(caller: Caller, scopes: Sequence[str], models: Sequence[str]) -> None:
    """Refuse to give what the caller does not hold. No `models` means all of them."""
    for scope in scopes:
        if not caller.holds(scope):
            raise PermissionDeniedError(
                f"you cannot give the scope `{scope}`, which your credential does not hold", scope=scope
            )
    if not caller.allowed_models:
        return
    for model in models:
        if model not in caller.allowed_models:
            raise PermissionDeniedError(
                f"you cannot give the model `{model[:200]}`, which your credential may not use",
                model=model[:200],
            )
    if not models:
        raise PermissionDeniedError("your credential may not use every model: name those in allowed_models")


def check_role_change(caller: Caller, current: str, wanted: str, owners: int) -> None:
    """Refuse a change of a member's role, or with `wanted` empty their removal, that breaks the rules.

    `owners` is how many owners the organisation has now.
    """
    if OWNER in (current, wanted) and not is_owner(caller):
        raise PermissionDeniedError("only owners make, change or remove owners: ask one", role=OWNER)
    if current == OWNER and wanted != OWNER and owners <= 1:
        raise PreconditionFailedError("the last owner stays: make someone else an owner first")
