"""Answers in the background: one provider makes it, one charge pays it, whatever becomes of its stream."""

from __future__ import annotations

from typing import Any

from omnihub.billing.v1.price_pb2 import Margin, Price, ServiceTierPrice
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Usage, WireFormat
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.decision_pb2 import Decision

from services.common.rpc import RpcError
from services.router.responses.store import StoredResponse
from services.router.responses.stored_responses import StoredResponses
from tests.support.fakes import Fake
from tests.support.router import a_call, build, delta, end, failed, frame, start

RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
BODY = b'{"model":"m","input":"hi","background":true,"stream":true,"max_output_tokens":9}'
FEATURES = ("chat", "stream", "responses", "prefill")


def began() -> Any:
    message = start()
    message.start.wire_format = RESPONSES
    return message


async def test_a_broken_stream_is_not_gone_on_with_by_another() -> None:
    router = build("a/x", "b/y", features=FEATURES)

    async def broken(_: Any, __: Any) -> Any:
        yield began()
        yield frame(b"data: 1\n\n", "some")
        raise failed("STREAM_TRUNCATED")

    async def other(_: Any, __: Any) -> Any:
        yield began()
        yield delta("more")
        yield end()

    router.providers.streams["a/x"], router.providers.streams["b/y"] = [broken], [other]
    request = pb.StreamChatRequest(chat=ChatInput(model="m"), raw_body=BODY, wire_format=RESPONSES)
    failure = None
    try:
        async for _ in router.client.stream_chat(request, a_call()):
            pass
    except RpcError as error:
        failure = error
    await router.settle()
    assert failure is not None
    assert failure.reason == "STREAM_TRUNCATED"
    assert len(router.providers.asked) == 1
    # Recorded when it began; its charge follows when it ends at its provider.
    assert (len(router.journal.records), router.journal.charges) == (1, [])


async def test_nobody_runs_beside_it() -> None:
    router = build("a/x", "b/y", features=FEATURES)

    async def stream(_: Any, __: Any) -> Any:
        yield began()
        yield frame(b"data: 1\n\n", "some")
        yield end()

    router.providers.streams["a/x"], router.providers.streams["b/y"] = [stream], [stream]
    request = pb.StreamChatRequest(chat=ChatInput(model="m"), raw_body=BODY, wire_format=RESPONSES)
    request.options.strategy = "race"
    async for _ in router.client.stream_chat(request, a_call()):
        pass
    assert len(router.providers.asked) == 1


class Written:
    """Takes in what is settled."""

    def __init__(self) -> None:
        self.charges: list[Charge] = []
        self.decisions: list[Decision] = []

    async def settle(self, _: StoredResponse, charge: Charge, decision: Decision) -> bool:
        self.charges.append(charge)
        self.decisions.append(decision)
        return True


async def test_it_is_paid_at_the_tier_it_was_asked_in() -> None:
    price = Price(version="v", input_pico=1_000_000)
    price.service_tiers.append(
        ServiceTierPrice(service_tier="priority", price=Price(version="v", input_pico=5_000_000))
    )
    charge = Charge(charge_id="att_1", usage=Usage(input_total=1, service_tier="priority"))
    stored = StoredResponse(
        "org_1",
        "resp_1",
        "dec_1",
        "att_1",
        "a/x",
        0,
        pending=True,
        charge=charge.SerializeToString(),
        price=price.SerializeToString(),
    )
    store: Any = Written()
    peer: Any = Fake()
    responses = StoredResponses(store, peer)
    await responses.settle(stored, "completed", Finish(reason="stop"), Usage(input_total=10))
    assert [each.amount_nano_credits for each in store.charges] == [50_000]
    assert store.charges[0].usage.service_tier == "priority"


async def test_it_saves_what_its_baseline_would_have_cost_more() -> None:
    charge = Charge(charge_id="att_1", usage=Usage(input_total=1))
    margin = Margin(basis_points=5000)
    stored = StoredResponse(
        "org_1",
        "resp_1",
        "dec_1",
        "att_1",
        "a/x",
        0,
        pending=True,
        charge=charge.SerializeToString(),
        price=Price(version="v", input_pico=1_000_000).SerializeToString(),
        baseline=Price(version="b", input_pico=4_000_000).SerializeToString(),
        baseline_margin=margin.SerializeToString(),
    )
    store: Any = Written()
    peer: Any = Fake()
    responses = StoredResponses(store, peer)
    await responses.settle(stored, "completed", Finish(reason="stop"), Usage(input_total=10))
    (settled,) = store.charges
    assert (settled.amount_nano_credits, settled.baseline_nano_credits) == (10_000, 60_000)
    assert (settled.savings_nano_credits, settled.savings_routing_nano_credits) == (50_000, 50_000)
    assert store.decisions[0].savings_estimate == "0.00005"
    assert store.decisions[0].savings.routing == "0.00005"


async def test_an_id_that_no_database_takes_does_not_keep_its_record_from_being_written() -> None:
    """Providers choose these ids, and records are written many at a time."""
    router = build("a/x", features=FEATURES)

    async def odd(_: Any, __: Any) -> Any:
        message = began()
        message.start.response_id = "resp\0_1"
        yield message
        yield end()

    router.providers.streams["a/x"] = [odd]
    request = pb.StreamChatRequest(chat=ChatInput(model="m"), raw_body=BODY, wire_format=RESPONSES)
    async for _ in router.client.stream_chat(request, a_call()):
        pass
    await router.settle()
    record = router.journal.records[0]
    assert record.response is not None
    assert record.response["response_id"] == "resp_1"
