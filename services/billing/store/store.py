"""The store: one class, composed of its subjects."""

from services.billing.store.accounts import Accounts
from services.billing.store.chain import Chain
from services.billing.store.corrections import Corrections
from services.billing.store.discrepancies import Discrepancies
from services.billing.store.grants import Grants
from services.billing.store.reservations import Holds, Leases
from services.billing.store.settlement import Settlements
from services.billing.store.usage import UsageEvents


class Store(Holds, Leases, Settlements, Grants, Corrections, Chain, Discrepancies, UsageEvents, Accounts):
    """Everything billing keeps, over one database."""
