"""Savings by cause: the parts are the whole, and losses are shown as losses."""

from __future__ import annotations

from tests.support.router import a_usage, an_answer, build


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
    assert charge.baseline_nano_credits == charge.amount_nano_credits + sum(parts) == 100_000


async def test_a_dearer_model_than_the_baseline_is_a_loss() -> None:
    router = build("a/x", baseline_model="b/cheap")
    router.billing.price("b/cheap", 1000, 1000)
    router.providers.answers["a/x"] = [an_answer()]
    answer = await router.chat()
    assert answer.savings_estimate.startswith("-")
    assert answer.outcome.savings.routing == answer.savings_estimate


async def test_without_a_baseline_only_what_is_known_is_shown() -> None:
    router = build("a/x")
    router.billing.price("a/x", 1_000_000, 2_000_000, cache_read_pico=100_000)
    router.providers.answers["a/x"] = [an_answer(), an_answer(usage=a_usage(10, 5, cache_read=10))]
    answer = await router.chat()
    assert (answer.savings_estimate, answer.outcome.HasField("savings")) == ("", False)
    answer = await router.chat()
    assert answer.savings_estimate == answer.outcome.savings.prompt_cache_discount == "0.000009"
