"""A model as callers name it: where it is answered, what it can do, and in which versions it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from services.router.domain.split import choose
from services.router.settings import EndpointSettings, RouteSettings

# Who a model is managed by.
FILE, REGISTRY = "file", "registry"
# What the file need not say: its models can do what their provider can.
_IMPLIED = ("chat", "stream", "embed")
_PLAIN = EndpointSettings()


class Target(NamedTuple):
    """One model at one provider. A tuple: it is the key of much that is looked up for each request."""

    provider: str
    model: str

    @property
    def name(self) -> str:
        """Return `provider/model`."""
        return f"{self.provider}/{self.model}"

    @classmethod
    def parse(cls, name: str) -> Target:
        """Read `provider/model`; the model may contain slashes itself."""
        provider, _, model = name.partition("/")
        return cls(provider, model)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place where a model is answered, as it is configured."""

    target: Target
    region: str = ""
    """Where it computes; empty when unknown."""
    enabled: bool = True
    weight: int = 0
    """Its share among the endpoints that have one; 0: asked in its turn."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who says what a model is, and since when."""

    managed_by: str = FILE
    revision: int = 0
    """Grows with each change; 0 for a model of the file."""
    edited: bool = False
    """Somebody changed it since it was imported."""
    updated_at: float = 0.0
    """Seconds since 1970; 0 for a model of the file."""
    updated_by: str = ""


NOBODY = Provenance()


@dataclass(frozen=True, slots=True)
class Version:
    """A named version of a model, and its share of the requests that name none."""

    name: str
    weight: int
    model: Model
    """The same model with the version's own endpoints."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as callers name it. Empty facts are unknown facts."""

    name: str
    targets: tuple[Target, ...]
    """Where it is answered now, in the order they are asked: the enabled endpoints, then the fallbacks'."""
    settings: RouteSettings
    """How it is asked: timeouts, retries, rescue; and the definition that all else here was made from."""
    configured: bool = True
    """It has a name of its own; False when the caller named the target itself."""
    endpoints: tuple[Endpoint, ...] = ()
    """All endpoints of its route, in order, disabled ones too."""
    aliases: tuple[str, ...] = ()
    context_length: int = 0
    """Tokens; 0 when unknown."""
    max_output: int = 0
    """Tokens; 0 when unknown."""
    capabilities: frozenset[str] = frozenset()
    """Words of settings.CAPABILITIES; empty when unknown."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """How good it is at tasks of settings.TASKS, from 0 to 1; a missing one is unknown."""
    quality: float | None = None
    """How good it is in all, from 0 to 1; None when unknown."""
    regions: frozenset[str] = frozenset()
    """Where it may compute; empty when unknown. An endpoint's own region is more exact."""
    tiers: frozenset[str] = frozenset()
    """Plan tiers that may use it; empty: all."""
    enabled: bool = True
    versions: tuple[Version, ...] = ()
    """Empty for a model without versions, and inside a version."""
    version: str = ""
    """Which version this is; empty for a model without versions."""
    source: str = ""
    """Where its facts come from, such as a vendor's page."""
    source_date: str = ""
    """When they were looked up: YYYY-MM-DD."""
    provenance: Provenance = NOBODY

    @classmethod
    def of(
        cls,
        name: str,
        settings: RouteSettings,
        provenance: Provenance = NOBODY,
        vendors: Mapping[str, Sequence[str]] | None = None,
        fallback: Sequence[Target] = (),
    ) -> Model:
        """Return the model that a definition describes.

        `vendors` names the providers that a vendor's name stands for; `fallback` is asked last.
        """
        known = settings.capabilities
        implied = _IMPLIED if known and provenance.managed_by == FILE else ()
        endpoints = _endpoints(settings.route, settings.endpoints, settings.default_provider, vendors or {})
        plain = cls(
            name,
            _targets(endpoints, fallback),
            settings,
            endpoints=endpoints,
            aliases=tuple(settings.aliases),
            context_length=settings.context_length,
            max_output=settings.max_output,
            capabilities=frozenset((*known, *implied)),
            strengths=settings.strengths,
            quality=settings.quality,
            regions=frozenset(settings.regions),
            tiers=frozenset(settings.tiers),
            enabled=settings.enabled,
            source=settings.source,
            source_date=settings.source_date,
            provenance=provenance,
        )
        return plain._with_versions(vendors or {}, fallback) if settings.versions else plain

    def _with_versions(self, vendors: Mapping[str, Sequence[str]], fallback: Sequence[Target]) -> Model:
        versions = []
        for name, version in self.settings.versions.items():
            endpoints = _endpoints(version.route, version.endpoints, self.settings.default_provider, vendors)
            targets = _targets(endpoints, (*self.targets, *fallback))
            model = replace(self, targets=targets, endpoints=endpoints, version=name)
            versions.append(Version(name, version.weight, model))
        usual = max(versions, key=lambda version: version.weight).model
        return replace(self, targets=self.targets or usual.targets, versions=tuple(versions))

    @property
    def priced_as(self) -> str:
        """Return the name whose configured price applies; empty when the caller named the target itself."""
        return self.name if self.configured else ""

    def split(self, unit: str) -> Model:
        """Return the version that `unit`, such as a session, falls to; the model itself without versions."""
        if not self.versions:
            return self
        weights = [version.weight for version in self.versions]
        return self.versions[choose(weights, self.name, unit)].model

    def weight_of(self, target: Target) -> int:
        """Return the share of an endpoint in a split; where none has one, all have the same."""
        weights = {endpoint.target: endpoint.weight for endpoint in self.endpoints}
        return weights.get(target, 0) if any(weights.values()) else 1

    def offers(self, feature: str) -> bool:
        """Tell whether the model can do something, as far as that is known."""
        return not self.capabilities or feature in self.capabilities

    def allowed(self, patterns: tuple[str, ...]) -> bool:
        """Tell whether a key's list has the model, by its name or an alias."""
        return may_use(self.name, patterns) or any(may_use(alias, patterns) for alias in self.aliases)


def may_use(name: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a list such as `("support-chat", "anthropic/*")` allows a name. Empty allows all."""
    return not allowed or any(fnmatchcase(name, pattern) for pattern in allowed)


def _endpoints(
    route: Sequence[str],
    particulars: Mapping[str, EndpointSettings],
    default_provider: str,
    vendors: Mapping[str, Sequence[str]],
) -> tuple[Endpoint, ...]:
    """Return the endpoints of a route, the default provider's first."""
    endpoints = []
    for name in route:
        settings = particulars.get(name, _PLAIN)
        listed = Target.parse(name)
        for provider in vendors.get(listed.provider, (listed.provider,)):
            target = Target(provider, listed.model)
            endpoints.append(Endpoint(target, settings.region, settings.enabled, settings.weight))
    if default_provider:
        preferred = {default_provider, *vendors.get(default_provider, ())}
        endpoints.sort(key=lambda endpoint: endpoint.target.provider not in preferred)
    return tuple(endpoints)


def _targets(endpoints: Sequence[Endpoint], fallback: Sequence[Target]) -> tuple[Target, ...]:
    """Return who is asked, each once."""
    enabled = [endpoint.target for endpoint in endpoints if endpoint.enabled]
    return tuple(dict.fromkeys((*enabled, *fallback)))
