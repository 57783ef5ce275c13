"""No parameter without a word: what a format's writer did not mention is told here, or refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from omnihub.common.v1.chat_pb2 import ChatInput, ParameterReceipt, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import openai_responses
from services.formats.documents import is_null, read_object
from services.providers.domain.failure import UnsupportedError

# What the format's writers call a parameter that the caller calls something else.
_SAME = {
    "max_completion_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "max_tokens": ("max_completion_tokens",),
    "metadata": ("user",),
    "output_config": ("response_format", "reasoning_effort"),
    "reasoning": ("reasoning_effort",),
    "response_schema_json": ("response_format",),
    "stop_sequences": ("stop",),
    "text": ("response_format", "verbosity"),
    "thinking": ("reasoning_effort",),
}
# The conversation itself: it is always written, and what is lost of it has entries of its own.
_CONVERSATION = frozenset({"messages", "system", "input", "instructions"})
# Read by the platform; no provider gets them.
_OURS = frozenset({"agent_id", "extension_json", "latency_pref", "max_cost", "mode", "priority"})
# These are about the way an answer comes, which a caller gets in any case.
_DELIVERY = frozenset({"stream", "stream_options"})


def account(attempt: pb.Attempt, receipt: Sequence[ParameterReceipt]) -> list[ParameterReceipt]:
    """Return the receipt with an entry for every parameter of a translated request."""
    if attempt.raw_body and attempt.wire_format == WireFormat.WIRE_FORMAT_OPENAI_RESPONSES:
        receipt = [*receipt, *openai_responses.default_receipts(attempt.raw_body)]
    told = {entry.name: entry for entry in reversed(receipt)}
    parts = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    added = []
    for name, empty in _parameters(attempt):
        if name in told or (name in parts and name not in _CONVERSATION):
            continue
        same = next((told[other] for other in _SAME.get(name, ()) if other in told), None)
        if same is not None:
            detail = f"as {same.name}; {same.detail}" if same.detail else f"as {same.name}"
            outcome = "translated" if same.outcome == "forwarded" else same.outcome
            added.append(ParameterReceipt(name=name, outcome=outcome, detail=detail))
        elif name in _CONVERSATION:
            added.append(
                ParameterReceipt(name=name, outcome="translated", detail="in this provider's format")
            )
        elif name in _DELIVERY:
            added.append(ParameterReceipt(name=name, outcome="translated", detail="answered as it says"))
        elif empty:
            detail = "null, which is the same as leaving it out"
            added.append(ParameterReceipt(name=name, outcome="translated", detail=detail))
        else:
            detail = "this provider has no such parameter"
            added.append(ParameterReceipt(name=name, outcome="dropped", detail=detail))
    return [*receipt, *added]


def receipt_of(attempt: pb.Attempt, taken: Collection[str]) -> list[ParameterReceipt]:
    """Return the receipt of a provider that takes only some parameters, and those as they are."""
    names = [name for name, _ in _parameters(attempt)]
    return account(
        attempt, [ParameterReceipt(name=name, outcome="forwarded") for name in names if name in taken]
    )


def refuse_drops(provider: str, receipt: Iterable[ParameterReceipt]) -> None:
    """Raise UnsupportedError when anything the caller sent would be left out."""
    for entry in receipt:
        if entry.outcome == "dropped":
            raise UnsupportedError(
                provider, f"{provider} cannot take {entry.name}: {entry.detail}", entry.name
            )


def _parameters(attempt: pb.Attempt) -> list[tuple[str, bool]]:
    """Return the names of what the caller sent, each with whether it says nothing."""
    if attempt.raw_body:
        return [(name, is_null(raw)) for name, raw in read_object(attempt.raw_body).items()]
    chat: ChatInput = attempt.chat
    named = [(field.name, False) for field, _ in chat.ListFields() if field.name not in _OURS]
    extension = [(name, text == "null") for name, text in chat.extension_json.items() if name[:1] != "@"]
    return [*named, *extension]
