"""From the catalogue to the planner: what is known of each target before a request comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.router.domain.catalogue import AUTO, Catalogue, Model, Target
from services.router.domain.policy import Option


def eligible(requested: str, catalogue: Catalogue, allowed: tuple[str, ...]) -> Sequence[Model]:
    """Return the models a request may be answered by. Raises ModelNotFoundError, ModelNotAllowedError."""
    if not automatic(requested, catalogue):
        return [catalogue.find(requested, allowed)]
    models = catalogue.usable(allowed)
    # Real models before rules: `auto` uses a synthetic one only when there is nothing else.
    return [model for model in models if not catalogue.synthetic(model)] or models


def automatic(requested: str, catalogue: Catalogue) -> bool:
    """Tell whether the choice of the model is left to us."""
    return requested == AUTO and AUTO not in catalogue.models


def options_of(models: Sequence[Model], catalogue: Catalogue) -> list[Option]:
    """Return every target of some models, in their order."""
    return [
        _option(target, model, position, catalogue)
        for model in models
        for position, target in enumerate(model.targets)
    ]


def _option(target: Target, model: Model, position: int, catalogue: Catalogue) -> Option:
    provider = catalogue.providers.get(target.provider)
    features = provider.features if provider is not None else frozenset()
    settings = model.settings
    return Option(
        target=target,
        model=model,
        position=position,
        features=features,
        # Whoever says what a model can do knows better than what its provider can do at all.
        capabilities=frozenset(settings.capabilities) or features,
        strengths=_strengths(settings.strengths),
        context_length=settings.context_length,
        max_output=settings.max_output,
        problem="" if provider is not None else f"provider {target.provider} is not configured",
    )


def _strengths(tasks: Sequence[str]) -> Mapping[str, float]:
    return dict.fromkeys(tasks, 1.0)
