"""From the catalogue to the planner: what is known of each target before a request comes."""

from __future__ import annotations

from collections.abc import Sequence

from services.router.domain.catalogue import AUTO, Catalogue, Model, Target, may_use
from services.router.domain.errors import ModelNotAllowedError
from services.router.domain.limits import OrganisationRules
from services.router.domain.policy import UNKNOWN_MATCH, Option


def automatic(requested: str, catalogue: Catalogue) -> bool:
    """Tell whether the choice of the model is left to us."""
    return requested == AUTO and AUTO not in catalogue.index and AUTO not in catalogue.models


def eligible(requested: str, catalogue: Catalogue, allowed: tuple[str, ...]) -> Sequence[Model]:
    """Return the models a request may be answered by. Raises ModelNotFoundError, ModelNotAllowedError."""
    if not automatic(requested, catalogue):
        return [catalogue.find(requested, allowed)]
    models = catalogue.usable(allowed)
    # Real models before rules: `auto` uses a synthetic one only when there is nothing else.
    return [model for model in models if not catalogue.synthetic(model)] or models


def includes(rules: OrganisationRules, model: Model, name: str) -> bool:
    """Tell whether an organisation's plan includes a model, by its own name or the one it is called by."""
    patterns = rules.allowed_models
    return not patterns or may_use(model.name, patterns) or may_use(name, patterns)


def of_plan(models: Sequence[Model], requested: str, rules: OrganisationRules) -> Sequence[Model]:
    """Return the models that the plan of an organisation includes. Raises ModelNotAllowedError."""
    if not rules.allowed_models:
        return models
    allowed = [model for model in models if includes(rules, model, requested)]
    if models and not allowed:
        raise ModelNotAllowedError(
            f"the plan {rules.plan!r} does not include the model {requested!r}",
            model=requested,
            plan=rules.plan,
        )
    return allowed


def options_of(models: Sequence[Model], catalogue: Catalogue) -> list[Option]:
    """Return every target of some models, in their order. One that several models list stands there once."""
    found: dict[Target, Option] = {}
    for model in models:
        for position, target in enumerate(model.targets):
            if target not in found:
                found[target] = _option(target, model, position, catalogue)
    return list(found.values())


def _option(target: Target, model: Model, position: int, catalogue: Catalogue) -> Option:
    provider = catalogue.providers.get(target.provider)
    features = provider.features if provider is not None else frozenset()
    region = next((each.region for each in model.endpoints if each.target == target), "")
    return Option(
        target=target,
        model=model,
        position=position,
        features=features & model.capabilities if model.capabilities else features,
        # Whoever says what a model can do knows better than what its provider can do at all.
        capabilities=model.capabilities or features,
        strengths=model.strengths,
        usual_match=UNKNOWN_MATCH if model.quality is None else model.quality,
        context_length=model.context_length,
        max_output=model.max_output,
        regions=frozenset({region}) if region else model.regions,
        tiers=model.tiers,
        problem="" if provider is not None else f"provider {target.provider} is not configured",
    )
