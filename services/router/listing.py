"""Models as callers see them."""

from __future__ import annotations

from collections.abc import Sequence

from omnihub.router.v1.model_pb2 import Model as ModelMessage

from services.credits.money import format_nano
from services.router.admission import Admission
from services.router.domain.catalogue import Model

# pico-credits per token -> nano-credits per million tokens
_NANO_PER_MILLION = 1000


async def describe(models: Sequence[Model], admission: Admission) -> list[ModelMessage]:
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
            strengths=sorted(model.strengths, key=lambda task: -model.strengths[task]),
            capabilities=sorted({*(provider.features if provider else ()), *model.capabilities}),
            context_length=model.context_length,
            synthetic=admission.catalogue.synthetic(model),
            created=admission.configured_at,
            provider=target.provider,
        )
        price = prices[target, model.priced_as]
        if price is not None:
            message.input_price_per_million = format_nano(price.input_pico * _NANO_PER_MILLION)
            message.output_price_per_million = format_nano(price.output_pico * _NANO_PER_MILLION)
            message.context_length = message.context_length or price.context_length
        described.append(message)
    return described
