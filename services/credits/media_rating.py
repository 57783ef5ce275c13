"""Rating of media: what images, seconds, characters and so on cost at a price. Pure, like `rating.py`."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from omnihub.billing.v1.price_pb2 import Price
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import MediaInput, MediaUsage

from services.credits.money import decimal_to_nano_up, pico_to_nano
from services.credits.rating import provider_cost_of, rate

# What is assumed of a request that does not say.
PIXELS = 1024 * 1024
VIDEO_S = 10.0
# Speech is about 15 characters in a second; nobody speaks slower than a third of that.
CHARACTERS_PER_SECOND = 5
# The smallest audio that is still understood has 1 kB in a second.
AUDIO_BYTES_PER_SECOND = 1000
LONGEST_AUDIO_S = 4 * 3600.0
CHARACTERS_PER_TOKEN = 2
# Of sound that is listened to; what is written down is less.
TOKENS_PER_SECOND = 20


def rate_media(usage: MediaUsage, price: Price) -> int:
    """Return the cost of `usage` in nano-credits, rounded up once. The provider's own figure wins."""
    reported = provider_cost_of(Usage(provider_cost=usage.provider_cost))
    if reported is not None:
        return decimal_to_nano_up(reported)
    fractions = Decimal(usage.megapixels) * price.megapixel_pico + Decimal(usage.seconds) * price.second_pico
    pico = (
        price.request_pico
        + usage.images * price.image_pico
        + usage.characters * price.character_pico
        + int(fractions.to_integral_value(ROUND_CEILING))
    )
    tokens = Price()
    tokens.CopyFrom(price)
    tokens.request_pico = 0
    return pico_to_nano(pico) + (rate(usage.tokens, tokens) if usage.HasField("tokens") else 0)


def rate_made(usage: MediaUsage, price: Price, estimate: int) -> tuple[int, str]:
    """Return the cost of what was made, and where it is from: provider, price or estimate.

    When the usage says nothing that the price counts, the estimate is paid: only what is free costs nothing.
    """
    amount = rate_media(usage, price)
    if usage.provider_cost:
        return amount, "provider"
    if not amount and price.source != "free":
        return estimate, "estimate"
    return amount, "estimate" if usage.estimated else "price"


def covers_media(price: Price) -> bool:
    """Tell whether a price says what media cost."""
    return bool(
        price.request_pico
        or price.image_pico
        or price.megapixel_pico
        or price.second_pico
        or price.character_pico
        or price.output_pico
        or price.source == "free"
    )


def bound_media(given: MediaInput, price: Price) -> int:
    """Return the most that making `given` is expected to cost, in nano-credits.

    What a provider turns out to have made beyond it is paid all the same.
    """
    return rate_media(_most(given), price)


def _most(given: MediaInput) -> MediaUsage:
    match given.WhichOneof("kind"):
        case "image":
            return _pictures(given.image.count, given.image.width, given.image.height)
        case "image_edit":
            return _pictures(given.image_edit.count, given.image_edit.width, given.image_edit.height)
        case "upscale":
            factor = given.upscale.factor or 2
            return MediaUsage(images=1, megapixels=PIXELS * factor * factor / 1e6, seconds=VIDEO_S)
        case "video":
            return MediaUsage(seconds=given.video.duration_s or VIDEO_S)
        case "speech":
            characters = len(given.speech.text)
            tokens = Usage(input_total=characters, output_total=characters * 10)
            return MediaUsage(
                characters=characters, seconds=characters / CHARACTERS_PER_SECOND, tokens=tokens
            )
        case "transcription":
            seconds = len(given.transcription.audio.data) / AUDIO_BYTES_PER_SECOND or LONGEST_AUDIO_S
            seconds = min(seconds, LONGEST_AUDIO_S)
            heard = round(seconds * TOKENS_PER_SECOND)
            return MediaUsage(seconds=seconds, tokens=Usage(input_total=heard, output_total=heard))
        case "embedding_batch":
            size = sum(map(len, given.embedding_batch.inputs))
            return MediaUsage(tokens=Usage(input_total=size // CHARACTERS_PER_TOKEN + 1))
        case _:
            return MediaUsage()


def _pictures(count: int, width: int, height: int) -> MediaUsage:
    images = count or 1
    pixels = width * height if width and height else PIXELS
    # Providers that count tokens take about one for each 200 pixels at the finest quality.
    tokens = Usage(output_total=images * pixels // 150)
    return MediaUsage(images=images, megapixels=images * pixels / 1e6, tokens=tokens)
