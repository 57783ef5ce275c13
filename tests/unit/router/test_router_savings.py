"""Savings by cause: the parts are the whole, and losses are shown as losses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.rating import rate
from services.router.domain.savings import split
from tests.support.router import a_usage, an_answer, build

PRICES = st.builds(
    Price,
    input_pico=st.integers(0, 10**8),
    output_pico=st.integers(0, 10**8),
    cache_read_pico=st.integers(0, 10**8),
    cache_write_pico=st.integers(0, 10**8),
)
USAGES = st.builds(
    Usage,
    input_total=st.integers(2000, 10**6),
    output_total=st.integers(0, 10**5),
    cache_read=st.integers(0, 1000),
    cache_write=st.integers(0, 1000),
)


@given(usage=USAGES, price=PRICES, baseline=PRICES, cached=st.booleans())
def test_the_parts_are_exactly_the_whole(usage: Usage, price: Price, baseline: Price, cached: bool) -> None:
    paid = 0 if cached else rate(usage, price)
    savings = split(usage, paid, price, baseline, cached)
    plain = Usage(input_total=usage.input_total, output_total=usage.output_total)
    assert savings.total == rate(plain, baseline) - paid
    assert savings.cache == (rate(usage, price) if cached else 0)


def test_each_cause() -> None:
    price = Price(input_pico=2000, output_pico=4000, cache_read_pico=200, cache_write_pico=2500)
    baseline = Price(input_pico=10_000, output_pico=20_000)
    usage = Usage(input_total=1000, output_total=100, cache_read=500)
    own = rate(usage, price)
    savings = split(usage, own, price, baseline, False)
    assert (own, savings.prompt_cache, savings.cache) == (1500, 900, 0)
    assert savings.routing == 12_000 - 2400
    dearer = split(usage, own, price, Price(input_pico=100, output_pico=100), False)
    assert dearer.total < 0
    writing = split(Usage(input_total=1000, cache_write=1000), 2500, price, None, False)
    assert (writing.routing, writing.prompt_cache, writing.known) == (None, -500, True)
    assert not split(Usage(input_total=10), 20, price, None, False).known


async def test_they_are_in_outcome_decision_and_charge() -> None:
    router = build("a/x", baseline_model="b/premium")
    router.billing.price("a/x", 1_000_000, 2_000_000, cache_read_pico=100_000)
    router.billing.price("b/premium", 5_000_000, 10_000_000)
    router.providers.answers["a/x"] = [an_answer(usage=a_usage(10, 5, cache_read=10))]
    answer = await router.chat()
    await router.settle()
    # Baseline 100,000; own price 20,000 without the cache of the provider and 11,000 with it.
    assert answer.cost == "0.000011"
    savings = answer.outcome.savings
    assert (savings.routing, savings.prompt_cache_discount, savings.cache) == ("0.00008", "0.000009", "0")
    assert answer.savings_estimate == answer.outcome.savings_estimate == "0.000089"
    (decision,) = router.journal.decisions
    assert decision.savings == savings
    (charge,) = router.journal.charges
    parts = (
        charge.savings_routing_nano_credits,
        charge.savings_cache_nano_credits,
        charge.savings_prompt_cache_nano_credits,
    )
    assert (parts, charge.savings_nano_credits) == ((80_000, 0, 9_000), 89_000)


async def test_a_dearer_model_than_the_baseline_is_a_loss() -> None:
    router = build("a/x", baseline_model="b/cheap")
    router.billing.price("b/cheap", 1000, 1000)
    router.providers.answers["a/x"] = [an_answer()]
    answer = await router.chat()
    assert answer.savings_estimate.startswith("-")
    assert answer.outcome.savings.routing == answer.savings_estimate
