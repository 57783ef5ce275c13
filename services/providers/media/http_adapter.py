"""What the adapters of media over HTTP share: asking within limits, and saying what a failure means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaOutput
from omnihub.provider.v1 import media_provider_service_pb2 as pb
from yarl import URL

from services.common import clock
from services.providers.domain.classification import ErrorFacts, ErrorTable, read_error, read_retry_after
from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import BODY_LIMIT, Exchange, Timeouts, Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.parameters import read_data_address
from services.providers.settings import ProviderSettings

# Questions about a generation are answered at once, or not at all.
QUESTION_LIMIT_S = 30.0
# After these a generation may have begun all the same.
_DOUBTFUL = frozenset({"", "200", "201", "202", "500", "502", "504"})
_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
# What models say of a prompt or a picture that their filter refuses, and of a machine that is too small.
PHRASES = (
    ("nsfw", "CONTENT_FILTERED"),
    ("flagged as sensitive", "CONTENT_FILTERED"),
    ("content policy", "CONTENT_FILTERED"),
    ("content moderation", "CONTENT_FILTERED"),
    ("safety checker", "CONTENT_FILTERED"),
    ("out of memory", "PROVIDER_OVERLOADED"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer."""

    document: Any
    headers: Mapping[str, str]
    status: int

    def object(self, failures: Failures) -> dict[str, Any]:
        """Return the document, which must be an object. Raises PROVIDER_PROTOCOL."""
        if not isinstance(self.document, dict):
            raise failures.of("PROVIDER_PROTOCOL", "answered with something else than a JSON object")
        return self.document


class HttpMediaAdapter:
    """Base of the adapters of media over HTTP."""

    adapter: str
    abilities: Abilities
    errors: ErrorTable

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        self.name = name
        self.settings = settings
        self.upstream = upstream
        self.base = URL(settings.base_url.rstrip("/"))
        key = settings.api_key.get_secret_value() if settings.api_key is not None else ""
        configured = [value.get_secret_value() for value in settings.headers.values()]
        self._secrets = tuple(each for each in (*self.secrets(key), *configured) if len(each) >= 4)
        self.headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "omnihub",
            **(self.credential(key) if key else {}),
            **{header: value.get_secret_value() for header, value in settings.headers.items()},
        }

    def credential(self, key: str) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"Authorization": f"Bearer {key}"}

    def secrets(self, key: str) -> Sequence[str]:
        """Return what no error and no log may hold."""
        return (key,)

    def url(self, path: str, query: Mapping[str, str] | None = None) -> URL:
        """Return the address of an operation below the base."""
        address = URL(str(self.base) + path)
        return address.with_query(query) if query else address

    def failures(self, model: str) -> Failures:
        """Return the maker of errors."""
        return Failures(self.name, model, self._secrets)

    def limits(self, attempt: pb.MediaAttempt) -> Timeouts:
        """Return the limits of an attempt: the caller's, else the provider's own."""
        own = self.settings.timeouts
        total_s = attempt.total_ms / 1000 or own.total_s
        return Timeouts(attempt.connect_ms / 1000 or own.connect_s, total_s, own.idle_s, total_s)

    def question(self) -> Timeouts:
        """Return the limits of a question about a generation."""
        own = self.settings.timeouts
        limit_s = min(QUESTION_LIMIT_S, own.total_s)
        return Timeouts(own.connect_s, limit_s, min(own.idle_s, limit_s), limit_s)

    async def begin(
        self,
        path: str,
        document: object,
        attempt: pb.MediaAttempt,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask for a generation. An error says when it may have been accepted all the same."""
        failures = self.failures(attempt.model)
        body = msgspec.json.encode(document)
        try:
            answer = await self.ask(
                "POST", self.url(path, query), failures, self.limits(attempt), body, headers or {}
            )
            answer.object(failures)
        except ProviderError as error:
            if error.sent and error.metadata.get("http_status", "") in _DOUBTFUL:
                error.metadata["accepted"] = "unknown"
                # Who can look for it first may ask again; nobody else may.
                error.metadata["retryable"] = "true" if self.abilities.finds else "false"
            raise
        return answer

    async def inquire(
        self, path: str, failures: Failures, method: str = "GET", query: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask something that costs nothing."""
        return await self.ask(method, self.url(path, query), failures, self.question())

    async def tell(self, path: str, document: object, failures: Failures) -> Answer:
        """Send something that costs nothing."""
        return await self.ask(
            "POST", self.url(path), failures, self.question(), msgspec.json.encode(document)
        )

    async def ask(
        self,
        method: str,
        url: URL,
        failures: Failures,
        limits: Timeouts,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request to an address below the base and return its good answer. Raises ProviderError."""
        sent = dict(self.headers)
        if body is not None:
            sent["Content-Type"] = "application/json"
        exchange = await self.upstream.send(
            url, sent | dict(headers or {}), body, limits, failures, stream=False, method=method
        )
        return await self.read(exchange, failures)

    async def read(self, exchange: Exchange, failures: Failures, limit: int = BODY_LIMIT) -> Answer:
        """Return a good answer; an empty one holds None. Raises ProviderError."""
        exchange.got_token = True
        try:
            if not 200 <= exchange.status < 300:
                raise self.refused(exchange.status, exchange.headers, await exchange.read_error(), failures)
            body = await exchange.read_body(limit)
        finally:
            exchange.close()
        try:
            document = msgspec.json.decode(body) if body.strip() else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            what = exchange.content_type or "nothing"
            message = f"answered with {what} that is no JSON"
            raise failures.of("PROVIDER_PROTOCOL", message, http_status=exchange.status) from None
        return Answer(document, exchange.headers, exchange.status)

    def refused(
        self, status: int, headers: Mapping[str, str], body: bytes, failures: Failures
    ) -> ProviderError:
        """Return the error for a refusal."""
        facts = self.read_refusal(headers, body)
        retry_after_s = read_retry_after(headers, clock.now())
        return failures.rejected(self.errors.classify(status, facts, retry_after_s))

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what the body of a refusal says."""
        return read_error(body)

    def failed(
        self,
        model: str,
        message: str,
        code: str = "",
        *,
        retryable: bool | None = None,
        unbilled: bool = False,
    ) -> pb.MediaProgress:
        """Return the progress of a generation that the provider says has failed."""
        rejection = self.errors.classify(0, ErrorFacts(message=message, code=code, found=True))
        return self.progress_of(self.failures(model).rejected(rejection), retryable, unbilled)

    def progress_of(
        self, error: ProviderError, retryable: bool | None = None, unbilled: bool = False
    ) -> pb.MediaProgress:
        """Return the progress of a generation that has failed with an error."""
        may_pass = error.metadata["retryable"] == "true" if retryable is None else retryable
        return pb.MediaProgress(
            state="failed", reason=error.reason, message=error.message, retryable=may_pass, unbilled=unbilled
        )

    def check_id(self, provider_job_id: str, model: str) -> str:
        """Return an id that can stand in an address. Raises NOT_FOUND: no provider gives another."""
        if not _ID.fullmatch(provider_job_id):
            raise self.forgotten(model)
        return provider_job_id

    def forgotten(self, model: str) -> ProviderError:
        """Return the error for a generation that the provider does not know."""
        return self.failures(model).of("NOT_FOUND", "knows no such generation")

    def output(self, address: str, facts: MediaOutput, failures: Failures) -> pb.ProviderOutput:
        """Return an output by the address that a provider named. Only our own host is asked with the key."""
        if address.startswith("data:"):
            held = read_data_address(address)
            if held is None:
                raise failures.of("PROVIDER_PROTOCOL", "sent an output that cannot be read")
            facts.mime = facts.mime or held[0]
            return pb.ProviderOutput(data=held[1], facts=facts)
        try:
            parsed = URL(address)
        except ValueError:
            raise failures.of("PROVIDER_PROTOCOL", "named an output by no address") from None
        if parsed.host and parsed.origin() == self.base.origin() and parsed.path.startswith(self.base.path):
            return pb.ProviderOutput(fetch_reference=str(parsed.relative()), facts=facts)
        return pb.ProviderOutput(url=address, facts=facts)


def rows(value: object) -> list[dict[str, Any]]:
    """Return the objects of a list, or nothing."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def place(value: object) -> str:
    """Return the path of a field as validators give it: a list of names and numbers."""
    return ".".join(map(str, value)) if isinstance(value, list) else ""


def texts(value: object) -> str:
    """Return a text, or nothing."""
    return value if isinstance(value, str) else ""


def number(value: object) -> float:
    """Return a number that is not negative and fits 32 bits, or 0."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 2**32 else 0.0


def whole(value: object) -> int:
    """Return a whole number that fits 32 bits, or 0."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**32 else 0
