"""The plans that files give: those that come with OmniHub, and those of omnihub.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from services.billing.domain.plan import PlanBook, read_book
from services.billing.settings import BillingSettings

SHIPPED = Path(__file__).with_name("plans.toml")


def plan_book_of(settings: BillingSettings) -> PlanBook:
    """Return the plans. Raises InvalidFieldError."""
    configured = {name: plan.model_dump() for name, plan in settings.plans.items()}
    return read_book(tomllib.loads(SHIPPED.read_text()), configured, settings.default_plan)
