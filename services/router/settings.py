"""Settings of the router."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

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


TASKS = ("chat", "coding", "reasoning", "summarization", "translation", "image", "agent_step")
CAPABILITIES = (
    *("chat", "stream", "tools", "vision", "audio", "documents", "json_schema", "reasoning", "embed"),
    # What a model makes besides text.
    *("image", "video", "speech", "transcription"),
)
# What callers write as `model`, and never with white space or control characters.
NAME_PATTERN = r"^[^\s@,*?\[\]\x00-\x1f\x7f]{1,128}$"
_TARGET_PATTERN = r"^[^/\s]+/\S+$"
LARGEST_WEIGHT = 1_000_000


def _check_capability(name: str) -> str:
    if name not in CAPABILITIES:
        raise ValueError(f"unknown capability {name!r}; known: {', '.join(CAPABILITIES)}")
    return name


def _check_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return name


def _strengths(value: Any) -> Any:
    """Read `["coding"]` as `{coding = 1.0}`."""
    return dict.fromkeys(value, 1.0) if isinstance(value, list | tuple) else value


TargetName = Annotated[str, Field(pattern=_TARGET_PATTERN, max_length=256)]
ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Capability = Annotated[str, AfterValidator(_check_capability)]
Task = Annotated[str, AfterValidator(_check_task)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[int, Field(ge=0, le=LARGEST_WEIGHT)]


class EndpointSettings(Section):
    """What is particular to one `provider/model` of a route."""

    region: Label | Literal[""] = ""
    """Where it computes, such as `eu` or `us-east-1`; empty means unknown."""
    enabled: bool = True
    """Whether it is asked."""
    weight: Weight = 0
    """Its share of the requests among the endpoints that have one; 0 means asked in its turn."""


class VersionSettings(Section):
    """A named version of a model: `[models."name".versions.voice_v1]`."""

    route: list[TargetName] = Field(min_length=1, max_length=64)
    """`provider/model`: the primary, then the fallbacks."""
    weight: Weight = 0
    """Its share of the requests that do not name a version."""
    endpoints: dict[TargetName, EndpointSettings] = {}
    """What is particular to entries of the route."""


class RouteSettings(Section):
    """A model as callers name it: `[models."name"]`, or a row of the registry."""

    route: list[TargetName] = Field([], max_length=64)
    """`provider/model`: primary, then fallbacks. In the registry a vendor's name stands for its providers."""
    endpoints: dict[TargetName, EndpointSettings] = {}
    """What is particular to entries of the route."""
    default_provider: str = ""
    """Its endpoints are asked first, whatever their place in the route."""
    fallback: list[ModelName] = Field([], max_length=16)
    """Models that are asked, in this order, once the route has failed."""
    versions: dict[Label, VersionSettings] = {}
    """Named versions. Requests that name none are split by weight; `name@version` names one."""
    aliases: list[ModelName] = Field([], max_length=64)
    """Other names of the model."""
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: int = Field(2, ge=0, le=5)
    """Further attempts at the same provider before the next one is asked."""
    rescue: Literal["off", "continue", "restart"] = "continue"
    """What happens to a stream that breaks after its first token."""
    hold_back: int = Field(0, ge=0, le=65_536)
    """Characters at the start of a stream that are held back: until they are there, a break goes unseen."""
    strengths: Annotated[dict[Task, Share], BeforeValidator(_strengths)] = {}
    """How good it is at tasks, from 0 to 1; a list of tasks means 1 for each: chat, coding, reasoning,
    summarization, translation, image, agent_step."""
    quality: Share | None = None
    """How good it is in all, from 0 to 1."""
    capabilities: list[Capability] = []
    """What it can do beside chat: tools, vision, audio, documents, json_schema, reasoning, embed."""
    context_length: int = Field(0, ge=0, le=2**32 - 1)
    """Tokens; 0 means unknown."""
    max_output: int = Field(0, ge=0, le=2**32 - 1)
    """Largest number of output tokens; 0 means unknown."""
    regions: list[Label] = []
    """Where it may compute; empty means unknown."""
    tiers: list[Label] = []
    """Plan tiers whose organisations may use it; empty means all."""
    options_schema: dict[str, Any] = {}
    """JSON Schema of the options it takes; empty means any."""
    options_defaults: dict[str, Any] = {}
    """Options where the caller gives none."""
    enabled: bool = True
    """Whether callers can use it."""
    source: str = Field("", max_length=500)
    """Where its facts come from, such as a vendor's page."""
    source_date: str = Field("", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    """When they were looked up: YYYY-MM-DD."""
    strategy: Literal["failover", "failover_cheapest", "split", "hedge", "race"] = "failover"
    """How the entries are asked: one after the other (from the third one on by price), by weight, a second
    one when the first is silent, or several at once."""
    hedge_after_ms: int = Field(0, ge=0, le=600_000)
    """For `hedge`: how long the first may be silent; 0: the time in which 95 % of its answers begin."""
    race_width: int = Field(2, ge=2, le=4)
    """For `race`: how many at once."""
    cache: Literal["off", "on"] = "off"
    """Give the answer to the same request again, where the request does not say otherwise."""
    cache_ttl_s: int = Field(86_400, ge=1, le=2_592_000)
    """For how long an answer is given again."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> RouteSettings:
        if not self.route and not self.versions:
            raise ValueError("route: name at least one `provider/model`, or versions that do")
        if self.versions and not any(version.weight for version in self.versions.values()):
            raise ValueError("versions: give at least one of them a weight above 0")
        for route, endpoints, where in self._routes():
            if len(set(route)) < len(route):
                raise ValueError(f"{where}route: an entry is there twice")
            strange = sorted(endpoints.keys() - set(route))
            if strange:
                raise ValueError(f"{where}endpoints: {strange[0]!r} is not in the route")
        return self

    def _routes(self) -> list[tuple[list[str], dict[str, EndpointSettings], str]]:
        routes = [(self.route, self.endpoints, "")]
        for name, version in self.versions.items():
            routes.append((version.route, version.endpoints, f"versions.{name}."))
        return routes


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
    """How long nobody asks; then one request at a time probes. A provider that has recovered is asked again
    within 25 s, also when the probe before that hangs."""
    credential_pause_s: float = Field(60, gt=0, le=3600)
    """The same for a provider that refuses the credential or has no money left."""


class RouterSettings(Section):
    """Settings of the router."""

    baseline_model: str = Field("", pattern=r"^([^/]+/.+)?$")
    """`provider/model` that savings are measured against; empty: no savings are shown."""
    task_model: str = Field("", pattern=r"^([^/]+/.+)?$")
    """Cheap `provider/model` that is asked what kind of work a request for `auto` is; empty: the classifier
    here. It sees the beginning and the end of the user's last words; what it costs is not charged."""
    task_model_limit_s: float = Field(0.5, gt=0, le=10)
    """How long it may take; then the classifier here is asked."""
    sticky_s: float = Field(900, ge=0, le=86_400)
    """How long a conversation for `auto` keeps its model, for the provider's prompt cache; 0: not at all."""
    unknown_price: Literal["refuse", "flag"] = "refuse"
    """What to do with a model that has no price: `flag` charges `billing.fallback_price` and says so."""
    default_output_tokens: int = Field(4096, ge=1)
    """Output tokens to reserve credits for when the caller names no limit."""
    leases: bool = True
    """Lease credits in slices and spend them in memory; without, each request has a hold of its own at
    billing: slower, and nothing but running requests is ever set aside."""
    lease_minimum: Amount = "0.05"
    """Smallest lease, in credits."""
    lease_maximum: Amount = "5"
    """Largest lease, in credits, unless one request needs more."""
    settle_interval_s: float = Field(1, gt=0, le=60)
    """How often charges go from the journal to billing."""
    crash_at: str = Field("", pattern=r"^([a-z_]+(:[1-9][0-9]*(:stop)?)?)?$")
    """For tests only: end the process at this place, the given time it passes (`after_reserve:3`)."""
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
    seed_models: bool = True
    """Fill a registry that never had a model with the shipped catalogue."""
    breaker: BreakerSettings = BreakerSettings()
    """When a provider that fails is left alone."""
    cache: CacheSettings = CacheSettings()
    """Answers that are given again."""
    health: HealthSettings = HealthSettings()
    """What is remembered of how providers answered."""
