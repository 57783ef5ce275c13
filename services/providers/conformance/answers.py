"""Whole answers: content, finish, usage, receipt, limits."""

from __future__ import annotations

from typing import Any

from omnihub.common.v1.chat_pb2 import Message, Part, Tool
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc.probe import WireStatus
from services.providers.conformance.kit import CALL_TIMEOUT_S, Group, SkippedError, Subject, require
from services.providers.conformance.words import check_finish, check_receipt, check_usage
from services.providers.domain.clauses import BreachError

GROUP = Group("answers")
# Parameters that any model may take or not. All of them appear in a receipt.
PARAMETERS: dict[str, Any] = {"temperature": 0.5, "seed": 7, "top_k": 5, "stop": ["~~~"], "user": "kit"}
# A refusal of a parameter by the vendor itself says nothing about the plugin.
REFUSALS = ("PROVIDER_REJECTED", "PARAMETER_UNSUPPORTED")
CAP = 16
# One grey pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6368000000820081"
    "77cd72b60000000049454e44ae426082"
)


async def recorded_answer(subject: Subject) -> pb.ChatResponse:
    """Return the answer to the plain question, asked once."""
    if "answer" not in subject.memory:
        subject.memory["answer"] = await subject.answered(await subject.attempt(), "ANSWER-1")
    answer: pb.ChatResponse = subject.memory["answer"]
    return answer


@GROUP.check("ANSWER-1", needs=["chat"])
async def have_content(subject: Subject) -> None:
    """An answer is a message."""
    answer = await recorded_answer(subject)
    require(not answer.HasField("raw_body"), "ANSWER-1", "`raw_body` is set, but no wire format was named")
    require(answer.HasField("message"), "ANSWER-1", "`message` is missing")
    message = answer.message
    require(message.role == "assistant", "ANSWER-1", f"the role is {message.role!r}, not assistant")
    silent = answer.finish.reason in ("length", "content_filter")
    require(silent or bool(message.content or message.parts), "ANSWER-1", "the message is empty")
    unknown = [index for index, part in enumerate(message.parts) if part.WhichOneof("kind") is None]
    require(not unknown, "ANSWER-1", f"parts without a kind: {unknown}")


@GROUP.check("ANSWER-2", needs=["chat"])
async def say_why_they_ended(subject: Subject) -> None:
    """An answer has a finish."""
    check_finish((await recorded_answer(subject)).finish, "ANSWER-2")


@GROUP.check("ANSWER-3", "ANSWER-4", needs=["chat"])
async def report_usage(subject: Subject) -> None:
    """An answer has a usage that adds up."""
    answer = await recorded_answer(subject)
    check_usage(answer.usage if answer.HasField("usage") else None, "ANSWER-3")


async def _with_parameters(subject: Subject, strict: bool) -> pb.Attempt:
    attempt = await subject.attempt(**PARAMETERS)
    attempt.strict = strict
    return attempt


async def _receipt(subject: Subject) -> dict[str, str]:
    """Return what becomes of each parameter. Raises SkippedError when the vendor refuses one."""
    reply = await subject.chat(await _with_parameters(subject, strict=False))
    if reply.status.reason in REFUSALS:
        raise SkippedError(f"the model refuses a parameter: {reply.status}")
    require(reply.status.ok, "RECEIPT-1", f"with {', '.join(PARAMETERS)} Chat ended with {reply.status}")
    check_receipt(list(reply.message.receipt))
    return {entry.name: entry.outcome for entry in reply.message.receipt}


@GROUP.check("RECEIPT-1", "RECEIPT-2", needs=["chat"])
async def account_for_parameters(subject: Subject) -> None:
    """Nothing that was sent is missing from the receipt."""
    receipt = await _receipt(subject)
    missing = [name for name in [*PARAMETERS, "max_tokens"] if name not in receipt]
    require(not missing, "RECEIPT-2", f"the receipt says nothing about {', '.join(missing)}")


@GROUP.check("RECEIPT-3", needs=["chat"])
async def refuse_in_strict_mode(subject: Subject) -> None:
    """What would be dropped is refused."""
    dropped = [name for name, outcome in (await _receipt(subject)).items() if outcome == "dropped"]
    status = (await subject.chat(await _with_parameters(subject, strict=True))).status
    if not dropped:
        require(status.ok, "RECEIPT-3", f"nothing is dropped, but strict mode ended with {status}")
        return
    refused = status.reason == "PARAMETER_UNSUPPORTED"
    names = ", ".join(dropped)
    require(refused, "RECEIPT-3", f"{names} would be dropped, but strict mode ended with {status}")


@GROUP.check("RECEIPT-4", needs=["chat"])
async def never_drop_silently(subject: Subject) -> None:
    """What is not offered is refused or receipted."""
    part = Part()
    part.image.data, part.image.mime = PIXEL, "image/png"
    text = Part()
    text.text.text = "What is this?"
    not_offered: dict[str, dict[str, Any]] = {
        "tools": {"tools": [Tool(name="get_time", parameters_json='{"type":"object"}')]},
        "json_schema": {"response_schema_json": '{"type":"object"}'},
        "vision": {"messages": [Message(role="user", parts=[text, part])]},
    }
    asked = [feature for feature in not_offered if not subject.offers(feature)]
    if not asked:
        raise SkippedError(f"{', '.join(not_offered)} are all offered")
    for feature in asked:
        reply = await subject.chat(await subject.attempt(**not_offered[feature]))
        if reply.status.ok:
            dropped = any(entry.outcome == "dropped" for entry in reply.message.receipt)
            message = f"{feature} is not offered, yet it was taken without a word in the receipt"
            require(dropped, "RECEIPT-4", message)
        else:
            _require_refusal(reply.status, feature)


def _require_refusal(status: WireStatus, feature: str) -> None:
    if status.reason not in (*REFUSALS, "INVALID_ARGUMENT"):
        raise BreachError("RECEIPT-4", f"{feature} is not offered, but the refusal is {status}")


@GROUP.check("COUNT-1", needs=["chat|stream"])
async def count_tokens(subject: Subject) -> None:
    """Input is counted before it is sent."""
    counted = []
    for _ in range(2):
        request = pb.CountTokensRequest(attempt=await subject.attempt())
        reply = await subject.probe.call("count_tokens", request, CALL_TIMEOUT_S)
        if reply.status.code == "UNIMPLEMENTED":
            raise SkippedError("CountTokens is not served")
        require(reply.status.ok, "COUNT-1", f"CountTokens ended with {reply.status}")
        counted.append(reply.message.input_tokens)
    require(counted[0] > 0, "COUNT-1", "`input_tokens` is 0, but there was input")
    require(counted[0] == counted[1], "COUNT-1", f"the same input is {counted[0]} tokens, then {counted[1]}")


@GROUP.check("LIMIT-1", needs=["chat"])
async def keep_the_output_cap(subject: Subject) -> None:
    """The cap that the platform sets holds."""
    attempt = await subject.attempt("Count from one to two hundred in words.", max_tokens=0)
    attempt.output_cap = CAP
    reply = await subject.chat(attempt)
    if reply.status.reason in REFUSALS:
        raise SkippedError(f"the model refuses a limit of {CAP}: {reply.status}")
    require(reply.status.ok, "LIMIT-1", f"with `output_cap` Chat ended with {reply.status}")
    usage = reply.message.usage
    if usage.estimated:
        raise SkippedError("the usage is an estimate")
    require(usage.output_total <= CAP, "LIMIT-1", f"`output_cap` is {CAP}, the output {usage.output_total}")
