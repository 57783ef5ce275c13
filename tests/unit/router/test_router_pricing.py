"""What a caller pays: margins, service tiers, unknown prices, savings; seen through the router."""

from __future__ import annotations

from typing import Any

import pytest
from omnihub.billing.v1.price_pb2 import Margin, Price, ServiceTierPrice
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Part, TextPart
from omnihub.common.v1.stream_pb2 import PartStart
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.credits.money import format_nano, parse_nano
from services.credits.rating import rate_again
from tests.support.fakes import events
from tests.support.router import (
    INPUT_NANO,
    ORGANISATION,
    OUTPUT_NANO,
    Router,
    a_call,
    a_usage,
    an_answer,
    build,
    chat_request,
    delta,
    end,
    failed,
    start,
)

# Ten input and five output tokens at the prices of `build`.
COST = 10 * INPUT_NANO + 5 * OUTPUT_NANO
PREFILLS = ("chat", "stream", "prefill")
HALF_MORE = Margin(version="mv_1", model="*", basis_points=5000)


def a_router(*targets: str, margins: tuple[Margin, ...] = (HALF_MORE,), **more: Any) -> Router:
    router = build(*targets, **more)
    router.billing.margins = list(margins)
    return router


def opening(text: str) -> list[Any]:
    """Return the events that begin a text."""
    part = PartStart(index=0, part=Part(text=TextPart()))
    return [start(), provider.StreamChatResponse(part_start=part), delta(text)]


def again(router: Router, charge: Charge) -> tuple[int, int]:
    """Rate a charge again, as billing does, with the versions it names."""
    prices = {price.version: price for price in router.billing.prices.values()}
    margins = {margin.version: margin for margin in router.billing.margins}
    rated = rate_again(charge, prices.get, margins.get)
    return rated.sell, rated.cost


async def test_the_caller_pays_cost_and_margin_and_both_are_recorded() -> None:
    router = a_router()
    router.providers.answers["a/x"] = [an_answer()]
    assert (await router.chat()).cost == format_nano(COST * 3 // 2)
    await router.settle()
    (charge,) = router.journal.charges
    assert (charge.amount_nano_credits, charge.cost_nano_credits) == (COST * 3 // 2, COST)
    assert (charge.margin_version, charge.cost_source) == ("mv_1", "price")
    assert router.spent == COST * 3 // 2
    assert again(router, charge) == (charge.amount_nano_credits, charge.cost_nano_credits)


async def test_the_margin_is_added_to_what_the_provider_says() -> None:
    router = a_router()
    router.providers.answers["a/x"] = [an_answer(usage=a_usage(provider_cost="0.0000010001"))]
    assert (await router.chat()).cost == "0.000001501"
    (charge,) = router.journal.charges
    assert (charge.amount_nano_credits, charge.cost_nano_credits) == (1501, 1001)
    # 1500.15 rounded up to 1501 nano-credits.
    assert charge.rounding_pico_credits == 850
    assert again(router, charge) == (1501, 1001)


async def test_the_most_specific_margin_is_the_callers() -> None:
    mine = Margin(version="mv_2", organisation_id=ORGANISATION, model="a/*", free=True)
    router = a_router(margins=(HALF_MORE, mine))
    router.providers.answers["a/x"] = [an_answer()]
    assert (await router.chat()).cost == "0"
    (charge,) = router.journal.charges
    assert (charge.amount_nano_credits, charge.cost_nano_credits, charge.margin_version) == (0, COST, "mv_2")


@pytest.mark.parametrize("floor", [0, 10**12])
async def test_what_is_reserved_covers_the_margin(floor: int) -> None:
    margin = Margin(version="mv", model="*", basis_points=5000, floor_pico=floor)
    router = a_router(margins=(margin,), default_output_tokens=100)
    seen = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(router.reserved)
        return an_answer(usage=a_usage(input_total=10, output_total=100))

    router.providers.answers["a/x"] = [look]
    paid = parse_nano((await router.chat()).cost)
    assert paid == max((10 * INPUT_NANO + 100 * OUTPUT_NANO) * 3 // 2, floor // 1000)
    assert seen[0] >= paid
    # Too little for the margin, though enough for the cost.
    poor = a_router(default_output_tokens=100, available=seen[0] * 2 // 3 if not floor else floor // 2000)
    poor.billing.margins = [margin]
    with pytest.raises(RpcError) as refused:
        await poor.chat()
    assert refused.value.reason in ("INSUFFICIENT_CREDITS", "IN_FLIGHT_BUDGET_EXHAUSTED")
    assert not poor.providers.asked


async def test_a_margin_that_changes_is_heard_of_but_not_by_requests_under_way() -> None:
    router = a_router()

    async def change(request: Any, call: Any) -> Any:
        router.billing.margins = [HALF_MORE, Margin(version="mv_2", model="a/x", basis_points=10_000)]
        await router.admission.prices._forget([])
        return an_answer()

    router.providers.answers["a/x"] = [change, an_answer()]
    costs = [(await router.chat()).cost for _ in range(2)]
    assert costs == [format_nano(COST * 3 // 2), format_nano(COST * 2)]


async def test_a_rescued_answer_keeps_its_parts() -> None:
    router = a_router("a/x", "b/y", features=PREFILLS)
    router.billing.price("b/y", 3 * INPUT_NANO * 1000, 3 * OUTPUT_NANO * 1000)
    router.billing.margins = [HALF_MORE, Margin(version="mv_b", model="b/*", basis_points=100)]
    router.providers.streams["a/x"] = [events(*opening("hello "), failed())]
    router.providers.streams["b/y"] = [events(*opening("world"), end())]
    messages, error = await router.stream(max_tokens=100)
    assert error is None
    (charge,) = router.journal.charges
    assert [part.model for part in charge.parts] == ["a/x", "b/y"]
    assert [part.margin_version for part in charge.parts] == ["mv_1", "mv_b"]
    assert charge.amount_nano_credits == sum(part.amount_nano_credits for part in charge.parts)
    assert format_nano(charge.amount_nano_credits) == messages[-1].end.outcome.cost
    assert again(router, charge) == (charge.amount_nano_credits, charge.cost_nano_credits)


async def test_an_estimate_costs_no_more_than_what_was_reserved_and_can_be_rated_again() -> None:
    router = a_router(default_output_tokens=1)
    router.providers.answers["a/x"] = [an_answer("x" * 5000, usage=a_usage(0, 0))]
    await router.chat()
    (charge,) = router.journal.charges
    assert charge.cost_source == "estimate"
    assert charge.amount_nano_credits == charge.limit_nano_credits
    assert again(router, charge) == (charge.amount_nano_credits, charge.cost_nano_credits)


async def test_a_service_tier_is_paid_as_it_is_listed() -> None:
    router = a_router(margins=())
    price = router.billing.prices["a/x"]
    flex = Price(version="pv_flex", input_pico=price.input_pico // 2, output_pico=price.output_pico // 2)
    price.service_tiers.append(ServiceTierPrice(service_tier="flex", price=flex))
    body = b'{"model":"m","service_tier":"flex","messages":[{"role":"user","content":"hi"}]}'
    # The provider says which tier it was; when it says nothing it was the one that was asked for.
    router.providers.answers["a/x"] = [
        an_answer(),
        an_answer(usage=a_usage(service_tier="flex")),
        an_answer(usage=a_usage(service_tier="default")),
    ]
    costs = [(await router.client.chat(chat_request(body), a_call())).cost for _ in range(3)]
    assert costs == [format_nano(COST // 2), format_nano(COST // 2), format_nano(COST)]
    assert [charge.usage.service_tier for charge in router.journal.charges] == ["flex", "flex", "default"]


async def test_an_unknown_price_is_refused_or_flagged_never_zero() -> None:
    refusing = build()
    refusing.billing.prices.clear()
    with pytest.raises(RpcError) as refused:
        await refusing.chat()
    assert refused.value.reason == "PRICE_UNKNOWN"
    flagging = a_router(unknown_price="flag")
    flagging.billing.prices.clear()
    flagging.billing.fallback = Price(
        version="pv_fallback", source="fallback", input_pico=10**9, output_pico=10**9
    )
    flagging.providers.answers["a/x"] = [an_answer()]
    assert (await flagging.chat()).cost == format_nano(15 * 10**6 * 3 // 2)
    (charge,) = flagging.journal.charges
    assert (charge.cost_source, charge.price_version) == ("unknown", "pv_fallback")


async def test_savings_say_why() -> None:
    router = a_router("a/x", baseline_model="a/base", margins=())
    router.billing.price("a/base", 10 * INPUT_NANO * 1000, 10 * OUTPUT_NANO * 1000)
    router.billing.prices["a/x"].cache_read_pico = 0
    router.providers.answers["a/x"] = [an_answer(usage=a_usage(cache_read=4))]
    answer = await router.chat()
    (charge,) = router.journal.charges
    paid = COST - 4 * INPUT_NANO
    assert charge.amount_nano_credits == paid
    assert charge.savings_prompt_cache_nano_credits == 4 * INPUT_NANO
    assert charge.savings_routing_nano_credits == 9 * COST
    assert charge.baseline_nano_credits == 10 * COST == paid + charge.savings_nano_credits
    assert (answer.savings_estimate, charge.savings_formula) == (format_nano(10 * COST - paid), "savings-1")


async def test_callers_see_the_prices_they_pay() -> None:
    router = a_router()
    router.billing.prices["a/x"].input_pico = 1_000_000
    (model,) = (await router.client.list_models(pb.ListModelsRequest(), a_call())).models
    assert model.input_price_per_million == "1.5"
