"""Models as callers see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.struct_pb2 import Struct
from omnihub.router.v1.model_pb2 import Model as ModelMessage

from services.credits.money import format_nano
from services.credits.rating import tokens_with_margin
from services.router.admission import Admission
from services.router.domain.catalogue import FILE, Catalogue, Model, may_use

# pico-credits per token -> nano-credits per million tokens
_NANO_PER_MILLION = 1000


@dataclass(frozen=True, slots=True)
class Shown:
    """A model under the names that a key may use."""

    name: str
    aliases: Sequence[str]
    model: Model


def shown(model: Model, allowed: tuple[str, ...], name: str = "") -> Shown:
    """Return a model as a key may see it: by its own name, or by the aliases that the key's list has."""
    if may_use(model.name, allowed):
        return Shown(name or model.name, model.aliases, model)
    aliases = [alias for alias in model.aliases if may_use(alias, allowed)]
    own = name or aliases[0]
    return Shown(own, [alias for alias in aliases if alias != own], model)


def all_shown(catalogue: Catalogue, allowed: tuple[str, ...]) -> list[Shown]:
    """Return the models a key may use, by name."""
    return sorted((shown(model, allowed) for model in catalogue.usable(allowed)), key=lambda each: each.name)


async def describe(listed: Sequence[Shown], admission: Admission, organisation_id: str) -> list[ModelMessage]:
    """Return what a caller may know of models."""
    prices = await admission.prices.of((each.model.targets[0], each.model.priced_as) for each in listed)
    described = []
    for each in listed:
        model = each.model
        target = model.targets[0]
        message = ModelMessage(
            model_id=each.name,
            aliases=each.aliases,
            route=[other.name for other in model.targets],
            latency_ms=admission.latencies.of(target),
            strengths=sorted(model.strengths, key=lambda task: -model.strengths[task]),
            task_strengths=model.strengths,
            quality=model.quality,
            capabilities=_capabilities(model, admission.catalogue),
            context_length=model.context_length,
            max_output=model.max_output,
            synthetic=admission.catalogue.synthetic(model),
            created=model.provenance.updated_at or admission.configured_at,
            provider=target.provider,
            regions=sorted(model.regions),
            tiers=sorted(model.tiers),
            versions=[version.name for version in model.versions],
            options_schema=_struct(model.settings.options_schema),
            options_defaults=_struct(model.settings.options_defaults),
            source=model.source,
            source_date=model.source_date,
        )
        price = prices[target, model.priced_as]
        if price is not None:
            margin = prices.margins.of(organisation_id, target.name)
            each_input, each_output = tokens_with_margin(price, margin)
            message.input_price_per_million = format_nano(each_input * _NANO_PER_MILLION)
            message.output_price_per_million = format_nano(each_output * _NANO_PER_MILLION)
            message.context_length = message.context_length or price.context_length
        described.append(message)
    return described


def _capabilities(model: Model, catalogue: Catalogue) -> list[str]:
    """Return what a model can do: all of it is known, or its provider's features stand for it."""
    if model.capabilities and model.provenance.managed_by != FILE:
        return sorted(model.capabilities)
    provider = catalogue.providers.get(model.targets[0].provider)
    features = provider.features if provider is not None else frozenset()
    declared = model.settings.capabilities if model.configured else model.capabilities
    return sorted({*features, *declared})


def _struct(values: dict[str, Any]) -> Struct | None:
    if not values:
        return None
    struct = Struct()
    struct.update(values)
    return struct
