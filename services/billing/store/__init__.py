"""All persistence of billing.

Locks are always taken in one order, so that no two transactions wait for each other: leases, holds,
usage events, accounts, each sorted by id.
"""

from services.billing.store.store import Store

__all__ = ["Store"]
