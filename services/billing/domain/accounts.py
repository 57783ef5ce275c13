"""The names of accounts.

Signs: positive is what somebody else owns or we earned, negative what we gave or are owed. An
organisation's credits are positive; every transaction sums to zero.
"""

from __future__ import annotations

import hashlib

REVENUE = "revenue.usage"
BREAKAGE = "revenue.breakage"
PROMO_EXPENSE = "promo_expense"
ROUNDING = "rounding"
PLATFORM_ACCOUNTS = {
    REVENUE: "revenue",
    BREAKAGE: "revenue",
    PROMO_EXPENSE: "promo_expense",
    ROUNDING: "rounding",
}
# The projection that is guarded: its `posted` is the sum of the organisation's other accounts.
WALLET = "wallet"
PAID, PROMO, RECEIVABLE = "wallet.paid", "wallet.promo", "receivable"
# The accounts that entries of an organisation go to.
FAMILY = (PAID, PROMO, RECEIVABLE)
COGS, PAYABLE, CLEARING = "cogs", "payable", "clearing"
# Credits an administrator books by hand; a payment provider gets a clearing account of its own.
MANUAL = "manual"
LONGEST_NAME = 100


def wallet_of(organisation_id: str) -> str:
    """Return the id of the one row that is guarded."""
    return f"{WALLET}:{organisation_id}"


def account_of(kind: str, organisation_id: str) -> str:
    """Return the id of one of the organisation's accounts that entries go to."""
    return f"{kind}:{organisation_id}"


def family_of(organisation_id: str) -> dict[str, str]:
    """Return (id, kind) of the accounts whose sum is the organisation's wallet."""
    return {account_of(kind, organisation_id): kind for kind in FAMILY}


def cogs_of(provider: str) -> str:
    """Return what a provider's work has cost us."""
    return f"{COGS}.{_name(provider)}"


def payable_of(provider: str) -> str:
    """Return what we owe a provider."""
    return f"{PAYABLE}.{_name(provider)}"


def clearing_of(processor: str) -> str:
    """Return money on its way from a payment provider."""
    return f"{CLEARING}.{_name(processor)}"


def kind_of(platform_account: str) -> str:
    """Return the kind of an account of the platform."""
    return PLATFORM_ACCOUNTS.get(platform_account) or platform_account.partition(".")[0]


def _name(name: str) -> str:
    name = name.replace("\0", "") or "unknown"
    if len(name) > LONGEST_NAME:
        return f"{name[:LONGEST_NAME]}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name
