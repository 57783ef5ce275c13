"""The vendors as the test matrix knows them: one column each, over real HTTP."""

from __future__ import annotations

from tests.support.vendors.answers import TEXT, Called, Said
from tests.support.vendors.table import VENDORS, Ask, Vendor

__all__ = ["TEXT", "VENDORS", "Ask", "Called", "Said", "Vendor"]
