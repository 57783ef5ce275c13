"""What the edge sends here because its body is too large for the REST path it was meant for.

Many clients, asynchronous ones above all, lose an answer that comes while they still send: so somebody has to
read what is refused. Envoy does not, and has this done here.
"""

from __future__ import annotations

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.gateway.exchange import BODY_LIMIT_HEADER, Endpoint, Exchange

PATH = "/-/oversized"
METHODS = ("POST", "PUT", "PATCH", "DELETE")


class OversizedEndpoint(Endpoint):
    """Refuses, whoever asks: the path that was meant may take no credential, or another scope."""

    async def _enter(self, exchange: Exchange, traceparent: str) -> Call:
        try:
            return await super()._enter(exchange, traceparent)
        except RpcError:
            # Of strangers less is read.
            raise _too_large(exchange) from None


async def refuse(exchange: Exchange, call: Call, event: RequestEvent) -> None:
    """Refuse one request of somebody who is known. Raises RpcError."""
    raise _too_large(exchange)


def _too_large(exchange: Exchange) -> RpcError:
    limit = exchange.headers.get(BODY_LIMIT_HEADER, "")
    more = f"; at most {limit} bytes are read" if limit.isdecimal() else ""
    return RpcError("BODY_TOO_LARGE", f"the body is larger than this path takes{more}; send less")
