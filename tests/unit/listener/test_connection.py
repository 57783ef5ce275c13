"""What a connection does with bytes that arrive together, which no test on the wire can be sure of."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from services.listener.connection import HEAD_LIMIT, Connection


@pytest.mark.parametrize(("more", "refused"), [(0, False), (HEAD_LIMIT, True)])
async def test_a_body_does_not_count_as_the_head_behind_it(more: int, refused: bool) -> None:
    transport, server = Mock(spec=asyncio.Transport), Mock(connections=set())
    connection = Connection(server, asyncio.get_running_loop())
    connection.connection_made(transport)
    body = b"x" * (HEAD_LIMIT + 1)
    connection.data_received(
        b"POST /a HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body + b"GET /b HT"
    )
    connection.data_received(b"TP/1.1\r\nx: " + b"y" * more)
    connection.answered(server.begin.call_args.args[0])
    assert transport.write.called == refused
    connection.connection_lost(None)
