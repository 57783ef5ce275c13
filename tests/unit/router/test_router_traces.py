"""What a trace says of a request, named by the GenAI semantic conventions."""

from __future__ import annotations

import pytest
from opentelemetry.trace import StatusCode

from services.common.rpc import Call, RpcError
from tests.support.router import IDENTITY, a_usage, an_answer, build, chat_request, failed, until
from tests.support.spans import recorded_spans

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALL = Call("req_1", IDENTITY, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")


async def test_an_answer_and_a_failure_are_spans_of_the_callers_trace() -> None:
    router = build("a/x", "b/y")
    router.providers.answers["a/x"] = [failed(), failed()]
    router.providers.answers["b/y"] = [an_answer(usage=a_usage(10, 5)), failed()]
    with recorded_spans() as spans:
        answer = await router.client.chat(chat_request(), CALL)
        with pytest.raises(RpcError) as caught:
            await router.client.chat(chat_request(), CALL)
        await until(lambda: len(spans.get_finished_spans()) == 2)
    answered, refused = spans.get_finished_spans()
    for span in (answered, refused):
        assert span.name == "chat a/x"
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert span.attributes["gen_ai.operation.name"] == "chat"
        assert span.attributes["gen_ai.request.model"] == "a/x"
        assert span.attributes["omnihub.attempts"] == 2
        assert "hello" not in span.to_json(), "prompts are in no trace"
    assert answered.attributes["gen_ai.provider.name"] == "b"
    assert answered.attributes["gen_ai.response.model"] == "b/y"
    assert answered.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert answered.attributes["gen_ai.usage.input_tokens"] == 10
    assert answered.attributes["gen_ai.usage.output_tokens"] == 5
    assert answered.attributes["omnihub.decision_id"] == answer.outcome.decision_id
    assert answered.status.status_code is StatusCode.UNSET
    assert refused.attributes["error.type"] == caught.value.reason
    assert refused.status.status_code is StatusCode.ERROR
