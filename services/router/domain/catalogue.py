"""The models callers can name: those of the file, then those of the registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.router.domain.errors import ModelNotAllowedError, ModelNotFoundError
from services.router.domain.model import (
    FILE,
    NOBODY,
    REGISTRY,
    Endpoint,
    Model,
    Provenance,
    Target,
    Version,
    may_use,
)
from services.router.settings import RouteSettings

__all__ = [
    "AUTO",
    "FILE",
    "REGISTRY",
    "Catalogue",
    "Definition",
    "Endpoint",
    "Model",
    "Provenance",
    "Provider",
    "Target",
    "Version",
    "may_use",
]

AUTO = "auto"
# Between a model and its version.
AT = "@"
# Looking for close names takes some microseconds for each, and they are about as long.
COMPARED = 1000
LONGER = 4
# How a target is asked that the caller named itself.
_DIRECT = RouteSettings(route=["provider/model"])
_UNKNOWN = Model("", (), _DIRECT)


@dataclass(frozen=True, slots=True)
class Provider:
    """What the router knows of a provider."""

    name: str
    adapter: str
    features: frozenset[str]
    synthetic: bool
    vendor: str = ""
    """Whose own service it is; empty when it is nobody's or that is unknown."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A model as somebody defined it."""

    name: str
    settings: RouteSettings
    provenance: Provenance = NOBODY


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models that can be used, and the providers whose models can be named directly. Never changed."""

    models: Mapping[str, Model]
    """By name. Each is enabled, and one of its providers at least is configured."""
    providers: Mapping[str, Provider] = field(default_factory=dict)
    dormant: Mapping[str, Model] = field(default_factory=dict)
    """By name, those that cannot be used: disabled ones, and ones without a configured provider."""
    index: Mapping[str, Model] = field(default_factory=dict)
    """By name, alias and `name@version`."""
    by_target: Mapping[Target, Model] = field(default_factory=dict)
    """The first model that lists a target: what is known of it when it is named directly."""

    @classmethod
    def build(
        cls,
        routes: Mapping[str, RouteSettings],
        providers: Iterable[Provider],
        registered: Iterable[Definition] = (),
    ) -> Catalogue:
        """Return the catalogue of a configuration and a registry. Where both have a name, the file wins."""
        known = {provider.name: provider for provider in providers}
        definitions = {definition.name: definition for definition in registered}
        definitions.update({name: Definition(name, settings) for name, settings in routes.items()})
        vendors = _vendors(known)
        models: dict[str, Model] = {}
        dormant: dict[str, Model] = {}
        # The file's models first: they come first where order decides.
        for name in dict.fromkeys((*routes, *definitions)):
            definition = definitions[name]
            fallback = _fallback(name, definitions, vendors) if definition.settings.fallback else ()
            model = Model.of(name, definition.settings, definition.provenance, vendors, fallback)
            by_file = model.provenance.managed_by == FILE
            usable = by_file or any(target.provider in known for target in model.targets)
            (models if model.enabled and model.targets and usable else dormant)[name] = model
        index = _index(models)
        by_target: dict[Target, Model] = {}
        for model in models.values():
            for target in model.targets:
                by_target.setdefault(target, model)
        return cls(models, known, dormant, index, by_target)

    def find(self, name: str, allowed: tuple[str, ...]) -> Model:
        """Return a model by the name a caller gave. Raises ModelNotFoundError, ModelNotAllowedError."""
        model = self.index.get(name)
        if model is None:
            model = self._direct(name, allowed)
            permitted = may_use(name, allowed)
        else:
            permitted = not allowed or may_use(model.name, allowed) or may_use(name, allowed)
        if not permitted:
            raise ModelNotAllowedError(f"this key may not use the model {name!r}", model=name)
        return model

    def usable(self, allowed: tuple[str, ...]) -> list[Model]:
        """Return the models a key may use, the file's first."""
        if not allowed:
            return list(self.models.values())
        return [model for model in self.models.values() if model.allowed(allowed)]

    def synthetic(self, model: Model) -> bool:
        """Tell whether the model's first target is rules on this machine instead of a model."""
        provider = self.providers.get(model.targets[0].provider)
        return provider is not None and provider.synthetic

    def problem(self, name: str) -> str:
        """Return why callers cannot use a model; empty when they can."""
        asleep = self.dormant.get(name)
        return "" if asleep is None else _why_dormant(asleep)

    def _direct(self, name: str, allowed: tuple[str, ...]) -> Model:
        """Return a model named as `provider/model`."""
        target = Target.parse(name)
        if not target.model or target.provider not in self.providers:
            raise ModelNotFoundError(self._unknown(name, allowed), model=name)
        # What it is is known from the model that lists it; how it is asked is not.
        known = self.by_target.get(target, _UNKNOWN)
        return Model(
            name,
            (target,),
            _DIRECT,
            configured=False,
            endpoints=(Endpoint(target),),
            context_length=known.context_length,
            max_output=known.max_output,
            capabilities=known.capabilities,
            strengths=known.strengths,
            quality=known.quality,
            regions=known.regions,
            tiers=known.tiers,
        )

    def _unknown(self, name: str, allowed: tuple[str, ...]) -> str:
        """Say that there is no such model. Only names that the key may use are told."""
        asleep = self.dormant.get(name)
        if asleep is not None and asleep.allowed(allowed):
            return f"the model {name!r} cannot be used: {_why_dormant(asleep)}"
        usable = [model for model in self.models.values() if model.allowed(allowed)]
        names = [
            each
            for model in usable
            for each in (model.name, *model.aliases)
            if abs(len(each) - len(name)) <= LONGER and may_use(each, allowed)
        ]
        close = difflib.get_close_matches(name, names[:COMPARED], n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "GET /v1/models lists those you can use"
        return f"the model {name!r} does not exist; {hint}"


def _vendors(providers: Mapping[str, Provider]) -> dict[str, list[str]]:
    """Return the providers that a vendor's name stands for, unless a provider has that very name."""
    vendors: dict[str, list[str]] = {}
    for provider in providers.values():
        if provider.vendor and provider.vendor not in providers:
            vendors.setdefault(provider.vendor, []).append(provider.name)
    return vendors


def _fallback(
    name: str, definitions: Mapping[str, Definition], vendors: Mapping[str, Sequence[str]]
) -> Sequence[Target]:
    """Return the targets of a model's fallbacks and theirs, in the order they are asked."""
    targets: list[Target] = []
    seen = {name}

    def visit(listed: Sequence[str]) -> None:
        for other in listed:
            definition = definitions.get(other)
            if definition is None or other in seen:
                continue
            seen.add(other)
            if definition.settings.enabled:
                targets.extend(Model.of(other, definition.settings, definition.provenance, vendors).targets)
                visit(definition.settings.fallback)

    visit(definitions[name].settings.fallback)
    return targets


def _index(models: Mapping[str, Model]) -> dict[str, Model]:
    """Return the models by every name callers can use. Names win over aliases, the file over the registry."""
    index: dict[str, Model] = dict(models)
    for model in models.values():
        for alias in model.aliases:
            index.setdefault(alias, model)
        for version in model.versions:
            index.setdefault(f"{model.name}{AT}{version.name}", version.model)
    return index


def _why_dormant(model: Model) -> str:
    if not model.enabled:
        return "it is disabled"
    if not model.targets:
        return "none of its endpoints is enabled"
    providers = dict.fromkeys(target.provider for target in model.targets)
    return f"no provider of it is configured ({', '.join(providers)})"
