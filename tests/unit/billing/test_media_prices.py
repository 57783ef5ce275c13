"""Prices of media: where they are from, and that nothing is free by silence."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from omnihub.billing.v1.price_pb2 import Price, PriceKey
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import MediaFile, MediaInput, MediaUsage, SpeechInput, TranscriptionInput

from services.billing.domain.price_book import PriceBook
from services.billing.media_prices import FILE, MediaPriceList, read_entries
from services.billing.price_list import GenaiPriceList
from services.credits.media_rating import bound_media, charge_media, covers_media, expected_of


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
            MediaUsage(images=1, tokens=Usage(input_total=100, input_image=60, output_total=1000)),
            40_800_000,
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
    assert charge_media(usage, MediaUsage(), price).amount_nano_credits == pytest.approx(nano, rel=1e-5)


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


def test_what_was_not_read_at_its_vendor_says_so() -> None:
    rows = tomllib.loads(FILE.read_text())["prices"]
    vendors = ("genai-prices", "developers.openai.com", "elevenlabs.io")
    assert any(row.get("doubt") for row in rows)
    for row in rows:
        assert row["source"].startswith(vendors) or row.get("doubt"), row


def test_a_price_without_a_source_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[[prices]]\nvendor = "x"\nmodels = ["y"]\nper_second = "1"\n')
    with pytest.raises(ValueError, match="needs `source` and `read`"):
        read_entries(file)


def test_the_bound_covers_tokens_of_sound(book: PriceBook) -> None:
    price = find(book, "openai", "gpt-4o-transcribe")
    assert price is not None
    given = MediaInput(transcription=TranscriptionInput(audio=MediaFile(data=bytes(60_000))))
    assert bound_media(expected_of(given), price) >= 60 * 0.0001 * 10**9
    spoken = MediaInput(speech=SpeechInput(text="x" * 100))
    mini = find(book, "openai", "gpt-4o-mini-tts")
    assert mini is not None
    assert bound_media(expected_of(spoken), mini) > 0
