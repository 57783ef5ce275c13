"""Models as callers see them."""

from __future__ import annotations

from collections.abc import Sequence

from omnihub.router.v1.model_pb2 import Model as ModelMessage

from services.credits.money import format_nano
from services.credits.rating import tokens_with_margin
from services.router.admission import Admission
from services.router.domain.catalogue import Model

# pico-credits per token -> nano-credits per million tokens
_NANO_PER_MILLION = 1000


async def describe(models: Sequence[Model], admission: Admission, organisation_id: str) -> list[ModelMessage]:
    """Return what a caller may know of models."""
    prices = await admission.prices.of((model.targets[0], model.priced_as) for model in models)
    described = []
    for model in models:
        target = model.targets[0]
        provider = admission.catalogue.providers.get(target.provider)
        message = ModelMessage(
            model_id=model.name,
            route=[each.name for each in model.targets],
            latency_ms=admission.latencies.of(target),
            strengths=model.settings.strengths,
            capabilities=sorted({*(provider.features if provider else ()), *model.settings.capabilities}),
            context_length=model.settings.context_length,
            synthetic=admission.catalogue.synthetic(model),
            created=admission.configured_at,
            provider=target.provider,
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
