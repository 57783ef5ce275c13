"""Images: made from a text, or from other images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import ImageEditInput, ImageInput, MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import Failures
from services.providers.media import parameters
from services.providers.media.http_media import Content, File, file_of
from services.providers.media.parameters import Word, Written

__all__ = ["Written", "files_of", "read", "write", "write_edit"]

# The older family has a format of its own for what comes back.
_OLD = "dall-e"
# Of images whose provider should have counted tokens and did not: about one for so many pixels.
_PIXELS_PER_TOKEN = 150
_DEFAULT_SIZE = (1024, 1024)
_SIZES = {"1:1": "1024x1024", "3:2": "1536x1024", "2:3": "1024x1536"}


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _InputDetails(msgspec.Struct):
    image_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails | None = None


class _Answer(msgspec.Struct):
    data: list[_Image]
    output_format: str | None = None
    size: str | None = None
    usage: _Usage | None = None


def write(attempt: pb.MediaAttempt) -> Written:
    """Return a request for new images."""
    given = attempt.input.image
    words: dict[str, Word] = {
        "prompt": "prompt",
        "count": "n",
        "quality": "quality",
        **_size_words(given, "input.image"),
    }
    if given.aspect_ratio in _SIZES:
        words["aspect_ratio"] = lambda ratio: {"size": _SIZES[ratio]}
    if attempt.model.startswith(_OLD):
        words["style"] = "style"
    else:
        words |= {"format": "output_format", "background": "background"}
    return _written(attempt, words)


def write_edit(attempt: pb.MediaAttempt) -> Written:
    """Return the fields of a request to change images; its files are those of `files_of`."""
    given = attempt.input.image_edit
    if not given.images:
        raise invalid("input.image_edit.images", "give at least one image")
    words: dict[str, Word] = {
        "prompt": "prompt",
        "count": "n",
        "images": lambda _: {},
        "mask": lambda _: {},
        "quality": "quality",
        **_size_words(given, "input.image_edit"),
    }
    if not attempt.model.startswith(_OLD):
        words |= {"format": "output_format", "background": "background"}
    return _written(attempt, words)


def _written(attempt: pb.MediaAttempt, words: Mapping[str, Word]) -> Written:
    written = parameters.write(attempt, words)
    written.values["model"] = attempt.model
    if attempt.model.startswith(_OLD):
        written.values.setdefault("response_format", "b64_json")
    return written


def _size_words(given: ImageInput | ImageEditInput, path: str) -> dict[str, Word]:
    if bool(given.width) != bool(given.height):
        raise invalid(f"{path}.width", "give both width and height, or neither")
    size = {"size": f"{given.width}x{given.height}"}
    return {"width": lambda _: size, "height": lambda _: size}


def files_of(attempt: pb.MediaAttempt) -> list[File]:
    """Return the images of a request to change them, and the mask."""
    given, provider = attempt.input.image_edit, attempt.provider
    field = "image" if len(given.images) == 1 else "image[]"
    files = [
        file_of(image, provider, field, f"input.image_edit.images[{index}]", f"image{index}.png")
        for index, image in enumerate(given.images)
    ]
    if given.HasField("mask"):
        files.append(file_of(given.mask, provider, "mask", "input.image_edit.mask", "mask.png"))
    return files


def read(answer: Content, attempt: pb.MediaAttempt, failures: Failures) -> pb.MediaProgress:
    """Return the images. Raises PROVIDER_PROTOCOL."""
    made = answer.read(_Answer, failures)
    if not made.data:
        raise failures.of("PROVIDER_PROTOCOL", "answered without an image", http_status=200)
    given: Any = getattr(attempt.input, attempt.input.WhichOneof("kind") or "image")
    width, height = _size_of(made.size) or (given.width, given.height)
    kind = made.output_format or ("" if attempt.model.startswith(_OLD) else given.format) or "png"
    progress = pb.MediaProgress(state="succeeded", usage=_usage(made, width, height, attempt.model))
    for image in made.data:
        output = pb.ProviderOutput(
            facts=MediaOutput(
                mime=f"image/{'jpeg' if kind == 'jpg' else kind}",
                width=width,
                height=height,
                revised_prompt=image.revised_prompt or "",
            )
        )
        if image.b64_json:
            output.data = _decoded(image.b64_json, failures)
        elif image.url:
            # Fetched without the key, by who guards foreign addresses.
            output.url = image.url
        else:
            raise failures.of("PROVIDER_PROTOCOL", "answered with an empty image", http_status=200)
        progress.outputs.append(output)
    return progress


def _decoded(text: str, failures: Failures) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        message = "answered with an image that cannot be decoded"
        raise failures.of("PROVIDER_PROTOCOL", message, http_status=200) from None


def _size_of(text: str | None) -> tuple[int, int] | None:
    width, _, height = (text or "").partition("x")
    return (int(width), int(height)) if width.isdecimal() and height.isdecimal() else None


def _usage(made: _Answer, width: int, height: int, model: str) -> MediaUsage:
    images = len(made.data)
    pixels = (width or _DEFAULT_SIZE[0]) * (height or _DEFAULT_SIZE[1])
    usage = MediaUsage(images=images, megapixels=images * pixels / 1e6)
    if made.usage is not None:
        details = made.usage.input_tokens_details
        usage.tokens.CopyFrom(
            Usage(
                input_total=made.usage.input_tokens,
                input_image=(details.image_tokens or 0) if details is not None else 0,
                output_total=made.usage.output_tokens,
            )
        )
        usage.raw_json = msgspec.json.encode(made.usage).decode()
    elif not model.startswith(_OLD):
        usage.tokens.CopyFrom(Usage(output_total=images * pixels // _PIXELS_PER_TOKEN, estimated=True))
        usage.estimated = True
    return usage
