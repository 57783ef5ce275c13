"""Rating of media: margins, estimates, and that every charge is rated again to the same."""

from __future__ import annotations

import pytest
from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import ImageEditInput, ImageInput, MediaFile, MediaInput, MediaUsage

from services.credits.media_rating import bound_media, charge_media, covers_media, expected_of
from services.credits.rating import rate_again

PRICE = Price(
    version="p1",
    source="configured",
    input_pico=10**6,
    output_pico=2 * 10**6,
    image_pico=10**10,
    megapixel_pico=3,
    second_pico=10**9 + 7,
    character_pico=10**6,
    compute_second_pico=10**8 + 3,
    request_pico=1,
)
MARGINS = [
    None,
    Margin(version="m1", basis_points=2500),
    Margin(version="m2", basis_points=-1000, fixed=Price(image_pico=10**9, second_pico=5)),
    Margin(version="m3", floor_pico=10**12),
    Margin(version="m4", free=True),
]
USAGES = [
    MediaUsage(images=4, megapixels=4.194304),
    MediaUsage(seconds=3.217, estimated=True),
    MediaUsage(characters=77, seconds=1 / 3),
    MediaUsage(compute_seconds=12.5),
    MediaUsage(tokens=Usage(input_total=100, input_image=50, output_total=7)),
    MediaUsage(provider_cost="0.0123456789012"),
    MediaUsage(),
]


def amount(usage: MediaUsage, price: Price, expected: MediaUsage | None = None) -> tuple[int, str]:
    charge = charge_media(usage, expected or MediaUsage(characters=77), price)
    return charge.amount_nano_credits, charge.cost_source


@pytest.mark.parametrize("margin", MARGINS, ids=lambda margin: getattr(margin, "version", "none"))
@pytest.mark.parametrize("usage", USAGES, ids=range(len(USAGES)))
def test_rated_again_it_comes_to_the_same(usage: MediaUsage, margin: Margin | None) -> None:
    charge = charge_media(usage, MediaUsage(images=1), PRICE, margin, limit=10**9)
    stored = Charge.FromString(charge.SerializeToString())
    again = rate_again(stored, {"p1": PRICE}.get, {each.version: each for each in MARGINS if each}.get)
    assert (again.sell, again.cost) == (charge.amount_nano_credits, charge.cost_nano_credits)
    assert again.rounding_pico == charge.rounding_pico_credits


def test_a_margin_is_added_to_units_and_to_what_the_provider_says() -> None:
    price = Price(version="p", source="configured", image_pico=10**10)
    margin = Margin(version="m", basis_points=5000, fixed=Price(image_pico=10**9))
    made = charge_media(MediaUsage(images=2), MediaUsage(), price, margin)
    assert (made.cost_nano_credits, made.amount_nano_credits) == (20_000_000, 32_000_000)
    told = charge_media(MediaUsage(images=2, provider_cost="0.01"), MediaUsage(), price, margin)
    assert (told.cost_nano_credits, told.amount_nano_credits) == (10_000_000, 17_000_000)
    assert bound_media(MediaUsage(images=2), price, margin) == 32_000_000


def test_nothing_is_free_by_silence() -> None:
    price = Price(character_pico=1_000_000, source="configured")
    assert amount(MediaUsage(seconds=3), price) == (77_000, "estimate")
    assert amount(MediaUsage(characters=3), price) == (3000, "price")
    assert amount(MediaUsage(characters=3, estimated=True), price) == (3000, "estimate")
    assert amount(MediaUsage(provider_cost="0"), price) == (0, "provider")
    assert amount(MediaUsage(provider_cost="none of it", characters=3), price) == (3000, "price")
    assert amount(MediaUsage(), Price(source="free")) == (0, "price")


def test_nobody_pays_more_for_a_guess_than_was_set_aside() -> None:
    price = Price(character_pico=1_000_000, source="configured")
    guess = charge_media(MediaUsage(characters=50, estimated=True), MediaUsage(), price, limit=40_000)
    assert (guess.amount_nano_credits, guess.cost_nano_credits) == (40_000, 50_000)
    assert guess.limit_nano_credits == 40_000
    told = charge_media(MediaUsage(characters=50), MediaUsage(), price, limit=40_000)
    assert (told.amount_nano_credits, told.HasField("limit_nano_credits")) == (50_000, False)


def test_time_of_a_machine_is_priced_and_expected() -> None:
    price = Price(compute_second_pico=10**9, source="configured")
    assert covers_media(price)
    assert amount(MediaUsage(compute_seconds=1.5), price) == (1_500_000, "price")
    assert bound_media(expected_of(MediaInput(image=ImageInput(prompt="x"))), price) == 120_000_000


def test_pictures_that_are_looked_at_are_expected() -> None:
    price = Price(input_pico=10**6, input_image_pico=10**7, source="configured", output_pico=1)
    edit = ImageEditInput(prompt="abc", images=[MediaFile(file_id="file_1")], mask=MediaFile(file_id="f"))
    expected = expected_of(MediaInput(image_edit=edit))
    assert (expected.tokens.input_total, expected.tokens.input_image) == (13_003, 13_000)
    assert bound_media(expected, price) >= 13_000 * 10**7 // 1000
