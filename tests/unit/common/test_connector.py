"""Where a peer is, and what its absence looks like."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.rpc import Call, Connector, Registry, RpcError
from tests.support.echo import CountRequest, Echo, EchoService, SayRequest, WhisperRequest, grpc_client

CALL = Call("req_unit")


def test_a_peer_that_is_nowhere_says_which_variable_to_set() -> None:
    with pytest.raises(LookupError, match="OMNIHUB_PEERS__BILLING"):
        Connector(Registry(), {}).connect(EchoService, "billing")


def test_an_incomplete_implementation_is_refused_at_start() -> None:
    class Silent:
        say = whisper = None

    with pytest.raises(TypeError, match=r"Silent does not implement /omnihubtest.v1.EchoService/"):
        Registry().add(EchoService, Silent())


async def test_a_peer_that_does_not_answer_is_unavailable(unused_tcp_port: int) -> None:
    connector = Connector(Registry(), {"echo": f"127.0.0.1:{unused_tcp_port}"})
    client = connector.connect(EchoService, "echo")
    with pytest.raises(RpcError) as raised:
        await client.say(SayRequest(), CALL)
    assert raised.value.reason == "UNAVAILABLE"
    with pytest.raises(RpcError) as raised:
        await anext(client.count(CountRequest(), CALL))
    assert raised.value.reason == "UNAVAILABLE"
    assert str(unused_tcp_port) not in raised.value.message, "internal addresses are not for callers"
    assert "EchoService cannot be reached" in raised.value.message
    problems = await connector.problems()
    assert "cannot be reached" in problems["peer echo"]
    await connector.close()


async def test_only_peers_that_are_called_can_be_a_problem(unused_tcp_port: int) -> None:
    connector = Connector(Registry(), {"echo": f"127.0.0.1:{unused_tcp_port}"})
    assert await connector.problems() == {}
    await connector.close()


class ClosedGate:
    """Lets nobody in."""

    async def authenticate(self, credential: str) -> Any:
        raise RpcError("INVALID_CREDENTIAL", "unknown credential")

    async def verify(self, token: str) -> Any:
        raise RpcError("INVALID_CREDENTIAL", "the identity token is not valid")


async def test_a_public_rpc_needs_a_credential_where_the_process_is_entered() -> None:
    async with grpc_client(Echo(), ClosedGate()) as client:
        with pytest.raises(RpcError) as raised:
            await client.whisper(WhisperRequest(), CALL)
        assert raised.value.reason == "MISSING_CREDENTIAL"
        assert (await client.say(SayRequest(text="internal"), CALL)).text == "internal"


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_id", "two\nlines"), ("traceparent", "é"), ("idempotency_key", "k" * 257)],
)
def test_a_call_refuses_what_no_header_can_carry(field: str, value: str) -> None:
    with pytest.raises(RpcError) as raised:
        Call(**{"request_id": "req_unit", field: value})
    assert raised.value.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in raised.value.violations] == [field]


def test_a_deadline_only_ever_gets_nearer() -> None:
    call = CALL.within(10)
    assert call.within(20) is call
    assert call.within(None) is call
    nearer = call.within(5).remaining_s()
    assert nearer is not None
    assert nearer <= 5
