"""For adapters whose answers are bytes and whose requests are forms: sound, pictures, films."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec
from omnihub.common.v1.media_pb2 import MediaFile
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from yarl import URL

from services.formats.errors import invalid
from services.providers.domain.failure import MID_STREAM, Failures, ProviderError
from services.providers.http import Exchange, Timeouts
from services.providers.media.http_adapter import HttpMediaAdapter
from services.providers.media.parameters import UNKNOWN_MIME, bytes_of

# Whole answers, each to fit into a message: pictures, speech, transcripts. Films are fetched in pieces.
BODY_LIMIT = 120 * 2**20
PIECE = 2**20
JSON = "application/json"
# It answered, and said that nothing came of it. Any other end of a paid request leaves a doubt.
_CLEAR = frozenset("45")
_GATEWAYS = frozenset({"502", "504"})

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True)
class Content:
    """A good answer of any type."""

    body: bytes
    headers: Mapping[str, str]
    content_type: str

    @property
    def request_id(self) -> str:
        """Return the provider's id of the request; empty when it tells none."""
        names = ("x-request-id", "request-id")
        return next((self.headers[name] for name in names if self.headers.get(name)), "")

    def read(self, shape: type[Shape], failures: Failures) -> Shape:
        """Return the document. Raises PROVIDER_PROTOCOL for anything else."""
        try:
            return msgspec.json.decode(self.body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError):
            what = self.content_type or "nothing"
            message = f"answered with {what} that is not what was asked for"
            raise failures.of("PROVIDER_PROTOCOL", message, http_status=200) from None


@dataclass(frozen=True, slots=True)
class File:
    """A file of a form."""

    field: str
    data: bytes
    name: str
    mime: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The body of a request."""

    body: bytes
    content_type: str


class ContentAdapter(HttpMediaAdapter):
    """Base of the adapters that make things within the call. Nothing that may have been paid is repeated."""

    async def paid(self, attempt: pb.MediaAttempt, url: URL, sent: Sent) -> Content:
        """Send a request that is paid and return its good answer.

        Raises ProviderError: `accepted` is `unknown` when it may have been paid all the same.
        """
        failures = self.failures(attempt.model)
        try:
            return await self.content("POST", url, failures, self.limits(attempt), sent)
        except ProviderError as error:
            doubt(error)
            raise

    async def content(
        self, method: str, url: URL, failures: Failures, limits: Timeouts, sent: Sent | None = None
    ) -> Content:
        """Send a request and return its good answer. Raises ProviderError."""
        async with self.opened(method, url, failures, limits, sent) as exchange:
            body = await exchange.read_body(BODY_LIMIT)
            return Content(body, exchange.headers, exchange.content_type)

    @asynccontextmanager
    async def opened(
        self, method: str, url: URL, failures: Failures, limits: Timeouts, sent: Sent | None = None
    ) -> AsyncIterator[Exchange]:
        """Send a request and hand out its good answer; the connection is closed when that is left early."""
        headers = {**self.headers, "Accept": "*/*"}
        if sent is not None:
            headers["Content-Type"] = sent.content_type
        body = None if sent is None else sent.body
        exchange = await self.upstream.send(url, headers, body, limits, failures, stream=False, method=method)
        try:
            exchange.got_token = True
            if not 200 <= exchange.status < 300:
                raise self.refused(exchange.status, exchange.headers, await exchange.read_error(), failures)
            # What breaks from now on is a cut answer.
            exchange.phase = MID_STREAM
            yield exchange
        finally:
            exchange.close()


async def pieces(exchange: Exchange) -> AsyncGenerator[bytes, None]:
    """Yield a body as it comes, in pieces of at most 1 MiB. Raises STREAM_TRUNCATED when it is cut."""
    while data := await exchange.read_chunk():
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]


def doubt(error: ProviderError) -> None:
    """Say of a paid request's failure that it may have been accepted, unless the provider said otherwise."""
    status = error.metadata.get("http_status", "")
    if error.sent and (status[:1] not in _CLEAR or status in _GATEWAYS):
        error.metadata["accepted"] = "unknown"
        error.metadata["retryable"] = "false"


def document(values: Mapping[str, Any]) -> Sent:
    """Return parameters as a JSON document."""
    return Sent(msgspec.json.encode(values), JSON)


async def form(values: Mapping[str, Any], files: Iterable[File]) -> Sent:
    """Return parameters and files as a form; lists become fields called `name[]`."""
    writer = aiohttp.MultipartWriter("form-data")
    for name, value in values.items():
        several = isinstance(value, list)
        for each in value if several else [value]:
            writer.append(_text(each)).set_content_disposition(
                "form-data", name=f"{name}[]" if several else name
            )
    for file in files:
        part = writer.append(file.data, {"Content-Type": file.mime})
        part.set_content_disposition("form-data", name=file.field, filename=file.name)
    return Sent(await writer.as_bytes(), writer.headers["Content-Type"])


def file_of(given: MediaFile, provider: str, field: str, path: str, name: str) -> File:
    """Return a file for a form, called `name` unless it has a name. Raises FormatError, UnsupportedError."""
    data = bytes_of(given, provider, path)
    if not data:
        raise invalid(path, "is empty")
    return File(field, data, _plain(given.name) or name, given.mime or UNKNOWN_MIME)


def _plain(name: str) -> str:
    """Return a file's name without folders and what a header cannot hold."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable() and character not in '";')


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
