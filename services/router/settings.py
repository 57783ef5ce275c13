"""Settings of the router."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from services.common.settings import Section
from services.credits.money import parse_nano


def _check_amount(amount: str) -> str:
    if parse_nano(amount) <= 0:
        raise ValueError("must be greater than 0")
    return amount


# Credits, as a decimal.
Amount = Annotated[str, AfterValidator(_check_amount)]


class TimeoutSettings(Section):
    """Limits of one attempt at a provider."""

    connect_s: float = Field(5, gt=0, le=600)
    """Until the connection stands."""
    first_token_s: float = Field(15, gt=0, le=600)
    """Until the first part of a streamed answer."""
    idle_s: float = Field(15, gt=0, le=600)
    """Between two parts of a streamed answer."""
    total_s: float = Field(600, gt=0, le=3600)
    """For the whole answer."""


class RouteSettings(Section):
    """A model as callers name it: `[models."name"]`."""

    route: list[str] = Field(min_length=1)
    """`provider/model`: the primary, then the fallbacks."""
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: int = Field(2, ge=0, le=5)
    """Further attempts at the same provider before the next one is asked."""
    rescue: Literal["off", "continue", "restart"] = "continue"
    """What happens to a stream that breaks after its first token."""
    hold_back: int = Field(0, ge=0, le=65_536)
    """Characters at the start of a stream that are held back: until they are there, a break goes unseen."""
    strengths: list[str] = []
    """Tasks it is good at: chat, coding, reasoning, summarization, translation, image, agent_step."""
    capabilities: list[str] = []
    """What it can do beside chat: tools, vision, audio, documents, json_schema, reasoning, embed."""
    context_length: int = Field(0, ge=0)
    """Tokens; 0 means unknown."""
    max_output: int = Field(0, ge=0)
    """Largest number of output tokens; 0 means unknown."""


class BreakerSettings(Section):
    """When a provider that fails is left alone. One that has recovered is found out by the next probe."""

    failures: int = Field(5, ge=1, le=1000)
    """Failures within the window that open the circuit, if they are at least half of all outcomes."""
    window_s: float = Field(30, gt=0, le=600)
    """How long an outcome counts."""
    open_s: float = Field(10, gt=0, le=25)
    """How long nobody asks; then one request at a time probes."""
    credential_pause_s: float = Field(60, gt=0, le=3600)
    """The same for a provider that refuses the credential or has no money left."""


class RouterSettings(Section):
    """Settings of the router."""

    baseline_model: str = Field("", pattern=r"^([^/]+/.+)?$")
    """`provider/model` that savings are measured against; empty: no savings are shown."""
    unknown_price: Literal["refuse", "free"] = "refuse"
    """What to do with a model that has no price."""
    default_output_tokens: int = Field(4096, ge=1)
    """Output tokens to reserve credits for when the caller names no limit."""
    lease_minimum: Amount = "0.05"
    """Smallest lease, in credits."""
    lease_maximum: Amount = "5"
    """Largest lease, in credits, unless one request needs more."""
    settle_interval_s: float = Field(1, gt=0, le=60)
    """How often charges go from the journal to billing."""
    decision_retention_days: int = Field(30, ge=1)
    """How long records of requests are kept."""
    response_retention_days: int = Field(90, ge=1)
    """How long it is known whose a response is that a provider keeps."""
    background_poll_s: float = Field(30, gt=0, le=3600)
    """How often providers are asked about answers in the background that nobody reads."""
    journal_survives_power_loss: bool = False
    """Embedded database only: wait for the disk before the last byte of each answer. Without it the journal
    survives the death of any process, but charges of the last moments may be lost with the power."""
    retry_after_limit_s: float = Field(10, ge=0)
    """Longest wait a provider may ask for before the next one is asked instead."""
    breaker: BreakerSettings = BreakerSettings()
    """When a provider that fails is left alone."""
