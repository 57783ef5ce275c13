from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as ListedUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Price, PriceKey
from omnihub.common.v1.chat_pb2 import Usage
from pydantic import ValidationError

from services.billing.domain.price import make_price, pico, token_numbers, version_of
from services.billing.domain.price_book import PriceBook
from services.billing.price_list import GenaiPriceList
from services.billing.prices import configured_book, configured_price
from services.billing.settings import BillingSettings, PriceSettings
from services.credits.rating import rate

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
LISTED = GenaiPriceList(lambda: NOW)


def configured(**values: str) -> Price:
    return configured_price(PriceSettings.model_validate(values))


def book(**overrides: dict[str, str]) -> PriceBook:
    return PriceBook(
        configured={"support-chat": configured(input_per_million="1.00", output_per_million="2.00")},
        overrides=configured_book(
            {name: PriceSettings.model_validate(value) for name, value in overrides.items()}
        ),
        free_providers=frozenset({"local"}),
        listed=LISTED,
    )


def test_the_price_of_the_toml_example() -> None:
    price = configured(input_per_million="1.00", output_per_million="2.00")
    assert (price.input_pico, price.output_pico) == (10**6, 2 * 10**6)
    assert (price.cache_read_pico, price.cache_write_pico, price.cache_write_1h_pico) == (10**6,) * 3
    assert (price.source, price.request_pico) == ("configured", 0)
    assert rate(Usage(input_total=1_000_000, output_total=1_000_000), price) == 3 * 10**9


def test_every_unit_of_a_configured_price() -> None:
    price = configured(
        input_per_million="3",
        output_per_million="15",
        cached_input_per_million="0.30",
        cache_write_per_million="3.75",
        per_request="0.001",
        per_image="0.04",
        per_megapixel="0.003",
        per_second="0.0001",
        per_character="0.000015",
    )
    assert (price.cache_read_pico, price.cache_write_pico) == (300_000, 3_750_000)
    assert (price.request_pico, price.image_pico, price.megapixel_pico) == (10**9, 4 * 10**10, 3 * 10**9)
    assert (price.second_pico, price.character_pico) == (10**8, 15 * 10**6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "at least one number"),
        ({"input_per_million": "1"}, "output_per_million"),
        ({"output_per_million": "1"}, "input_per_million"),
        ({"cached_input_per_million": "1"}, "cache prices need"),
        ({"input_per_million": "-1", "output_per_million": "1"}, "greater than or equal to 0"),
        ({"input_per_million": "NaN", "output_per_million": "1"}, "finite"),
        ({"input_per_million": "0.0000001", "output_per_million": "1"}, "decimal places"),
        ({"per_hour": "1"}, "Extra inputs"),
    ],
)
def test_a_wrong_price_says_what_is_wrong(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PriceSettings.model_validate(values)


def test_an_override_needs_the_name_of_a_model() -> None:
    with pytest.raises(ValidationError, match="provider/model"):
        BillingSettings.model_validate({"prices": {"gpt-4o": {"per_request": "1"}}})


def test_configured_comes_before_overrides_before_lists() -> None:
    prices = book(**{"openai/gpt-4o-mini": {"per_request": "1"}, "wall/*": {"per_request": "2"}})
    key = PriceKey(provider="openai", model="gpt-4o-mini", configured_model="support-chat")
    found = prices.find(key)
    assert found is not None
    assert (found.key, found.input_pico) == (key, 10**6)
    overridden = prices.find(PriceKey(provider="openai", model="gpt-4o-mini"))
    assert overridden is not None
    assert overridden.request_pico == 10**12
    everything = prices.find(PriceKey(provider="wall", model="anything", vendor="openai"))
    assert everything is not None
    assert everything.request_pico == 2 * 10**12
    listed = prices.find(PriceKey(provider="openai", model="gpt-4o"))
    assert listed is not None
    assert listed.source == "genai-prices"


def test_free_is_said_never_guessed() -> None:
    free = book().find(PriceKey(provider="local", model="echo"))
    assert free is not None
    assert (free.source, free.input_pico, free.output_pico) == ("free", 0, 0)
    assert free.version.startswith("pv_")
    assert book().find(PriceKey(provider="wall", model="gpt-4o")) is None
    assert book().find(PriceKey(provider="openai", model="no-such-model-at-all")) is None
    # Priced by the page only: nothing we count.
    assert book().find(PriceKey(provider="mistral", model="mistral-ocr-2503")) is None


def test_a_vendor_must_be_named_to_be_matched_loosely() -> None:
    assert book().find(PriceKey(provider="wall", model="gpt-4o", vendor="openai")) is not None
    assert book().find(PriceKey(provider="openai-compatible", model="gpt-4o")) is None


def test_the_whole_list_has_each_model_once() -> None:
    listed = list(book(**{"openai/gpt-4o": {"per_request": "1"}}).all())
    names = [(p.key.configured_model, p.key.provider, p.key.model) for p in listed]
    assert names.count(("", "openai", "gpt-4o")) == 1
    assert names[0] == ("support-chat", "", "")
    assert len(listed) > 1000
    assert all(price.version == version_of(price) for price in listed)


@pytest.mark.parametrize(
    ("vendor", "model"),
    [
        ("openai", "gpt-4o-mini"),
        ("openai", "gpt-5.4"),
        ("anthropic", "claude-sonnet-4-5"),
        ("google", "gemini-2.5-pro"),
        ("groq", "llama-3.3-70b-versatile"),
    ],
)
@pytest.mark.parametrize("tokens", [1_000, 200_000, 200_001, 300_000])
def test_our_rating_equals_the_calculation_of_the_list(vendor: str, model: str, tokens: int) -> None:
    price = LISTED.find(vendor, model, exact_vendor=True)
    assert price is not None
    usage = Usage(input_total=tokens, cache_read=tokens // 2, output_total=777)
    listed = calc_price(
        ListedUsage(input_tokens=tokens, cache_read_tokens=tokens // 2, output_tokens=777),
        model,
        provider_id=vendor,
        genai_request_timestamp=NOW,
    )
    exact = listed.total_price * 10**9
    assert 0 <= rate(usage, price) - exact < 1


def test_other_units_of_the_list() -> None:
    spoken = LISTED.find("openai", "tts-1", exact_vendor=True)
    assert spoken is not None
    assert spoken.character_pico == 15 * 10**6
    heard = LISTED.find("openai", "whisper-1", exact_vendor=True)
    assert heard is not None
    assert heard.second_pico == 10**8


@given(st.lists(st.integers(0, 10**9), min_size=5, max_size=5))
def test_a_version_is_a_function_of_the_numbers(numbers: list[int]) -> None:
    one = make_price("configured", token_numbers(*numbers))
    same = make_price("genai-prices", token_numbers(*numbers), context_length=9)
    assert one.version == same.version
    other = make_price("configured", token_numbers(numbers[0] + 1, *numbers[1:]))
    assert other.version != one.version


def test_pico_rounds_up() -> None:
    assert pico(Decimal(1), 3600) == 277_777_778
    assert pico(Decimal("0.000000000001")) == 1
