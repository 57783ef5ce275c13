"""Settings of billing, and what a price looks like in omnihub.toml."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from services.common.settings import Section

Credits = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9, allow_inf_nan=False)]
# Finer prices could not be written as whole pico-credits per token or unit.
PerMillion = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6, allow_inf_nan=False)]
PerUnit = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=12, allow_inf_nan=False)]
# Kinds of token that may have a price of their own.
SPECIAL_TOKENS = ("reasoning", "input_audio", "output_audio", "input_image", "output_image")


class PriceSettings(Section):
    """`price = { input_per_million = "1.00", output_per_million = "2.00" }`: credits (USD), as strings."""

    input_per_million: PerMillion | None = None
    """Credits for a million input tokens."""
    output_per_million: PerMillion | None = None
    """Credits for a million output tokens."""
    cached_input_per_million: PerMillion | None = None
    """Credits for a million input tokens read from the provider's cache; default: as input."""
    cache_write_per_million: PerMillion | None = None
    """Credits for a million input tokens written to the provider's cache; default: as input."""
    cache_write_1h_per_million: PerMillion | None = None
    """The same for tokens written for an hour; default: as other written ones."""
    reasoning_per_million: PerMillion | None = None
    """Credits for a million output tokens of reasoning; default: as output."""
    input_audio_per_million: PerMillion | None = None
    """Credits for a million input tokens of audio; default: as input."""
    output_audio_per_million: PerMillion | None = None
    """Credits for a million output tokens of audio; default: as output."""
    input_image_per_million: PerMillion | None = None
    """Credits for a million input tokens of images; default: as input."""
    output_image_per_million: PerMillion | None = None
    """Credits for a million output tokens of images; default: as output."""
    per_request: PerUnit | None = None
    """Credits for each request, besides everything else."""
    per_image: PerUnit | None = None
    """Credits for each image made."""
    per_megapixel: PerUnit | None = None
    """Credits for each megapixel made."""
    per_second: PerUnit | None = None
    """Credits for each second of audio or video."""
    per_character: PerUnit | None = None
    """Credits for each character spoken."""
    per_compute_second: PerUnit | None = None
    """Credits for each second of a machine."""

    @model_validator(mode="after")
    def _complete(self) -> PriceSettings:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError('a price needs at least one number, such as per_request = "0.01"')
        if (self.input_per_million is None) != (self.output_per_million is None):
            raise ValueError(
                'give both input_per_million and output_per_million; "0" says that one of them is free'
            )
        if self.input_per_million is None and (
            self.cached_input_per_million is not None
            or self.cache_write_per_million is not None
            or self.cache_write_1h_per_million is not None
        ):
            raise ValueError("cache prices need input_per_million and output_per_million")
        if self.input_per_million is None and any(
            getattr(self, f"{kind}_per_million") is not None for kind in SPECIAL_TOKENS
        ):
            raise ValueError("prices of special tokens need input_per_million and output_per_million")
        return self


class MarginSettings(Section):
    """One `[[billing.margins]]`: what is added to providers' costs."""

    organisation: str = ""
    """Only for this organisation."""
    plan: str = ""
    """Only for organisations on this plan."""
    model: str = "*"
    """Pattern of `provider/model`; `*` stands for any text."""
    basis_points: int = Field(0, ge=-10_000, le=1_000_000)
    """Hundredths of a percent of the cost; negative for a discount."""
    floor: PerUnit = Decimal(0)
    """Least that a request costs, in credits."""
    free: bool = False
    """Nothing is paid at all."""
    fixed: PriceSettings | None = None
    """Added for each request, token or unit."""

    @model_validator(mode="after")
    def _consistent(self) -> MarginSettings:
        if self.organisation and self.plan:
            raise ValueError("name an organisation or a plan, not both")
        if self.free and (self.basis_points or self.floor or self.fixed is not None):
            raise ValueError("what is free has no basis_points, floor or fixed part")
        return self


def _check_margins(margins: tuple[MarginSettings, ...]) -> tuple[MarginSettings, ...]:
    seen = set()
    for margin in margins:
        scope = margin.organisation, margin.plan, margin.model
        if scope in seen:
            raise ValueError(f"two margins for the same organisation, plan and model: {scope}; keep one")
        seen.add(scope)
    return margins


def _check_names(prices: dict[str, PriceSettings]) -> dict[str, PriceSettings]:
    for name in prices:
        provider, _, model = name.partition("/")
        if not provider or not model:
            raise ValueError(
                f"{name!r}: write `provider/model`, or `provider/*` for all models of a provider"
            )
    return prices


class PlanLimitSettings(Section):
    """One limit of a plan, for the organisation as a whole."""

    measure: Literal["credits", "requests", "tokens", "concurrency"]
    """What it counts."""
    window: Literal["", "minute", "hour", "day", "week", "month", "total", "lifetime"] = ""
    """How long; none for concurrency."""
    amount: str
    """Credits as a decimal, whole numbers otherwise."""
    enforcement: Literal["hard", "soft"] = "hard"
    """hard refuses, soft raises alerts."""
    alert_at_percent: tuple[int, ...] = ()
    """When alerts are raised; default: 80 and 100 for soft limits."""


class PlanSettings(Section):
    """A plan."""

    display_name: str = ""
    """How people call it."""
    monthly_credits: str = ""
    """Credits granted each month."""
    allowed_models: tuple[str, ...] = ()
    """Names or patterns such as `openai/*`; default: every model."""
    limits: tuple[PlanLimitSettings, ...] = ()
    """What an organisation on it may use."""


class BillingSettings(Section):
    """Billing."""

    lease_ttl_s: int = Field(30, ge=1, le=3600)
    """A lease not renewed for this long has expired: its journal is replayed, then it is closed."""
    lease_abandoned_after_s: int = Field(86_400, ge=60)
    """A lease that nobody closed for this long after its expiry is closed without its journal."""
    sweep_interval_s: float = Field(1.0, gt=0, le=60)
    """How often expired holds are released."""
    seal_interval_s: float = Field(10.0, gt=0, le=3600)
    """How often booked transactions are sealed into the hash chain."""
    check_interval_s: int = Field(3600, ge=1)
    """How often the whole ledger is checked, by one replica."""
    in_flight_retry_after_s: float = Field(1.0, gt=0, le=60)
    """What a caller is told to wait when running requests hold the credits."""
    free_credits: Credits = Decimal(0)
    """Credits that each new organisation gets once."""
    largest_grant_credits: Credits = Decimal(1_000_000)
    """The most credits one grant of an administrator may add."""
    free_providers: tuple[str, ...] = ("local",)
    """Providers or adapters that cost nothing."""
    prices: Annotated[dict[str, PriceSettings], AfterValidator(_check_names)] = {}
    """Prices by `provider/model` or `provider/*`; they win over the vendors' lists."""
    fallback_price: PriceSettings = PriceSettings(
        input_per_million=Decimal(10), output_per_million=Decimal(30)
    )
    """What models cost that nobody knows a price of, where `router.unknown_price` is `flag`."""
    margins: Annotated[tuple[MarginSettings, ...], AfterValidator(_check_margins)] = ()
    """What is added to providers' costs; the most specific one applies."""
    reconciliation_tolerance_percent: Decimal = Field(Decimal("0.5"), ge=0, le=100)
    """A provider's bill may differ from our cost by this part of it ..."""
    reconciliation_tolerance_credits: Credits = Decimal(1)
    """... or by so many credits for a model and day, whichever is more, before it is reported."""
    price_refresh_interval_s: float = Field(1.0, gt=0, le=3)
    """How often prices and margins that another process has set are looked for."""
    price_check_interval_s: float = Field(60.0, gt=0)
    """How often list prices that depend on the date or the hour are looked at again."""
    default_plan: str = ""
    """The plan of organisations that were put on none; empty: no limits and every model."""
    plans: dict[str, PlanSettings] = {}
    """Plans by name; they win over those that come with OmniHub, and administrators cannot change them."""
    allowance_check_interval_s: float = Field(60.0, gt=0, le=3600)
    """How often it is looked at whose monthly credits are due."""
    auth_wait_s: float = Field(60.0, gt=0)
    """How long the start waits for the auth service."""
    crash_at: str = Field("", pattern=r"^([a-z_]+(:[1-9][0-9]*(:stop)?)?)?$")
    """For tests only: end the process at this place, the given time it passes (`after_reserve:3`)."""
