"""Prices of media: where they are from, and that nothing is free by silence."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Margin, Price, PriceKey
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import (
    ImageInput,
    MediaFile,
    MediaInput,
    MediaUsage,
    SpeechInput,
    TranscriptionInput,
)

from services.billing.domain.price_book import PriceBook
from services.billing.media_prices import MediaPriceList, read_entries
from services.billing.price_list import GenaiPriceList
from services.credits.media_rating import assumed_of, bound_media, covers_media, rate_made
from services.credits.rating import rate_again


@pytest.fixture(scope="module")
def book() -> PriceBook:
    listed = MediaPriceList(read_entries(), GenaiPriceList(lambda: datetime(2026, 11, 21, tzinfo=UTC)))
    return PriceBook(configured={}, overrides={}, free_providers=frozenset({"local"}), listed=listed)


def find(book: PriceBook, vendor: str, model: str) -> Price | None:
    return book.find(PriceKey(provider="mine", model=model, vendor=vendor))


@pytest.mark.parametrize(
    ("vendor", "model", "usage", "nano"),
    [
        (
            "openai",
            "gpt-image-1",
            MediaUsage(images=1, tokens=Usage(input_total=100, output_total=1000)),
            41_000_000,
        ),
        (
            "openai",
            "gpt-4o-transcribe",
            MediaUsage(tokens=Usage(input_total=1000, output_total=100)),
            7_000_000,
        ),
        ("openai", "gpt-4o-mini-tts", MediaUsage(characters=900, seconds=60), 15_000_000),
        ("openai", "tts-1", MediaUsage(characters=1000, seconds=60), 15_000_000),
        ("openai", "whisper-1", MediaUsage(seconds=60), 6_000_000),
        ("openai", "sora-2", MediaUsage(seconds=8), 800_000_000),
        ("elevenlabs", "eleven_multilingual_v2", MediaUsage(characters=1000), 100_000_000),
        ("elevenlabs", "eleven_flash_v2_5", MediaUsage(characters=1000), 50_000_000),
        ("elevenlabs", "scribe_v1", MediaUsage(seconds=3600), 220_000_000),
    ],
)
def test_what_is_listed(book: PriceBook, vendor: str, model: str, usage: MediaUsage, nano: int) -> None:
    price = find(book, vendor, model)
    assert price is not None
    assert covers_media(price)
    assert rate_made(usage, price, MediaUsage()).rated.sell == pytest.approx(nano, rel=1e-5)


def test_what_is_not_listed_is_unknown(book: PriceBook) -> None:
    assert find(book, "openai", "sora-2-pro") is None
    assert find(book, "elevenlabs", "eleven_next") is None
    clone = find(book, "elevenlabs", "instant")
    assert clone is not None
    assert clone.source == "free"


def test_each_model_is_listed_once(book: PriceBook) -> None:
    names = [(price.key.provider, price.key.model) for price in book.all()]
    assert len(names) == len(set(names))
    assert ("elevenlabs", "scribe_v1") in names


def test_a_price_without_a_source_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[prices]]\nvendor = "x"\nmodels = ["y"]\nper_second = "1"\n')
    with pytest.raises(ValueError, match="needs `source` and `read`"):
        read_entries(file)


def test_the_bound_covers_tokens_of_sound(book: PriceBook) -> None:
    price = find(book, "openai", "gpt-4o-transcribe")
    assert price is not None
    given = MediaInput(transcription=TranscriptionInput(audio=MediaFile(data=bytes(60_000))))
    assert bound_media(given, price) >= 60 * 0.0001 * 10**9
    spoken = MediaInput(speech=SpeechInput(text="x" * 100))
    mini = find(book, "openai", "gpt-4o-mini-tts")
    assert mini is not None
    assert bound_media(spoken, mini) > 0


def test_nothing_is_free_by_silence() -> None:
    price = Price(character_pico=1_000_000, source="configured")
    assumed = MediaUsage(characters=77)

    def paid(usage: MediaUsage, price: Price = price, limit: int | None = None) -> tuple[int, str]:
        made = rate_made(usage, price, assumed, limit=limit)
        return made.rated.sell, made.source

    assert paid(MediaUsage(seconds=3)) == (77_000, "estimate")
    assert paid(MediaUsage(seconds=3), limit=5000) == (5000, "estimate")
    assert paid(MediaUsage(characters=3), limit=5) == (3000, "price")
    assert paid(MediaUsage(characters=3, estimated=True)) == (3000, "estimate")
    assert paid(MediaUsage(provider_cost="0")) == (0, "provider")
    assert paid(MediaUsage(characters=3, provider_cost="much")) == (3000, "price")
    assert paid(MediaUsage(), Price(source="free")) == (0, "price")


AMOUNTS = st.floats(0, 10_000).map(lambda amount: round(amount, 6))
USAGES = st.builds(
    MediaUsage,
    images=st.integers(0, 10),
    megapixels=AMOUNTS,
    seconds=AMOUNTS,
    characters=st.integers(0, 10_000),
    compute_seconds=AMOUNTS,
    tokens=st.builds(Usage, input_total=st.integers(0, 10_000), output_total=st.integers(0, 10_000)),
    provider_cost=st.sampled_from(["", "", "0.0123456789", "0", "nothing"]),
)
NUMBERS = ("request", "image", "megapixel", "second", "character", "compute_second", "input", "output")
PRICES = st.builds(
    Price, version=st.just("p1"), **{f"{name}_pico": st.integers(0, 10**9) for name in NUMBERS}
)
MARGINS = st.one_of(
    st.none(),
    st.builds(
        Margin,
        version=st.just("m1"),
        basis_points=st.integers(0, 20_000),
        floor_pico=st.integers(0, 10**9),
        free=st.booleans(),
        fixed=st.builds(Price, request_pico=st.integers(0, 10**9), second_pico=st.integers(0, 10**6)),
    ),
)


@given(USAGES, USAGES, PRICES, MARGINS, st.one_of(st.none(), st.integers(0, 10**9)))
def test_a_charge_for_media_rated_again_is_the_same(
    usage: MediaUsage, assumed: MediaUsage, price: Price, margin: Margin | None, limit: int | None
) -> None:
    made = rate_made(usage, price, assumed, margin, limit)
    charge = Charge(usage=made.usage, units=made.units, price_version="p1")
    if margin is not None:
        charge.margin_version = "m1"
    if limit is not None and made.source == "estimate":
        charge.limit_nano_credits = limit
    again = rate_again(charge, {"p1": price}.get, {}.get if margin is None else {"m1": margin}.get)
    assert again == made.rated
    assert made.rated.sell >= 0


def test_hardware_is_paid_by_the_second_and_assumed_for_a_minute() -> None:
    price = Price(compute_second_pico=10**6, source="configured")
    assert covers_media(price)
    given = MediaInput(image=ImageInput(prompt="x"))
    assert bound_media(given, price) == 60_000
    made = rate_made(MediaUsage(images=1, compute_seconds=2.5), price, assumed_of(given))
    assert (made.rated.sell, made.units.compute_milliseconds, made.source) == (2500, 2500, "price")
    silent = rate_made(MediaUsage(images=1), price, assumed_of(given))
    assert (silent.rated.sell, silent.source) == (60_000, "estimate")


def test_the_margin_is_in_the_bound_and_in_the_charge() -> None:
    given = MediaInput(speech=SpeechInput(text="x" * 100))
    price, margin = Price(character_pico=1_000_000, source="configured"), Margin(basis_points=2500)
    assert (bound_media(given, price), bound_media(given, price, margin)) == (100_000, 125_000)
    made = rate_made(MediaUsage(characters=100), price, assumed_of(given), margin)
    assert (made.rated.cost, made.rated.sell) == (100_000, 125_000)
