"""POST /v1/chat/completions, POST /v1/responses and POST /v1/messages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.stream_pb2 import RawFrame
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.outlet import Accept, offer
from services.formats.errors import invalid
from services.formats.facts import Facts
from services.gateway.exchange import Exchange, attribution, header_value
from services.gateway.surfaces import Surface
from services.gateway.wishes import take_wishes

EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
# Larger than any sensible receipt, smaller than what proxies allow in a header.
RECEIPT_LIMIT = 4096
_STRATEGIES = ("failover", "failover_cheapest", "split", "hedge", "race")
_ROUTING_HEADERS = frozenset(
    {
        "x-omnihub-strict",
        "x-omnihub-rescue",
        "x-omnihub-strategy",
        "x-omnihub-parallel",
        "x-omnihub-hedge-after-ms",
        "x-omnihub-race-width",
        "x-omnihub-session",
        "x-omnihub-cache",
        "x-omnihub-cache-ttl",
    }
)
# As in the contract of ChatInput.
MODEL_LIMIT = 256


class ChatEndpoint:
    """Answers chats in one wire format, streamed or not."""

    def __init__(self, surface: Surface, router: RouterService, body_limit: int) -> None:
        self._surface = surface
        self._router = router
        self._body_limit = body_limit

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        body = await exchange.read_body(self._body_limit)
        facts = self._surface.read_facts(body)
        event.fields["model"] = checked_model(facts.model)
        serve = self._stream if facts.stream else self._answer
        await serve(exchange, call, event, body, facts)

    def _fill(
        self, request: pb.ChatRequest | pb.StreamChatRequest, exchange: Exchange, body: bytes, facts: Facts
    ) -> None:
        """Put the original body into a request, with only what routing reads beside it."""
        headers = exchange.headers
        request.chat.model = facts.model
        if facts.max_tokens is not None:
            request.chat.max_tokens = facts.max_tokens
        request.raw_body = take_wishes(request.chat, headers, body)
        request.wire_format = self._surface.wire_format
        agent_id, run_id = attribution(headers)
        if agent_id or run_id:
            request.chat.agent_id, request.chat.run_id = agent_id, run_id
        options = request.options
        options.include_usage = facts.include_usage
        options.choices = facts.n
        if not _ROUTING_HEADERS.isdisjoint(headers):
            _read_routing(headers, request)
        for name in self._surface.forwarded_headers:
            if name in headers:
                options.headers[name] = headers[name]

    async def _answer(
        self, exchange: Exchange, call: Call, event: RequestEvent, body: bytes, facts: Facts
    ) -> None:
        request = pb.ChatRequest()
        self._fill(request, exchange, body, facts)
        answer = await self._router.chat(request, call)
        note(event, answer.outcome)
        if answer.HasField("raw_body"):
            document = answer.raw_body
        else:
            outcome = answer.outcome
            document = self._surface.write_response(
                answer.message,
                outcome.finish,
                outcome.usage,
                answer.response_id or outcome.request_id,
                outcome.model_used,
                int(time.time()),
                **self._surface.echo(body),
            )
        limits = self._surface.rate_limit_headers(answer.outcome.rate_limits)
        await exchange.respond(200, document, [*outcome_headers(answer.outcome), *limits])

    async def _stream(
        self, exchange: Exchange, call: Call, event: RequestEvent, body: bytes, facts: Facts
    ) -> None:
        request = pb.StreamChatRequest()
        self._fill(request, exchange, body, facts)
        writer: Any = None
        history = self._surface.history() if self._surface.history is not None else None
        start = pb.StreamStart()
        stream: Any = self._router.stream_chat(request, call)
        del request
        offer(stream, _passing(exchange, history))
        async with aclosing(stream):
            async for message in stream:
                if message.HasField("raw_frame"):
                    data = message.raw_frame.data
                    if history is not None:
                        history.keep(data)
                    await exchange.write(data, more=True)
                elif message.HasField("part_delta"):
                    if data := writer.part_delta(message.part_delta):
                        await exchange.write(data, more=True)
                elif message.HasField("start"):
                    start = message.start
                    limits = self._surface.rate_limit_headers(start.rate_limits)
                    await exchange.start(200, [*EVENT_STREAM, *start_headers(start), *limits])
                    if not start.wire_format:
                        writer = self._writer(start, facts, exchange, body)
                        await exchange.write(writer.start(), more=True)
                elif message.HasField("rescue"):
                    if writer is None:
                        writer = self._writer(start, facts, exchange, body)
                        writer.resume(message.rescue.parts, *(() if history is None else (history,)))
                    writer.set_model(message.rescue.model_used)
                elif message.HasField("end"):
                    note(event, message.end.outcome)
                    await exchange.write(self._last(message.end, writer, facts), more=False)
                elif message.HasField("error"):
                    note(event, message.error.outcome)
                    # The status that follows raises; see Endpoint.
                    exchange.facts = outcome_object(message.error.outcome)
                elif data := _typed(writer, message):
                    await exchange.write(data, more=True)
        if not exchange.finished:
            raise RpcError("STREAM_TRUNCATED", "the answer ended without saying how")

    def _writer(self, start: pb.StreamStart, facts: Facts, exchange: Exchange, body: bytes) -> Any:
        writer = self._surface.stream_writer(
            start.model_used,
            start.response_id or exchange.request_id,
            int(start.started_at.seconds),
            facts.include_usage,
            **self._surface.echo(body),
        )
        exchange.write_stream_error = writer.error
        return writer

    def _last(self, end: pb.StreamEnd, writer: Any, facts: Facts) -> bytes:
        extra = outcome_object(end.outcome)
        if writer is None:
            untold = end.outcome.usage if end.outcome.usage.estimated and facts.include_usage else None
            return self._surface.close_raw_stream(end.raw_tail.documents, extra, untold)
        return writer.finish(end.outcome.finish, end.outcome.usage, extra)  # type: ignore[no-any-return]


def _passing(exchange: Exchange, history: Any) -> Accept:
    """Return what writes frames at once, as long as the caller takes what is written."""

    write_now = exchange.write_now

    def accept(message: RawFrame | pb.StreamChatResponse) -> bool:
        # In one process only the frame is given. A message of another kind has none.
        data = message.data if type(message) is RawFrame else message.raw_frame.data
        if not data or not write_now(data):
            return False
        if history is not None:
            history.keep(data)
        return True

    return accept


def _typed(writer: Any, message: pb.StreamChatResponse) -> bytes:
    """Return the start or end of a part in the caller's format; empty when the format does not mark it."""
    if message.HasField("part_start"):
        return writer.part_start(message.part_start)  # type: ignore[no-any-return]
    return writer.part_stop(message.part_stop)  # type: ignore[no-any-return]


def checked_model(name: str) -> str:
    """Return a model's name as callers may write it. Raises FormatError."""
    if len(name) > MODEL_LIMIT or not name.isprintable():
        raise invalid("model", f"expected at most {MODEL_LIMIT} printable characters")
    return name


def _read_routing(headers: Mapping[str, str], request: pb.ChatRequest | pb.StreamChatRequest) -> None:
    """Take in how candidates are to be asked, and what the response cache is to do. Raises FormatError."""
    options = request.options
    options.strict = is_strict(headers)
    if rescue := headers.get("x-omnihub-rescue"):
        options.rescue = _one_of("x-omnihub-rescue", rescue, ("off", "continue", "restart"))
    if strategy := headers.get("x-omnihub-strategy"):
        options.strategy = _one_of("x-omnihub-strategy", strategy, _STRATEGIES)
    if parallel := headers.get("x-omnihub-parallel"):
        request.chat.parallel = _one_of("x-omnihub-parallel", parallel.lower(), ("true", "false")) == "true"
    if after := headers.get("x-omnihub-hedge-after-ms"):
        options.hedge_after_ms = _whole("x-omnihub-hedge-after-ms", after, 1, 600_000)
    if width := headers.get("x-omnihub-race-width"):
        options.race_width = _whole("x-omnihub-race-width", width, 2, 4)
    if session := headers.get("x-omnihub-session"):
        if len(session) > MODEL_LIMIT:
            raise invalid("x-omnihub-session", f"expected at most {MODEL_LIMIT} characters")
        options.session = session
    if cache := headers.get("x-omnihub-cache"):
        options.cache = _one_of("x-omnihub-cache", cache, ("on", "off", "refresh"))
    if ttl := headers.get("x-omnihub-cache-ttl"):
        options.cache_ttl_s = _whole("x-omnihub-cache-ttl", ttl, 1, 2_592_000)


def is_strict(headers: Mapping[str, str]) -> bool:
    """Tell whether the caller wants a refusal instead of a request without one of its parameters."""
    return headers.get("x-omnihub-strict", "").lower() == "true"


def _whole(name: str, value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit() and least <= int(value[:12]) <= most):
        raise invalid(name, f"expected a whole number from {least} to {most}")
    return int(value)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise invalid(name, f"expected one of {', '.join(allowed)}")
    return value


def note(event: RequestEvent, outcome: pb.Outcome) -> None:
    """Put what became of a request into its log line."""
    event.fields.update(
        model_used=outcome.model_used,
        decision_id=outcome.decision_id,
        state=outcome.state,
        cost=outcome.cost,
        input_tokens=outcome.usage.input_total,
        output_tokens=outcome.usage.output_total,
    )
    if outcome.rescued_from:
        event.fields["rescued_from"] = ",".join(outcome.rescued_from)


def start_headers(start: pb.StreamStart) -> list[tuple[bytes, bytes]]:
    """Return the headers known before a stream's body."""
    return [
        (b"x-omnihub-decision-id", header_value(start.decision_id)),
        (b"x-omnihub-model", header_value(start.model_used)),
        (b"x-omnihub-provider", header_value(start.provider)),
        (b"x-omnihub-cache", start.cache.encode() or b"off"),
    ]


def outcome_headers(outcome: pb.Outcome) -> list[tuple[bytes, bytes]]:
    """Return the headers of a whole answer."""
    headers = [
        (b"x-omnihub-decision-id", header_value(outcome.decision_id)),
        (b"x-omnihub-model", header_value(outcome.model_used)),
        (b"x-omnihub-provider", header_value(outcome.provider)),
        (b"x-omnihub-cost", outcome.cost.encode()),
        (b"x-omnihub-cache", outcome.cache.encode() or b"off"),
    ]
    if outcome.savings_estimate:
        headers.append((b"x-omnihub-savings", outcome.savings_estimate.encode()))
    if outcome.usage.estimated:
        headers.append((b"x-omnihub-estimated", b"true"))
    if outcome.receipt and (entries := _told(outcome.receipt)):
        headers.append((b"x-omnihub-receipt", _receipt_header(entries)))
    return headers


_encoder = json.JSONEncoder(separators=(",", ":"))
# Name, outcome and detail of what happened to a parameter.
_Entry = tuple[str, str, str]


@lru_cache(maxsize=1024)
def _receipt_header(entries: tuple[_Entry, ...]) -> bytes:
    """Remember headers: the requests of a caller resemble each other."""
    return receipt_header(_documents(entries))


def receipt_header(receipt: list[dict[str, str]]) -> bytes:
    """Return as many entries as fit a header, as ASCII JSON."""
    while len(text := _encoder.encode(receipt)) > RECEIPT_LIMIT:
        receipt = receipt[:-1]
    return text.encode("ascii")


def told(receipt: Iterable[ParameterReceipt]) -> list[dict[str, str]]:
    """Return what happened to parameters, those that were simply forwarded last."""
    return _documents(_told(receipt))


def _told(receipt: Iterable[ParameterReceipt]) -> tuple[_Entry, ...]:
    entries = [(entry.name, entry.outcome, entry.detail) for entry in receipt]
    # A header has room for the first ones: what went on as it was can be missed most easily.
    passed = [entry for entry in entries if entry[1] == "forwarded"]
    return (*[entry for entry in entries if entry[1] != "forwarded"], *passed)


def _documents(entries: Iterable[_Entry]) -> list[dict[str, str]]:
    return [
        {"name": name, "outcome": outcome, "detail": detail} if detail else {"name": name, "outcome": outcome}
        for name, outcome, detail in entries
    ]


def outcome_object(outcome: pb.Outcome) -> Mapping[str, Any]:
    """Return the `omnihub` object that rides on the last chunk of a stream."""
    facts: dict[str, Any] = {
        "request_id": outcome.request_id,
        "decision_id": outcome.decision_id,
        "model": outcome.model_used,
        "provider": outcome.provider,
        "cost": outcome.cost,
        "state": outcome.state,
        "usage": {
            "input_tokens": outcome.usage.input_total,
            "output_tokens": outcome.usage.output_total,
            "estimated": outcome.usage.estimated,
        },
    }
    if outcome.savings_estimate:
        facts["savings"] = outcome.savings_estimate
        facts["savings_by_cause"] = {
            field.name: text for field, text in outcome.savings.ListFields() if text != "0"
        }
    if outcome.cache not in ("", "off"):
        facts["cache"] = outcome.cache
    if outcome.lost_cost:
        facts["lost_cost"] = outcome.lost_cost
    if outcome.rescued_from:
        facts["rescued_from"] = list(outcome.rescued_from)
    if receipt := told(outcome.receipt):
        facts["receipt"] = receipt
    return facts
