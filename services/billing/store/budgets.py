"""The store of limits and plans: one class, composed of its subjects."""

from services.billing.store.counting import Booking
from services.billing.store.plans import Plans
from services.billing.store.slices import Slices


class BudgetStore(Booking, Slices, Plans):
    """Everything billing keeps about limits and plans."""
