"""Margins and their versions; services/credits/margins.py says which one applies."""

from __future__ import annotations

import hashlib

from omnihub.billing.v1.price_pb2 import Margin

from services.billing.domain.errors import InvalidFieldError

LONGEST_PATTERN = 300


def margin_version(margin: Margin) -> str:
    """Return a short hash of whom a margin is for and what it adds."""
    unversioned = Margin()
    unversioned.CopyFrom(margin)
    unversioned.ClearField("version")
    content = unversioned.SerializeToString(deterministic=True)
    return "mv_" + hashlib.sha256(content).hexdigest()[:24]


def versioned(margin: Margin) -> Margin:
    """Return the same margin with its version."""
    margin.version = margin_version(margin)
    return margin


def check_scope(organisation_id: str, plan: str, model: str) -> None:
    """Refuse a margin that could never apply, or to more than was meant."""
    if organisation_id and plan:
        raise InvalidFieldError("plan", "name an organisation or a plan, not both")
    if len(model) > LONGEST_PATTERN:
        raise InvalidFieldError("model", f"is longer than {LONGEST_PATTERN} characters")
    for name, value in (("organisation_id", organisation_id), ("plan", plan), ("model", model)):
        if "\0" in value:
            raise InvalidFieldError(name, "contains the character NUL")
    if model and "*" not in model and "/" not in model:
        raise InvalidFieldError("model", "write `provider/model`, `provider/*` or `*`")


def book_version(margins: list[Margin], plans: dict[str, str]) -> str:
    """Return a hash of all margins and of who is on which plan: equal content, equal version."""
    digest = hashlib.sha256()
    for version in sorted(margin.version for margin in margins):
        digest.update(version.encode() + b"\n")
    for organisation_id, plan in sorted(plans.items()):
        digest.update(f"{organisation_id}\t{plan}\n".encode())
    return "mb_" + digest.hexdigest()[:24]
