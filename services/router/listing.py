"""Models as callers see them."""

from __future__ import annotations

from omnihub.router.v1.model_pb2 import Model as ModelMessage

from services.credits.money import format_nano
from services.router.admission import Admission
from services.router.domain.catalogue import Model

# pico-credits per token -> nano-credits per million tokens
_NANO_PER_MILLION = 1000


async def describe(model: Model, admission: Admission) -> ModelMessage:
    """Return what a caller may know of a model."""
    target = model.targets[0]
    await admission.prices.fetch([(target, model.name)])
    price = admission.price(target, model.name)
    provider = admission.catalogue.providers.get(target.provider)
    features = provider.features if provider is not None else frozenset()
    message = ModelMessage(
        model_id=model.name,
        route=[each.name for each in model.targets],
        latency_ms=admission.latencies.of(target),
        strengths=model.settings.strengths,
        capabilities=sorted({*features, *model.settings.capabilities}),
        context_length=model.settings.context_length,
        synthetic=admission.catalogue.synthetic(model),
        created=admission.configured_at,
        provider=target.provider,
    )
    if price is not None:
        message.input_price_per_million = format_nano(price.input_pico * _NANO_PER_MILLION)
        message.output_price_per_million = format_nano(price.output_pico * _NANO_PER_MILLION)
        message.context_length = message.context_length or price.context_length
    return message
