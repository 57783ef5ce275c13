"""Settings of the router."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

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
    strategy: Literal["failover", "failover_cheapest", "split", "hedge", "race"] = "failover"
    """How the entries are asked: one after the other (from the third one on by price), by weight, a second
    one when the first is silent, or several at once."""
    weights: list[Annotated[float, Field(ge=0)]] = []
    """For `split`: one for each entry; an entry of weight 0 only steps in for others. Empty: all the same."""
    hedge_after_ms: int = Field(0, ge=0, le=600_000)
    """For `hedge`: how long the first may be silent; 0: the time in which 95 % of its answers begin."""
    race_width: int = Field(2, ge=2, le=4)
    """For `race`: how many at once."""
    cache: Literal["off", "on"] = "off"
    """Give the answer to the same request again, where the request does not say otherwise."""
    cache_ttl_s: int = Field(86_400, ge=1, le=2_592_000)
    """For how long an answer is given again."""

    @model_validator(mode="after")
    def _check_weights(self) -> RouteSettings:
        if self.weights and len(self.weights) != len(self.route):
            raise ValueError(f"weights: expected {len(self.route)} numbers, one for each entry of route")
        if self.weights and not any(self.weights):
            raise ValueError("weights: at least one must be greater than 0")
        return self


class CacheSettings(Section):
    """Answers that are given again. Off unless a request, its key or its route asks for it."""

    total_mb: int = Field(64, ge=0, le=65_536)
    """Memory for answers, least recently used ones go first; 0 turns the cache off."""
    entry_kb: int = Field(512, ge=1, le=65_536)
    """Largest answer that is kept."""
    persist: bool = False
    """Keep answers in the router's database too: they outlive the process, and other replicas find them."""
    persist_mb: int = Field(1024, ge=1)
    """For these in the database, in all; the oldest go first."""


class HealthSettings(Section):
    """What is remembered of how providers answered."""

    retention_days: int = Field(14, ge=1, le=400)
    """How long the measurements of a minute are kept."""
    share_interval_s: float = Field(2, gt=0, le=30)
    """How often replicas read what the others have learned."""


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
    unknown_price: Literal["refuse", "flag"] = "refuse"
    """What to do with a model that has no price: `flag` charges `billing.fallback_price` and says so."""
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
    journal_survives_power_loss: bool = False
    """Embedded database only: wait for the disk before the last byte of each answer. Without it the journal
    survives the death of any process, but charges of the last moments may be lost with the power."""
    retry_after_limit_s: float = Field(10, ge=0)
    """Longest wait a provider may ask for before the next one is asked instead."""
    breaker: BreakerSettings = BreakerSettings()
    """When a provider that fails is left alone."""
    cache: CacheSettings = CacheSettings()
    """Answers that are given again."""
    health: HealthSettings = HealthSettings()
    """What is remembered of how providers answered."""
