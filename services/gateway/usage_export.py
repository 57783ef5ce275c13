"""GET /api/usage/export: usage events as CSV or JSON lines, page by page, however many they are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec
from omnihub.billing.v1 import report_service_pb2 as pb
from omnihub.billing.v1.report_service_api import ReportService

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import Violation
from services.gateway.exchange import Endpoint, Exchange

PAGE_SIZE = 1000
# A GET has no body; more than this is refused.
BODY_LIMIT = 1024
QUERY_LIMIT = 4096
_FIELDS = pb.UsageEvent.DESCRIPTOR.fields
_PARAMETERS = {
    "from": "from",
    "to": "to",
    "organisation_id": "organisation_id",
    "organisationId": "organisation_id",
    "state": "state",
    "cost_source": "cost_source",
    "costSource": "cost_source",
    "format": "format",
}
# Spreadsheets run what begins like this; a plain number is just a number.
_FORMULA = re.compile(r"[=+\-@\t\r\n|%]")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")

Events = Sequence[pb.UsageEvent]


class ApiEndpoint(Endpoint):
    """An endpoint whose errors have the platform's own form."""

    scope = "usage"

    async def _tell(self, exchange: Exchange, error: RpcError) -> None:
        # What has begun ends without its end: whoever reads it must see that it was cut.
        if not exchange.started:
            headers = [(b"www-authenticate", b"Bearer")] if error.row.http == 401 else []
            body = msgspec.json.encode(error.to_body(exchange.request_id))
            await exchange.respond(error.row.http, body, headers)


class UsageExport:
    """Writes the events of an organisation."""

    def __init__(self, reports: ReportService) -> None:
        self._reports = reports

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        await exchange.read_body(BODY_LIMIT)
        kind, request = _read_query(exchange.query)
        content_type, ending, write = _FORMATS[kind]
        # Whatever is wrong with the request is told before the answer begins.
        page = await self._reports.list_usage_events(request, call)
        name = f'attachment; filename="usage.{ending}"'.encode()
        await exchange.start(
            200,
            [(b"content-type", content_type), (b"content-disposition", name), (b"x-accel-buffering", b"no")],
        )
        await exchange.write(write(page.events, True), more=bool(page.next_page_token))
        while page.next_page_token:
            request.page_token = page.next_page_token
            page = await self._reports.list_usage_events(request, call)
            await exchange.write(write(page.events, False), more=bool(page.next_page_token))


def _read_query(query: bytes) -> tuple[str, pb.ListUsageEventsRequest]:
    if len(query) > QUERY_LIMIT:
        raise _invalid("query", f"is longer than {QUERY_LIMIT} bytes")
    try:
        given = parse_qs(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise _invalid("query", "is not a query string; send parameters such as from=2026-01-31") from None
    known: dict[str, str] = {}
    for name, values in given.items():
        if name not in _PARAMETERS:
            raise _invalid(name, f"is no parameter; known: {', '.join(sorted(set(_PARAMETERS.values())))}")
        if _PARAMETERS[name] in known or len(values) > 1:
            raise _invalid(name, "is given more than once")
        known[_PARAMETERS[name]] = values[0]
    kind = known.pop("format", "csv") or "csv"
    if kind not in _FORMATS:
        raise _invalid("format", f"must be one of {', '.join(_FORMATS)}")
    return kind, pb.ListUsageEventsRequest(page_size=PAGE_SIZE, **known)


def _write_csv(events: Iterable[pb.UsageEvent], first: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    if first:
        writer.writerow([field.name for field in _FIELDS])
    for event in events:
        writer.writerow([_cell(getattr(event, field.name)) for field in _FIELDS])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """Return a value as a cell that no spreadsheet takes for a formula."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _write_lines(events: Iterable[pb.UsageEvent], first: bool) -> bytes:
    return msgspec.json.Encoder().encode_lines(
        [{field.json_name: getattr(event, field.name) for field in _FIELDS} for event in events]
    )


_FORMATS: dict[str, tuple[bytes, str, Callable[[Iterable[pb.UsageEvent], bool], bytes]]] = {
    "csv": (b"text/csv; charset=utf-8", "csv", _write_csv),
    "jsonl": (b"application/x-ndjson", "jsonl", _write_lines),
}


def _invalid(field: str, description: str) -> RpcError:
    field = field[:100]
    return RpcError("INVALID_ARGUMENT", f"{field}: {description}", violations=[Violation(field, description)])
