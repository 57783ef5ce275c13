"""The models callers can name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from services.router.domain.errors import ModelNotAllowedError, ModelNotFoundError
from services.router.settings import RouteSettings

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Target:
    """One model at one provider."""

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
class Provider:
    """What the router knows of a provider."""

    name: str
    adapter: str
    features: frozenset[str]
    synthetic: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A model as callers name it."""

    name: str
    targets: tuple[Target, ...]
    settings: RouteSettings
    configured: bool = True

    @property
    def priced_as(self) -> str:
        """Return the name whose configured price applies; empty when the caller named the target itself."""
        return self.name if self.configured else ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All configured models, and the providers whose models can be named directly."""

    models: Mapping[str, Model]
    providers: Mapping[str, Provider] = field(default_factory=dict)

    @classmethod
    def build(cls, routes: Mapping[str, RouteSettings], providers: Iterable[Provider]) -> Catalogue:
        """Return the catalogue of a configuration."""
        models = {
            name: Model(name, tuple(Target.parse(target) for target in settings.route), settings)
            for name, settings in routes.items()
        }
        return cls(models, {provider.name: provider for provider in providers})

    def find(self, name: str, allowed: tuple[str, ...]) -> Model:
        """Return a model by the name a caller gave. Raises ModelNotFoundError, ModelNotAllowedError."""
        model = self.models.get(name)
        if model is None:
            target = Target.parse(name)
            if not target.model or target.provider not in self.providers:
                raise ModelNotFoundError(self._unknown(name), model=name)
            model = Model(name, (target,), RouteSettings(route=[name]), configured=False)
        if not may_use(name, allowed):
            raise ModelNotAllowedError(f"this key may not use the model {name!r}", model=name)
        return model

    def usable(self, allowed: tuple[str, ...]) -> list[Model]:
        """Return the configured models a key may use."""
        return [model for model in self.models.values() if may_use(model.name, allowed)]

    def synthetic(self, model: Model) -> bool:
        """Tell whether the model's first target is rules on this machine instead of a model."""
        provider = self.providers.get(model.targets[0].provider)
        return provider is not None and provider.synthetic

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.models, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "GET /v1/models lists those you can use"
        return f"the model {name!r} does not exist; {hint}"


def may_use(name: str, allowed: tuple[str, ...]) -> bool:
    """Tell whether a list such as `("support-chat", "anthropic/*")` allows a name. Empty allows all."""
    return not allowed or any(fnmatchcase(name, pattern) for pattern in allowed)
