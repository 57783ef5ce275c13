"""Rating of media: what images, seconds, characters and so on cost at a price. Pure, like `rating.py`.

A media usage is first put into the whole units that a charge keeps, and rated from those: so rating the
charge again gives the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Units
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import MediaInput, MediaUsage

from services.credits.rating import Rated, provider_cost_of, sell_of

# What is assumed of a request that does not say.
PIXELS = 1024 * 1024
VIDEO_S = 10.0
# Speech is about 15 characters in a second; nobody speaks slower than a third of that.
CHARACTERS_PER_SECOND = 5
# The smallest audio that is still understood has 1 kB in a second.
AUDIO_BYTES_PER_SECOND = 1000
LONGEST_AUDIO_S = 4 * 3600.0
CHARACTERS_PER_TOKEN = 2
# Of hardware, where that is what is paid for.
COMPUTE_S = 60.0
# Of sound that is listened to; what is written down is less.
TOKENS_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Made:
    """What was made, in the units of a charge, and what it comes to."""

    rated: Rated
    usage: Usage
    units: Units
    source: str
    """Where the cost is from: provider, price or estimate."""


def rate_made(
    usage: MediaUsage,
    price: Price,
    assumed: MediaUsage,
    margin: Margin | None = None,
    limit: int | None = None,
) -> Made:
    """Rate what was made. The provider's own figure wins.

    When the usage says nothing that the price counts, what was `assumed` of the request is paid: only what
    is free costs nothing. Nobody pays more than `limit` nano-credits for a guess.
    """
    source = "estimate" if usage.estimated else "price"
    if provider_cost_of(_tokens_of(usage)) is not None:
        source = "provider"
    elif price.source != "free" and not sell_of(_tokens_of(usage), price, units=_units_of(usage)).cost:
        usage, source = assumed, "estimate"
    tokens, units = _tokens_of(usage), _units_of(usage)
    tokens.estimated = source == "estimate"
    return Made(
        sell_of(tokens, price, margin, limit if tokens.estimated else None, units), tokens, units, source
    )


def _units_of(usage: MediaUsage) -> Units:
    """Return what was made besides tokens, in whole units: parts of one count as one."""
    return Units(
        images=usage.images,
        pixels=_whole(usage.megapixels, 1_000_000),
        milliseconds=_whole(usage.seconds, 1000),
        characters=usage.characters,
        compute_milliseconds=_whole(usage.compute_seconds, 1000),
    )


def _whole(amount: float, parts: int) -> int:
    """Return an amount in parts. What a float has beyond its accuracy is no part."""
    return max(0, math.ceil(round(amount * parts, 3)))


def _tokens_of(usage: MediaUsage) -> Usage:
    tokens = Usage()
    tokens.CopyFrom(usage.tokens)
    tokens.provider_cost = usage.provider_cost
    return tokens


def covers_media(price: Price) -> bool:
    """Tell whether a price says what media cost."""
    return bool(
        price.request_pico
        or price.image_pico
        or price.megapixel_pico
        or price.second_pico
        or price.character_pico
        or price.compute_second_pico
        or price.output_pico
        or price.source == "free"
    )


def bound_media(given: MediaInput, price: Price, margin: Margin | None = None) -> int:
    """Return the most that making `given` is expected to cost, in nano-credits, margin included.

    What a provider turns out to have made beyond it is paid all the same.
    """
    assumed = assumed_of(given)
    return sell_of(_tokens_of(assumed), price, margin, units=_units_of(assumed)).sell


def assumed_of(given: MediaInput) -> MediaUsage:
    """Return the most that is expected to be made of a request."""
    assumed = _made_of(given)
    assumed.compute_seconds = COMPUTE_S
    return assumed


def _made_of(given: MediaInput) -> MediaUsage:
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
