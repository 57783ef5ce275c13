"""Rating of media: what images, seconds, characters and so on cost at a price. Pure, like `rating.py`."""

from __future__ import annotations

from omnihub.billing.v1.price_pb2 import Margin, Price
from omnihub.billing.v1.usage_pb2 import Charge, Units
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import MediaInput, MediaUsage

from services.credits.rating import priced, provider_cost_of, sell_of

# What is assumed of a request that does not say.
PIXELS = 1024 * 1024
VIDEO_S = 10.0
# Speech is about 15 characters in a second; nobody speaks slower than a third of that.
CHARACTERS_PER_SECOND = 5
# The smallest audio that is still understood has 1 kB in a second.
AUDIO_BYTES_PER_SECOND = 1000
# Of sound that is not compressed: a byte each, 8,000 times.
WAVE_BYTES_PER_SECOND = 8000
LONGEST_AUDIO_S = 4 * 3600.0
CHARACTERS_PER_TOKEN = 2
# Of sound that is listened to; what is written down is less.
TOKENS_PER_SECOND = 20
# Of a picture that is looked at closely.
TOKENS_PER_PICTURE = 6500
# Of a machine that is paid by time.
COMPUTE_S = {"video": 900.0, "transcription": 300.0, "training": 4 * 3600.0}
OTHER_COMPUTE_S = 120.0


def charge_media(
    usage: MediaUsage,
    expected: MediaUsage,
    price: Price,
    margin: Margin | None = None,
    limit: int | None = None,
) -> Charge:
    """Return the part of a charge that says what was made and what it comes to.

    When the usage says nothing that the price counts, what was expected is paid: only what is free costs
    nothing. `limit`: nano-credits that are not exceeded by what is only estimated. Rated again it comes to
    the same, for it holds all that was counted.
    """
    tokens, units = _counted(usage)
    by_provider = provider_cost_of(tokens) is not None
    if not by_provider and price.source != "free" and not priced(tokens, price, units):
        tokens, units = _counted(expected)
        tokens.estimated = True
    if by_provider or not tokens.estimated:
        limit = None
    rated = sell_of(tokens, price, margin, limit, units)
    charge = Charge(
        amount_nano_credits=rated.sell,
        cost_nano_credits=rated.cost,
        rounding_pico_credits=rated.rounding_pico,
        usage=tokens,
        units=units,
        price_version=price.version,
        margin_version="" if margin is None else margin.version,
        cost_source="provider" if by_provider else "estimate" if tokens.estimated else "price",
    )
    if limit is not None:
        charge.limit_nano_credits = limit
    return charge


def _counted(usage: MediaUsage) -> tuple[Usage, Units]:
    """Return a usage as charges have it: tokens, and everything else in whole units."""
    tokens = Usage()
    tokens.CopyFrom(usage.tokens)
    tokens.estimated = usage.estimated or tokens.estimated
    tokens.provider_cost = usage.provider_cost or tokens.provider_cost
    return tokens, Units(
        images=usage.images,
        pixels=round(usage.megapixels * 1_000_000),
        milliseconds=round(usage.seconds * 1000),
        characters=usage.characters,
        compute_milliseconds=round(usage.compute_seconds * 1000),
    )


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


def expected_of(given: MediaInput) -> MediaUsage:
    """Return the most that making `given` is expected to use.

    What a provider turns out to have made beyond it is paid all the same.
    """
    kind = given.WhichOneof("kind") or ""
    usage = _most(given)
    usage.compute_seconds = COMPUTE_S.get(kind, OTHER_COMPUTE_S)
    return usage


def bound_media(expected: MediaUsage, price: Price, margin: Margin | None = None) -> int:
    """Return what is expected to be used costs, in nano-credits, margin included."""
    return charge_media(expected, expected, price, margin).amount_nano_credits


def most_tokens(expected: MediaUsage, price: Price) -> int:
    """Return the most tokens that are expected to be counted; none where something else is paid."""
    counts = price.input_pico or price.output_pico
    return expected.tokens.input_total + expected.tokens.output_total if counts else 0


def _most(given: MediaInput) -> MediaUsage:
    match given.WhichOneof("kind"):
        case "image":
            image = given.image
            return _pictures(image.count, image.width, image.height, len(image.prompt))
        case "image_edit":
            edit = given.image_edit
            seen = (len(edit.images) + edit.HasField("mask")) * TOKENS_PER_PICTURE
            return _pictures(edit.count, edit.width, edit.height, len(edit.prompt) + seen, seen)
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
            audio = given.transcription.audio
            each = WAVE_BYTES_PER_SECOND if audio.mime == "audio/wav" else AUDIO_BYTES_PER_SECOND
            seconds = (audio.size or len(audio.data)) / each or LONGEST_AUDIO_S
            seconds = min(seconds, LONGEST_AUDIO_S)
            heard = round(seconds * TOKENS_PER_SECOND)
            return MediaUsage(seconds=seconds, tokens=Usage(input_total=heard, output_total=heard))
        case "embedding_batch":
            size = sum(map(len, given.embedding_batch.inputs))
            return MediaUsage(tokens=Usage(input_total=size // CHARACTERS_PER_TOKEN + 1))
        case _:
            return MediaUsage()


def _pictures(count: int, width: int, height: int, read: int, seen: int = 0) -> MediaUsage:
    """Return the usage of pictures. `read`: tokens that go in, `seen` of which are pictures."""
    images = count or 1
    pixels = width * height if width and height else PIXELS
    # Providers that count tokens take about one for each 200 pixels at the finest quality.
    tokens = Usage(input_total=read, input_image=seen, output_total=images * pixels // 150)
    return MediaUsage(images=images, megapixels=images * pixels / 1e6, tokens=tokens)
